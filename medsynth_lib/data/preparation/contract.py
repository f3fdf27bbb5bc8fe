"""All that the slice-VAE paper does to its data before training: crop, scale, augment (section 3).

Volumes are (channel, x, y, z) in RAS order: the paper's crop (155, 240, 240) -> (144, 192, 192), written (z, y, x), is
(240, 240, 155) -> (192, 192, 144) here. A `Contract` states the preprocessing and travels with the trained weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
import yaml
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd

from medsynth_lib.data.files.manifest import MODALITIES
from medsynth_lib.data.files.nifti import volume_name
from medsynth_lib.data.preparation.crop import BrainCropd, cut_in_words, fitting_window, share_outside, voxel_size
from medsynth_lib.files import DataError, atomic

NORMALISATIONS = ("minmax", "percentile", "zscore", "nyul")
NYUL_PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
MOST_VOXELS = 2**28  # of a resampled volume; MONAI's resampling takes 40 bytes a voxel
LEAST_BACKGROUND = 0.2  # a skull-stripped head has far more exact zeros; an image with skull nearly none


@dataclass(frozen=True)
class SavedContract:
    """What the contracts of both papers share: they are saved with weights, read back, compared."""

    FIELD_TYPES: ClassVar = {}  # of those that are not lists

    def save(self, path: Path | str) -> None:
        """Write the contract as YAML, atomically."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        with atomic(path) as temporary:
            temporary.write_text(yaml.safe_dump(plain, sort_keys=False))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a contract.

        Raises:
            DataError: for a missing or unreadable file, and for unknown or absent fields.
        """
        try:
            plain = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, RecursionError, ValueError, yaml.YAMLError) as error:
            raise DataError(
                f"{path}: no readable contract ({error}); copy it from where the model was saved."
            ) from error
        names = {f.name for f in fields(cls)}
        if not isinstance(plain, dict) or set(plain) != names:
            given = sorted(plain) if isinstance(plain, dict) else plain
            raise DataError(f"{path}: fields {given} are not {sorted(names)}; save the contract again.")
        for name, value in plain.items():
            if not isinstance(value, cls.FIELD_TYPES.get(name, list)):
                raise DataError(f"{path}: {name} is {value!r}, of the wrong type; save the contract again.")
        return cls(**plain)

    def check(self, other: "SavedContract") -> list[str]:
        """List the fields in which two contracts differ, each with both values."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return [f"{name}: {mine!r} against {theirs!r}" for name, mine, theirs in pairs if mine != theirs]

    def require(self, other: "SavedContract") -> None:
        """Raise DataError unless two contracts are the same; it names both values of a difference."""
        differences = self.check(other)
        if differences:
            raise DataError(
                f"preprocessing contracts differ in {'; '.join(differences)}; prepare the data with the "
                "contract that was saved with the model."
            )


@dataclass(frozen=True)
class Contract(SavedContract):
    """The preprocessing contract: what a model's inputs went through, saved beside its weights.

    Raises:
        DataError: for an unknown or incomplete method of normalisation.
    """

    inputs: tuple = ("flair", "t2")
    target: str | None = "t1"  # None reads inputs only, as adaptation must
    orientation: str = "RAS"
    spacing: tuple = (1.0, 1.0, 1.0)  # mm (x, y, z), after orientation
    size: tuple = (192, 192, 144)  # voxels (x, y, z), after orientation
    normalisation: str = "percentile"  # one of NORMALISATIONS; the paper: minmax
    percentiles: tuple = (0.5, 99.5)  # of method "percentile"
    mask: str = "nonzero in all input modalities"
    landmarks: dict | None = None  # of method "nyul": a modality's standard scale, of nyul_landmarks

    FIELD_TYPES: ClassVar = dict(
        target=(str, type(None)), landmarks=(dict, type(None)), orientation=str, normalisation=str, mask=str
    )

    def __post_init__(self) -> None:
        for field in fields(self):  # a profile's YAML gives lists: they must compare equal to the tuples here
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        if self.normalisation not in NORMALISATIONS:
            raise DataError(f"Contract: normalisation '{self.normalisation}' is unknown; use one of {NORMALISATIONS}.")
        missing = set(self.modalities) - set(self.landmarks or {})
        if self.normalisation == "nyul" and missing:
            raise DataError(f"Contract: nyul has no landmarks for {sorted(missing)}; compute them with nyul_landmarks.")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities to read, inputs first."""
        return (*self.inputs, self.target) if self.target else tuple(self.inputs)

    @property
    def anchor(self) -> str:
        """The input whose brain says where the crop lies: the same for all contracts with FLAIR."""
        return min(self.inputs, key=lambda key: MODALITIES.index(key) if key in MODALITIES else len(MODALITIES))

    @classmethod
    def for_paper(cls) -> "Contract":
        """Return the paper's contract (section 3): FLAIR and T2 to T1, 1 mm, 192x192x144, minmax."""
        return cls(normalisation="minmax")


