"""All that the slice-VAE paper does to its data before training: crop, scale, augment (section 3).

Volumes are (channel, x, y, z) in RAS order: the paper's crop (155, 240, 240) -> (144, 192, 192), written (z, y, x), is
(240, 240, 155) -> (192, 192, 144) here. A `Contract` states the preprocessing and travels with the trained weights.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import yaml
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, ResizeWithPadOrCropd, Spacingd

from medsynth_lib.data.files.nifti import volume_name
from medsynth_lib.files import DataError, atomic

NORMALISATIONS = ("minmax", "percentile", "zscore", "nyul")
NYUL_PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
LEAST_BACKGROUND = 0.2  # a skull-stripped head has far more exact zeros; an image with skull nearly none


class SavedContract:
    """What the contracts of both papers share: they are saved beside a model's weights, read back, and compared."""

    FIELD_TYPES: ClassVar = {}  # of those that are not lists

    def save(self, path):
        """Write the contract as YAML, atomically."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        with atomic(path) as temporary:
            temporary.write_text(yaml.safe_dump(plain, sort_keys=False))

    @classmethod
    def load(cls, path):
        """Read a contract; raises DataError for a missing or unreadable file and for unknown or absent fields."""
        try:
            plain = yaml.safe_load(Path(path).read_text())
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

    def check(self, other):
        """List the fields in which two contracts differ, each with both values; empty where they agree."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return [f"{name}: {mine!r} against {theirs!r}" for name, mine, theirs in pairs if mine != theirs]

    def require(self, other):
        """Raise DataError, naming each differing field with both values, unless the contracts are the same."""
        differences = self.check(other)
        if differences:
            raise DataError(
                f"preprocessing contracts differ in {'; '.join(differences)}; prepare the data with the "
                "contract that was saved with the model."
            )


@dataclass(frozen=True)
class Contract(SavedContract):
    """The preprocessing contract: what a model's inputs went through, saved beside its weights.

    `spacing` is in mm and `size` in voxels, both (x, y, z) after orientation; `percentiles` are those of method
    "percentile"; `landmarks` (method "nyul") maps a modality to its standard scale from `nyul_landmarks`.
    `target` None reads inputs only, as adaptation must. Raises DataError for an unknown or incomplete method.
    """

    inputs: tuple = ("flair", "t2")
    target: str | None = "t1"
    orientation: str = "RAS"
    spacing: tuple = (1.0, 1.0, 1.0)
    size: tuple = (192, 192, 144)
    normalisation: str = "percentile"
    percentiles: tuple = (0.5, 99.5)
    mask: str = "nonzero in all input modalities"
    landmarks: dict | None = None

    FIELD_TYPES: ClassVar = dict(
        target=(str, type(None)), landmarks=(dict, type(None)), orientation=str, normalisation=str, mask=str
    )

    def __post_init__(self):
        for field in fields(self):  # a profile's YAML gives lists: they must compare equal to the tuples here
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        if self.normalisation not in NORMALISATIONS:
            raise DataError(f"Contract: normalisation '{self.normalisation}' is unknown; use one of {NORMALISATIONS}.")
        missing = set(self.modalities) - set(self.landmarks or {})
        if self.normalisation == "nyul" and missing:
            raise DataError(f"Contract: nyul has no landmarks for {sorted(missing)}; compute them with nyul_landmarks.")

    @property
    def modalities(self):
        """The modalities to read, inputs first."""
        return (*self.inputs, self.target) if self.target else tuple(self.inputs)

    @classmethod
    def for_paper(cls):
        """The paper's contract (section 3): FLAIR and T2 to T1, 1 mm, 192 x 192 x 144, min-max."""
        return cls(normalisation="minmax")


def geometry(contract, keys):
    """The paper's crop (section 3) as an invertible MONAI chain: orient, resample to `spacing`, centre crop or pad.

    Images are interpolated linearly and "seg" by nearest neighbour. MONAI leaves a grid alone whose affine is already
    right within 1e-3 mm, so 1 mm data is only cropped, to the bit.
    """
    modes = ["nearest" if key == "seg" else "bilinear" for key in keys]
    return Compose(
        [
            Orientationd(keys, axcodes=contract.orientation, labels=None),
            Spacingd(keys, pixdim=contract.spacing, mode=modes),
            ResizeWithPadOrCropd(keys, spatial_size=contract.size),
        ]
    )


