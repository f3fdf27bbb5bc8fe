"""Settings of the lessons: one frozen dataclass each, whose defaults are profile `lesson`.

The other profiles, in notebooks/profiles, state what differs. A field's comment gives its unit and meaning.
"""

from dataclasses import dataclass, field, replace

from medsynth_lib.settings.algorithms import (
    AdaptationSettings,
    HAGANSettings,
    JointHAGANSettings,
    Pix2PixSettings,
    RepairedJointHAGANSettings,
    SegmenterSettings,
    SliceVAESettings,
    StructureSettings,
)

Counts = dict[str, int]  # split (train, tune, test, adapt) -> subjects
Shape = tuple[int, int, int]  # voxels along x, y and z


def per(**values: int) -> dict[str, int]:
    """Make the default of a field whose value is a dictionary; no two objects share it."""
    return field(default_factory=lambda: dict(values))


# -- lessons 01 to 04: pairs of contrasts at two sites ----------------------------------------------------------------------


@dataclass(frozen=True)
class PairedData:
    """Simulated subjects with FLAIR, T2 and T1 at several sites, and how volumes are prepared."""

    counts: Counts = per(train=32, adapt=16, tune=6, test=16)  # subjects a split, at every site; Table 1: 146 and 239
    sites: tuple[str, ...] = ("A", "B")  # simulated scanners
    real_sites: tuple[str, ...] = ()  # of DATA_DIR, such as [Guys, IOP]; none: CBICA and TCIA, else the two largest
    shape: Shape = (100, 100, 65)  # voxels of a simulated volume; 240 x 240 x 156 mm, the field of view of BraTS
    spacing: float = 2.4  # mm; the paper: 1
    size: Shape = (80, 80, 60)  # voxels of a prepared volume; the paper's crop of 192 x 192 x 144 mm
    normalisation: str = "percentile"  # of intensities; the paper: minmax


@dataclass(frozen=True)
class Lesson01Settings(PairedData):
    """Data preparation."""

    picture_shape: Shape = (160, 192, 144)  # voxels of the subject that is drawn large
    picture_spacing: float = 1.0  # mm
    montage_subjects: int = 6
    volume_counts: Counts = per(train=24, tune=2, test=6)  # chests, and tumour-free brains
    volume_size: int = 96  # voxels of a chest along each axis, as the scanner gives it
    cube_size: int = 64  # N of HA-GAN's N x N x N


@dataclass(frozen=True)
class Lesson02Settings(PairedData):
    """The pix2pix backbone."""

    # torch's CPU convolutions are fastest from 24 channels on; the last fifth of the steps has the paper's rate
    pix2pix: Pix2PixSettings = Pix2PixSettings(
        width=32, loss="l1", learning_rate=0.005, constant_until=0.3333333333, decay_until=0.8,
        final_learning_rate=1e-4, steps=2500, validate_every=100,
    )  # fmt: skip
    resume_steps: int = 6  # of the demonstration that a stopped run goes on exactly
    gan_steps: int = 4  # of the demonstration of the adversarial loss


@dataclass(frozen=True)
class SliceData(PairedData):
    """The coarser volumes of lessons 03 and 04, at three sites."""

    counts: Counts = per(train=64, adapt=100, tune=8, test=16)
    sites: tuple[str, ...] = ("A", "B", "C")
    shape: Shape = (80, 80, 52)
    spacing: float = 3.0
    size: Shape = (64, 64, 48)
    svae: SliceVAESettings = SliceVAESettings(
        size=64, slices="random 8", learning_rate=0.001, constant_until=0.4, decay_until=1.0, steps=56_000,
        validate_every=400,
    )  # fmt: skip
    # its 3D twin, in a shorter training
    vae3d: SliceVAESettings = replace(svae, dims=3, width=192, slices="all", steps=4000, validate_every=200)


@dataclass(frozen=True)
class Lesson03Settings(SliceData):
    """The slice-VAE."""

    live_steps: int = 100  # of the short trainings that a student compares
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64)  # slices a step; Fig. 4a: 32 to 256
    sweep_steps: int = 1500  # of the same trainings, longer, in the sweep
    sweep_seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Lesson04Settings(SliceData):
    """Domain adaptation."""

    svae_slice: SliceVAESettings = replace(SliceData.svae, norm="slice", steps=4000)  # a shorter training
    pix2pix: Pix2PixSettings = replace(Lesson02Settings.pix2pix, width=24, steps=1200)
    # the paper adapts at 1e-6 after training at 1e-4; here the backbone learned at 0.005
    adaptation: AdaptationSettings = AdaptationSettings(
        learning_rate=0.001, constant_until=0.0, decay_until=1.0, final_learning_rate=0.0001, steps=150
    )
    segmenter: SegmenterSettings = SegmenterSettings(steps=320, validate_every=40)
    sweep_seeds: tuple[int, ...] = (0, 1, 2)
    sweep_directions: tuple[str, ...] = ("AB", "BA", "AC")  # source and target site
    # rows that the notebook runs itself; it adds one row of the sweep
    live: tuple[str, ...] = ("no adaptation", "continued training", "physics T1 + target style", "supervised, n = 10")