class Geometry:
    """The paper's crop (section 3): orient, resample to `spacing`, crop or pad to `size`.

    `inverse` undoes it. The crop lies in the middle of the field of view, or off it as far as the brain needs. Images are
    interpolated linearly and "seg" by nearest neighbour. MONAI leaves a grid alone whose affine is already right within 1e-3 mm,
    so 1 mm data is only cropped, to the bit.

    Args:
        contract: orientation, spacing and size.
        keys: of the case. The crop follows the brain of `contract.anchor`, or of the first key where that is not among them.
    """

    def __init__(self, contract: Contract, keys: Iterable[str]) -> None:
        keys = list(keys)
        modes = ["nearest" if key == "seg" else "bilinear" for key in keys]
        self.spacing = contract.spacing
        self.grid = Compose(
            [
                Orientationd(keys, axcodes=contract.orientation, labels=None),
                Spacingd(keys, pixdim=contract.spacing, mode=modes),
            ]
        )
        # Not part of the Compose, which would turn its errors into MONAI's.
        self.crop = BrainCropd(keys, contract.anchor if contract.anchor in keys else keys[0], contract.size)

    def __call__(self, case: Mapping[str, MetaTensor]) -> dict[str, MetaTensor]:
        """Move all images (1, x, y, z) of a case to the contract's grid.

        Raises:
            DataError: for a grid that takes too much memory, and for a brain that does not fit.
        """
        return self.crop(self.on_grid(case))

    def on_grid(self, case: Mapping[str, MetaTensor]) -> dict[str, MetaTensor]:
        """Orient and resample all images (1, x, y, z), without the crop.

        Raises:
            DataError: for a grid that takes too much memory.
        """
        for volume in case.values():
            require_grid(volume, self.spacing)
        return self.grid(case)

    def inverse(self, case: Mapping[str, MetaTensor]) -> dict[str, MetaTensor]:
        """Move all images (1, X, Y, Z) back."""
        return self.grid.inverse(self.crop.inverse(case))


def require_grid(volume: MetaTensor, spacing: Sequence[float]) -> None:
    """Raise DataError where a volume is one slice, or has too many voxels at a spacing in mm."""
    shape, extent = volume.shape[1:], voxel_size(volume) * list(volume.shape[1:])
    if min(shape) < 2:
        raise DataError(
            f"{volume_name(volume)}: {tuple(shape)} voxels are one slice, not a volume; join the slices of a scan into one file."
        )
    voxels = float(np.prod(extent) / np.prod(spacing))
    if voxels > MOST_VOXELS:
        raise DataError(
            f"{volume_name(volume)}: {' x '.join(f'{mm:.0f}' for mm in extent)} mm are {voxels / 1e9:.1f} billion voxels of "
            f"{' x '.join(f'{mm:g}' for mm in spacing)} mm, too many for memory; check the voxel size, or cut the field of view "
            "down to the head."
        )


