"""Settings of the algorithms: one frozen dataclass each, whose defaults are the paper's own values.

Where a paper is silent, the default is the value of its public code. A field's comment gives its unit and its source.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

Settings = TypeVar("Settings", bound="TrainingSettings")


@dataclass(frozen=True)
class TrainingSettings:
    """What every training has: its length, its batches, its seed and its learning rate."""

    algorithm: ClassVar[str] = ""  # the name that stands in recipe.yaml

    steps: int = 1  # optimisation steps
    batch_size: int = 1  # samples a step
    validate_every: int = 100  # steps between two rows of the history
    seed: int = 0  # of first weights, batches and random numbers
    learning_rate: float = 1e-4  # at the beginning
    constant_until: float = 1.0  # share of the steps before the rate falls linearly
    decay_until: float = 2.0  # share of the steps at which the falling rate would be 0
    final_learning_rate: float = 0.0  # the rate never falls below this value


# -- paper 1: slice-VAE domain adaptation of a 3D pix2pix ------------------------------------------------------------------


@dataclass(frozen=True)
class Pix2PixSettings(TrainingSettings):
    """The 3D pix2pix (section 2, 'Backbone'; section 3, 'Configuration of the training schedule')."""

    algorithm: ClassVar[str] = "pix2pix"

    width: int = 64  # channels of the widest layer; public code: 64
    loss: str = "gan"  # "l1", the paper's text; "gan", LSGAN + 100 L1 + 1.5 feature matching, near the public code
    spatial: float = 0.5  # probability of a rotation and of each flip
    intensity: float = 0.0  # probability of the contrast and brightness augmentation; row 1 of Table 2: none
    steps: int = 17_520  # public code: 120 epochs of 146 pairs
    validate_every: int = 500
    constant_until: float = 0.4166666667  # public code: 50 of 120 epochs
    decay_until: float = 1.0


@dataclass(frozen=True)
class SliceVAESettings(TrainingSettings):
    """The slice-VAE and its 3D twin (section 2, equation 1)."""

    algorithm: ClassVar[str] = "svae"

    size: int = 256  # voxels along each axis of the padded cube
    dims: int = 2  # 2: the slices of a volume are the batch; 3: volumes are
    plane: str = "axial"  # "axial", "coronal" or "sagittal"; public code: coronal
    slices: str = "all"  # which slices a step sees: "all", "first k", "spread k" or "random k"
    norm: str = "batch"  # "batch" or "slice"
    width: int = 256  # length of a slice's code at each of its 2 x 2 positions
    loss: str = "elbo"  # "elbo", or with one or both misprints of equation 1: "reversed", "unsquared", "printed"
    kl_weight: float = 0.001  # weight of the KL; the paper: 0.001; the public command: 0.01
    steps: int = 43_800  # the paper: 300 epochs; of 146 volumes
    validate_every: int = 146
    final_learning_rate: float = 1e-5


@dataclass(frozen=True)
class SegmenterSettings(TrainingSettings):
    """The tumour segmenter that judges synthetic images (section 3, 'Evaluation protocol'; ours)."""

    algorithm: ClassVar[str] = "segmentation"

    width: int = 8  # filters of the first layer
    spatial: float = 0.5  # probability of a rotation and of each flip
    intensity: float = 0.5  # probability of the contrast and brightness augmentation
    steps: int = 400
    validate_every: int = 50
    learning_rate: float = 0.002
    constant_until: float = 0.5
    decay_until: float = 1.0
    final_learning_rate: float = 1e-4


@dataclass(frozen=True)
class AdaptationSettings(TrainingSettings):
    """Adaptation of a trained synthesiser as the course does it (section 2, equation 2)."""

    algorithm: ClassVar[str] = "adaptation"

    divergence: str = "kl"  # between P(Y_s) and the posterior of a generated volume; a key of `DIVERGENCES`
    rho: float = 0.0  # norm of the latent gradient as a multiple of the supervised one; 0: continued training
    steps: int = 500  # ours; the paper: 5 epochs
    learning_rate: float = 1e-6
    final_learning_rate: float = 1e-6


@dataclass(frozen=True)
class PaperTextSettings(TrainingSettings):
    """Adaptation by the paper's text (sections 2 and 3)."""

    algorithm: ClassVar[str] = "adaptation_paper_text"

    steps: int = 730  # 5 epochs (section 3) of 146 volumes; each step is two updates
    learning_rate: float = 1e-6  # public code, constant
    final_learning_rate: float = 1e-6