def prepare(case, contract):
    """Turn a case from `read_case` into network inputs, as the contract says.

    Returns plain tensors: "x" (inputs, X, Y, Z) float32; "y" (1, X, Y, Z) float32 where the case has the target;
    "mask" (1, X, Y, Z) bool, the voxels that are nonzero in all inputs (never the target: it must not steer the
    inputs); "seg" (1, X, Y, Z) float32 labels where the case has them. For value ranges see `normalise`.

    Raises DataError for an absent input, a volume with its skull or without contrast, and an empty mask.
    """
    absent = [key for key in contract.inputs if key not in case]
    if absent:
        raise DataError(f"case has {sorted(case)} but not the contract's inputs {absent}; read these modalities too.")
    for key in contract.modalities:
        if key in case:
            require_stripped(case[key])
    moved = geometry(contract, [key for key in (*contract.modalities, "seg") if key in case])(case)
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


def require_stripped(volume):
    """Raise DataError unless a fifth of a brain volume (1, x, y, z), as it was read, is background: exactly 0."""
    filled = float((volume != 0).float().mean())
    if filled > 1 - LEAST_BACKGROUND:
        raise DataError(
            f"{volume_name(volume)}: {filled:.0%} of the voxels are not 0, so the skull is still there, or the background is "
            f"another value (the lowest is {float(volume.min()):g}); remove the skull (SynthStrip or HD-BET) and set all "
            "outside the brain to exactly 0, or point DATA_DIR at a data set that the course strips itself."
        )


def normalise(volume, method, percentiles=(0.5, 99.5), landmarks=None):
    """Scale one volume (1, X, Y, Z) by its own intensities; background, the exact zeros, stays 0.

    - "minmax" (the paper): (v - min) / (max - min) over the full volume, to [0, 1]; one bright voxel dims the rest.
    - "percentile": brain voxels clipped to `percentiles`, these to 0 and 1.
    - "zscore": brain voxels to mean 0 and standard deviation 1, the only method not in [0, 1].
    - "nyul": brain percentiles moved piecewise linearly onto the standard scale `landmarks`, clipped to [0, 1].

    All four ignore a positive gain. Returns a plain float32 tensor. Raises DataError for a volume without contrast.
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


def _fill(brain, values):
    out = torch.zeros(brain.shape)
    out[brain] = torch.from_numpy(values).float()
    return out


def _spread(volume, values, percentiles):
    """The percentiles of the brain, checked to span a range."""
    marks = np.percentile(values, percentiles)
    if not marks[-1] > marks[0]:
        raise DataError(
            f"{volume_name(volume)}: percentiles {percentiles[0]} and {percentiles[-1]} of the brain are both "
            f"{marks[0]:g}; an image without contrast cannot be normalised."
        )
    return marks


def nyul_landmarks(volumes):
    """Learn the standard scale of one modality: where its percentiles 1, 10, 20 ... 90, 99 lie on average.

    `volumes` is an iterable of (1, X, Y, Z) in any units; each is first mapped linearly so that p1 -> 0 and p99 -> 1.
    Returns 11 floats from 0 to 1 (Nyul, Udupa, Zhang 2000, IEEE Trans Med Imaging 19:143). Learn them on source
    training data only. Raises DataError for no volumes or one without contrast.
    """
    scales = []
    for volume in volumes:
        marks = _spread(volume, volume[volume != 0].double().numpy(), NYUL_PERCENTILES)
        scales.append((marks - marks[0]) / (marks[-1] - marks[0]))
    if not scales:
        raise DataError("nyul_landmarks got no volumes; give it the training volumes of one modality.")
    return np.mean(scales, axis=0).tolist()


def restore(volume, case, contract):
    """Put a prepared or synthesised volume (1, X, Y, Z) back on the scanner's grid: the inverse of `geometry`.

    Returns a MetaTensor (1, x, y, z) with the shape and affine of the case's first input, 0 outside the crop. At equal
    spacing voxels come back to the bit; otherwise floats are interpolated linearly, integers and bools (labels) by
    nearest neighbour. Intensities stay normalised. Raises DataError where the volume is not of the contract's size.
    """
    reference = case[contract.inputs[0]]
    key = "image" if volume.is_floating_point() else "seg"
    chain = geometry(contract, [key])
    moved = chain({key: reference})[key]  # run forward once, so that MONAI records what to undo
    if volume.shape != moved.shape:
        raise DataError(
            f"volume has shape {tuple(volume.shape)}, the contract gives {tuple(moved.shape)}; "
            "restore with the contract it was prepared with."
        )
    moved = MetaTensor(volume.detach().cpu().float(), affine=moved.affine, applied_operations=moved.applied_operations)
    back = chain.inverse({key: moved})[key]
    return MetaTensor(back.as_tensor().to(volume.dtype), affine=reference.affine)  # exact, not rounded on the way