def prepare(case: Mapping[str, MetaTensor], contract: Contract) -> dict[str, torch.Tensor]:
    """Turn a case from `read_case` into network inputs, as the contract says.

    Args:
        case: modality -> (1, x, y, z); "seg" and the target may be absent.
        contract: how it is prepared.

    Returns:
        Plain tensors. "x" (inputs, X, Y, Z) float32 and, where the case has the target, "y" (1, X, Y, Z) float32: for value
        ranges see `normalise`. "mask" (1, X, Y, Z) bool: the voxels that are nonzero in all inputs, never by the target, which
        must not steer the inputs. "seg" (1, X, Y, Z) float32 labels where the case has them.

    Raises:
        DataError: for an absent input, a volume with its skull or without contrast, an empty mask, and a brain that does not
            fit into the crop.
    """
    absent = [key for key in contract.inputs if key not in case]
    if absent:
        raise DataError(f"case has {sorted(case)} but not the contract's inputs {absent}; read these modalities too.")
    for key in contract.modalities:
        if key in case:
            require_stripped(case[key])
    if "seg" in case:
        require_labels(case["seg"])
    moved = Geometry(contract, [key for key in (*contract.modalities, "seg") if key in case])(case)
    mask = torch.cat([moved[key].as_tensor() for key in contract.inputs]).ne(0).all(0, keepdim=True)
    if not mask.any():
        raise DataError(
            f"{volume_name(case[contract.inputs[0]])}: no voxel in the {contract.size} crop is nonzero in all of "
            f"{contract.inputs}; check the affine and that the modalities are registered."
        )
    scaled = {
        key: normalise(moved[key], contract.normalisation, contract.percentiles, (contract.landmarks or {}).get(key))
        for key in contract.modalities
        if key in moved
    }
    sample = {"x": torch.cat([scaled[key] for key in contract.inputs]), "mask": mask}
    if contract.target in scaled:
        sample["y"] = scaled[contract.target]
    if "seg" in moved:
        sample["seg"] = moved["seg"].as_tensor()
    return sample


def cut_off(case: Mapping[str, MetaTensor], contract: Contract) -> str | None:
    """Say how much of a brain the contract's crop cuts off; None where it is whole.

    Args:
        case: of `read_case`, with the contract's inputs.
        contract: orientation, spacing and size.

    Raises:
        DataError: for a brain that does not fit.
    """
    chain = Geometry(contract, [contract.anchor])
    moved = chain.on_grid({contract.anchor: case[contract.anchor]})[contract.anchor]
    window = fitting_window(moved, contract.size)
    brain = moved.as_tensor()[0] != 0
    return cut_in_words(brain, window, voxel_size(moved)) if share_outside(brain, window) else None


def require_stripped(volume: MetaTensor) -> None:
    """Raise DataError unless a fifth of a brain volume is background: exactly 0.

    Args:
        volume: (1, x, y, z), as it was read.
    """
    filled = float((volume != 0).float().mean())
    if filled > 1 - LEAST_BACKGROUND:
        raise DataError(
            f"{volume_name(volume)}: {filled:.0%} of the voxels are not 0, so the skull is still there, or the background is "
            f"another value (the lowest is {float(volume.min()):g}); remove the skull (SynthStrip or HD-BET) and set all "
            "outside the brain to exactly 0, or point DATA_DIR at a data set that the course strips itself."
        )


def require_labels(volume: MetaTensor) -> None:
    """Raise DataError unless all voxels of a segmentation (1, x, y, z) are whole numbers from 0."""
    values = volume.as_tensor()
    wrong = values[(values != values.round()) | (values < 0)]
    if len(wrong):
        raise DataError(
            f"{volume_name(volume)}: {float(wrong[0]):g} is no label; labels are whole numbers from 0: resample them with the "
            "nearest neighbour, and save them without scaling."
        )


def normalise(
    volume: torch.Tensor,
    method: str,
    percentiles: tuple[float, float] = (0.5, 99.5),
    landmarks: Sequence[float] | None = None,
) -> torch.Tensor:
    """Scale one volume by its own intensities; background, the exact zeros, stays 0.

    - "minmax" (the paper): (v - min) / (max - min) over the full volume, to [0, 1]; one bright voxel dims the rest.
    - "percentile": brain voxels clipped to `percentiles`, these to 0 and 1.
    - "zscore": brain voxels to mean 0 and standard deviation 1, the only method not in [0, 1].
    - "nyul": brain percentiles moved piecewise linearly onto the standard scale `landmarks`, clipped to [0, 1].

    All four ignore a positive gain.

    Args:
        volume: (1, X, Y, Z) in any units.
        method: one of `NORMALISATIONS`.
        percentiles: of "percentile".
        landmarks: of "nyul", from `nyul_landmarks`.

    Returns:
        A plain float32 tensor (1, X, Y, Z).

    Raises:
        DataError: for an unknown method or a volume without contrast.
    """
    data = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    brain = data != 0
    values = data[brain].double().numpy()
    if not values.size:
        raise DataError(f"{volume_name(volume)}: all voxels are zero inside the crop; check its affine and size.")
    if method == "nyul":
        return _fill(brain, np.interp(values, _spread(volume, values, NYUL_PERCENTILES), landmarks))
    if method == "zscore":
        low, high = values.mean(), values.mean() + values.std()
    elif method == "minmax":
        low, high = data.min().item(), data.max().item()
    elif method == "percentile":
        low, *_, high = _spread(volume, values, percentiles)
        values = values.clip(low, high)
    else:
        raise DataError(f"normalisation '{method}' is unknown; use one of {NORMALISATIONS}.")
    if not high > low:
        raise DataError(
            f"{volume_name(volume)}: all brain voxels are {low:g}; an image without contrast cannot be normalised."
        )
    return _fill(brain, (values - low) / (high - low))