@dataclass(frozen=True)
class PaperCodeSettings(TrainingSettings):
    """Adaptation as the paper's public code does it."""

    algorithm: ClassVar[str] = "adaptation_paper_code"
    loss: ClassVar[str] = "gan"  # of the supervised update

    width: int = 64  # channels of the discriminator; public code: 64
    steps: int = 730  # 5 epochs, each as long as the longer list: 146 volumes; each step is two updates
    learning_rate: float = 1e-6  # of generator and discriminator, constant
    final_learning_rate: float = 1e-6


# -- paper 2: HA-GAN --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HAGANSettings(TrainingSettings):
    """HA-GAN as the paper prints it (section II); the last three fields change no equation."""

    algorithm: ClassVar[str] = "hagan"

    size: int = 256  # voxels along each axis, S; section II-E
    latent: int = 1024  # length of a code Z; section II-E (section IV has 1,000)
    c: int = 32  # channels of the widest features at full resolution; public code
    fraction: float = 1 / 8  # of the volume that a sub-volume takes; section II-E: 32 of 256 slices
    lam: float = 5.0  # lambda_1 = lambda_2 of equation 8; section II-E
    discriminator_rate: float = 4.0  # learning rate of D^H and D^L as a multiple of the others'; section II-E
    beta_1: float = 0.0  # of Adam; section II-E
    steps: int = 80_000  # public code; section II-E: ten epochs
    batch_size: int = 4  # section II-E
    validate_every: int = 1000
    average: float = 0.0  # decay of the generator's running mean, which samples come from; the paper: none
    lean: bool = False  # the same mathematics in less time and memory
    channels_last: bool = False  # memory layout of the weights: channels_last_3d


@dataclass(frozen=True)
class JointHAGANSettings(HAGANSettings):
    """The departure of this course: G and E^G learn equation 7 together, recovery comes first."""

    algorithm: ClassVar[str] = "hagan_joint"

    kl_weight: float = 0.02  # weight of KL(q(z | X) || N(0, I)), a sum over the code's elements
    recovery_first: float = 0.6  # share of the steps before the adversarial training phase; 0: no such phases
    beta_1: float = 0.5  # section II-E: 0
    encoder_rate: float = 0.05  # learning rate of E^G as a multiple of G's; section II-E: 1


@dataclass(frozen=True)
class ConditionalHAGANSettings(HAGANSettings):
    """HA-GAN that generates volumes of a class (public code)."""

    algorithm: ClassVar[str] = "hagan_conditional"

    classes: int = 2  # labels 0 to classes - 1


@dataclass(frozen=True)
class ConditionalJointHAGANSettings(JointHAGANSettings):
    """The joint form that generates volumes of a class."""

    algorithm: ClassVar[str] = "hagan_joint_conditional"

    classes: int = 2  # labels 0 to classes - 1


@dataclass(frozen=True)
class Remedies:
    """What keeps HA-GAN diverse (`training.hagan_repaired`; ours)."""

    augmented: bool = True  # D^H and D^L see volumes that are changed at random
    batch_discriminator: bool = True  # D^B sees the deviation over the batch; the paper: future work


@dataclass(frozen=True)
class RepairedHAGANSettings(Remedies, HAGANSettings):
    """The printed form with remedies."""

    algorithm: ClassVar[str] = "hagan_repaired"


@dataclass(frozen=True)
class RepairedJointHAGANSettings(Remedies, JointHAGANSettings):
    """The joint form with remedies."""

    algorithm: ClassVar[str] = "hagan_joint_repaired"


@dataclass(frozen=True)
class InformedHAGANSettings(HAGANSettings):
    """A trained generator that goes on with an information term (discussion B of the paper; ours)."""

    algorithm: ClassVar[str] = "hagan_informed"

    information_weight: float = 1.0  # of the bound of the mutual information, in nats; 0: the control