# -- lessons 05 to 07: single volumes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VolumeData:
    """Simulated chests and tumour-free brains, HA-GAN trained on them, and the segmenter of structures."""

    volume_counts: Counts = per(train=400, tune=8, test=40)  # subjects that a lesson looks at
    training_subjects: int = 2000  # simulated ones that the shipped models learned from
    volume_size: int = 64  # voxels of a chest along each axis, as the scanner gives it
    shape: Shape = (100, 100, 65)  # voxels of a brain, as the scanner gives it
    spacing: float = 2.4  # mm of the same
    hagan: HAGANSettings = JointHAGANSettings(
        size=64, latent=64, c=8, fraction=0.5, lam=50.0, discriminator_rate=1.0, average=0.999, lean=True,
        channels_last=True, learning_rate=0.001, constant_until=0.4, decay_until=1.0, final_learning_rate=1e-5,
        steps=5000, batch_size=32, validate_every=125,
    )  # fmt: skip
    structures: StructureSettings = StructureSettings(learning_rate=0.005, steps=320, validate_every=40)


@dataclass(frozen=True)
class Lesson05Settings(VolumeData):
    """HA-GAN: training."""

    live_batch_size: int = 4  # of the trainings in this lesson
    live_average: float = 0.99  # decay of the running mean in these trainings
    live_steps: int = 128  # of the training that a student watches
    memory: HAGANSettings = HAGANSettings()  # networks that are accounted; nothing is allocated
    pairs: int = 40  # of volumes whose MS-SSIM is measured
    ablation_steps: int = 12
    conditional_steps: int = 60


@dataclass(frozen=True)
class Lesson06Settings(VolumeData):
    """HA-GAN: recovery."""

    held_out: int = 24  # test volumes that are scored
    references: int = 400  # training volumes: their mean, the nearest of them, and their codes
    lesions: int = 12  # brains with a tumour


@dataclass(frozen=True)
class Lesson07Settings(VolumeData):
    """Latent exploration. Dictionaries are by modality."""

    samples: dict[str, int] = per(ct=600, t1=160)  # generated codes that directions are fitted to
    real: dict[str, int] = per(ct=400, t1=96)  # encoded volumes
    references: dict[str, int] = per(ct=6, t1=4)  # codes that walks start from
    walk_points: int = 5
    projection_steps: int = 40
    posterior_steps: int = 400
    information_steps: int = 60
    information_batch: int = 4


# -- lesson 08 ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson08Settings:
    """The memory study."""

    sizes: tuple[int, ...] = (32, 64, 128, 256, 512)  # voxels along each axis that HA-GAN is accounted at
    lean_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    baselines: tuple[str, ...] = ("WGAN", "VAE-GAN", "alpha-GAN", "Progressive GAN")
    baseline_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    batch: int = 2  # section IV-E
    narrower: int = 1  # the paper's widths divided by this number
    levers_size: int = 256
    levers: tuple[str, ...] = ("multiplier 1/2", "sub-volume", "fused up-sampling", "stored activations",
                               "optimiser state", "one graph at a time", "checkpointing", "16-bit")  # fmt: skip
    card_sizes: tuple[int, ...] = (64, 128, 192, 256)
    card_batches: tuple[int, ...] = (1, 2)
    timed_latent: int = 256  # a quarter of the paper's code
    timed_c: int = 8  # a quarter of the paper's channels
    timed_sizes: tuple[int, ...] = (32, 64, 128)
    timed_repeats: int = 3


# -- lesson 09 ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson09Settings(VolumeData):
    """Scores: HA-GAN and its rivals."""

    volume_counts: Counts = per(train=400, tune=8, test=200)  # scores compare sets of half as many test volumes
    hagan: HAGANSettings = RepairedJointHAGANSettings(
        size=64, latent=64, c=8, fraction=0.25, lam=10.0, discriminator_rate=2.0, average=0.999, lean=True,
        channels_last=True, learning_rate=5e-4, constant_until=0.6, decay_until=1.0, final_learning_rate=1e-5,
        steps=3000, batch_size=4, validate_every=250, kl_weight=0.004, recovery_first=0.3, beta_1=0.0,
        encoder_rate=0.25,
    )  # fmt: skip
    rival_width: int = 16  # channels of a rival's finest layer: the published 64, as HA-GAN's c, divided by four
    rival_learning_rate: float = 2e-4  # Kwon et al.
    # contender -> steps that take as many CPU minutes as HA-GAN's; empty: not measured, and no such budget
    steps_of_equal_time: dict[str, int] = field(default_factory=dict)
    samples: int = 200  # of each contender
    permutations: int = 999  # of a test of the maximum mean discrepancy
    sweep_organs: tuple[str, ...] = ("t1", "ct")
    sweep_seeds: tuple[int, ...] = (0, 1, 2)


LESSONS = {
    "01": Lesson01Settings,
    "02": Lesson02Settings,
    "03": Lesson03Settings,
    "04": Lesson04Settings,
    "05": Lesson05Settings,
    "06": Lesson06Settings,
    "07": Lesson07Settings,
    "08": Lesson08Settings,
    "09": Lesson09Settings,
}