def _fill(brain: torch.Tensor, values: np.ndarray) -> torch.Tensor:
    out = torch.zeros(brain.shape)
    out[brain] = torch.from_numpy(values).float()
    return out


def _spread(volume: torch.Tensor, values: np.ndarray, percentiles: Sequence[float]) -> np.ndarray:
    """The percentiles of the brain, checked to span a range."""
    marks = np.percentile(values, percentiles)
    if not marks[-1] > marks[0]:
        raise DataError(
            f"{volume_name(volume)}: percentiles {percentiles[0]} and {percentiles[-1]} of the brain are both "
            f"{marks[0]:g}; an image without contrast cannot be normalised."
        )
    return marks


def nyul_landmarks(volumes: Iterable[torch.Tensor]) -> list[float]:
    """Learn the standard scale of one modality: where its percentiles lie on average.

    Each volume is first mapped linearly so that p1 -> 0 and p99 -> 1 (Nyul, Udupa, Zhang 2000, IEEE Trans Med Imaging 19:143).

    Args:
        volumes: (1, X, Y, Z) in any units; training data of the source alone.

    Returns:
        11 numbers from 0 to 1, of the percentiles 1, 10, 20 ... 90, 99.

    Raises:
        DataError: for no volumes, or one without contrast.
    """
    scales = []
    for volume in volumes:
        marks = _spread(volume, volume[volume != 0].double().numpy(), NYUL_PERCENTILES)
        scales.append((marks - marks[0]) / (marks[-1] - marks[0]))
    if not scales:
        raise DataError("nyul_landmarks got no volumes; give it the training volumes of one modality.")
    return np.mean(scales, axis=0).tolist()


def restore(volume: torch.Tensor, case: Mapping[str, MetaTensor], contract: Contract) -> MetaTensor:
    """Put a prepared or synthesised volume back on the scanner's grid: `geometry` undone.

    At equal spacing voxels come back to the bit. Otherwise floats are interpolated linearly, integers and bools (labels) by
    nearest neighbour. Intensities stay normalised.

    Args:
        volume: (1, X, Y, Z).
        case: of `read_case`; its first input has the grid.
        contract: that the volume was prepared with.

    Returns:
        (1, x, y, z) with the shape and affine of the case's first input, 0 outside the crop.

    Raises:
        DataError: where the volume is not of the contract's size.
    """
    reference, key = case[contract.anchor], contract.anchor if volume.is_floating_point() else "seg"
    chain = Geometry(contract, dict.fromkeys([contract.anchor, key]))
    # Run forward once, so that MONAI records what to undo; no label is asked for.
    moved = chain({"seg": torch.zeros_like(reference), contract.anchor: reference})
    expected = tuple(moved[key].shape)
    if volume.shape != expected:
        raise DataError(
            f"volume has shape {tuple(volume.shape)}, the contract gives {expected}; "
            "restore with the contract it was prepared with."
        )
    done = moved[key].applied_operations
    given = MetaTensor(volume.detach().cpu().float(), affine=moved[key].affine, applied_operations=done)
    back = chain.inverse(moved | {key: given})[key]
    return MetaTensor(back.as_tensor().to(volume.dtype), affine=case[contract.inputs[0]].affine)  # exact, not rounded