@dataclass(frozen=True)
class WithoutLowBranchSettings(HAGANSettings):
    """Table IV, "HA-GAN w/o low-res branch"."""

    algorithm: ClassVar[str] = "hagan_without_low_branch"


@dataclass(frozen=True)
class WithoutEncoderSettings(HAGANSettings):
    """Table IV, "HA-GAN w/o encoder"."""

    algorithm: ClassVar[str] = "hagan_without_encoder"


@dataclass(frozen=True)
class DeterministicStartSettings(HAGANSettings):
    """Table IV, "HA-GAN w/ deterministic r"."""

    algorithm: ClassVar[str] = "hagan_deterministic_start"


@dataclass(frozen=True)
class PublicHAGANSettings(HAGANSettings):
    """The losses of the public code, and where its sub-volumes start."""

    algorithm: ClassVar[str] = "hagan_public"


@dataclass(frozen=True)
class StructureSettings(TrainingSettings):
    """The segmenter of twelve brain structures (section IV-C, Fig. 6, which takes FreeSurfer; ours)."""

    algorithm: ClassVar[str] = "structures"

    width: int = 16  # filters of the first layer
    steps: int = 2000
    learning_rate: float = 0.003
    constant_until: float = 0.5
    decay_until: float = 1.0
    final_learning_rate: float = 1e-4


@dataclass(frozen=True)
class BaselineSettings(TrainingSettings):
    """A baseline of section IV: WGAN, VAE-GAN, alpha-GAN or Progressive GAN."""

    size: int = 64  # voxels along each axis
    latent: int = 1000  # length of a code; section IV
    width: int = 64  # channels of the layer at full resolution
    widest: int = 512  # no layer has more channels
    lean: bool = False  # generator and encoder in HA-GAN's lean form: the same mathematics in less time


@dataclass(frozen=True)
class WGANSettings(BaselineSettings):
    algorithm: ClassVar[str] = "WGAN"


@dataclass(frozen=True)
class VAEGANSettings(BaselineSettings):
    algorithm: ClassVar[str] = "VAE-GAN"


@dataclass(frozen=True)
class AlphaGANSettings(BaselineSettings):
    algorithm: ClassVar[str] = "alpha-GAN"


@dataclass(frozen=True)
class PublishedWGANSettings(WGANSettings):
    """WGAN as its public code trains it."""

    algorithm: ClassVar[str] = "WGAN as published"


@dataclass(frozen=True)
class PublishedVAEGANSettings(VAEGANSettings):
    """VAE-GAN as its public code trains it."""

    algorithm: ClassVar[str] = "VAE-GAN as published"


@dataclass(frozen=True)
class PublishedAlphaGANSettings(AlphaGANSettings):
    """alpha-GAN as its public code trains it."""

    algorithm: ClassVar[str] = "alpha-GAN as published"


@dataclass(frozen=True)
class ProgressiveGANSettings(BaselineSettings):
    algorithm: ClassVar[str] = "Progressive GAN"

    width: int = 16  # ours in 3D


def recast(settings: TrainingSettings, kind: type[Settings], **changes: object) -> Settings:
    """Make the settings of another algorithm from these.

    Fields that both have are carried over, then changed.

    Example: ``recast(joint, HAGANSettings, lam=5.0)`` is the paper's HA-GAN at the size and length of the joint one.
    """
    shared = {f.name for f in fields(settings)} & {f.name for f in fields(kind)}
    return kind(**{name: getattr(settings, name) for name in shared} | changes)


def settings_class(algorithm: str) -> type[TrainingSettings]:
    """Find the settings of an algorithm by the name that stands in recipe.yaml."""
    found = {cls.algorithm: cls for cls in _subclasses(TrainingSettings) if cls.algorithm}
    if algorithm not in found:
        raise ValueError(f"algorithm {algorithm!r} is unknown; use one of {', '.join(sorted(found))}")
    return found[algorithm]


def _subclasses(cls: type[TrainingSettings]) -> list[type[TrainingSettings]]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_subclasses(sub))]
