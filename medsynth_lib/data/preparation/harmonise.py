"""Make published scans ready for the lessons: 3D NIfTI, one grid a scan, skull-stripped, BraTS labels.

| data set | what is done |
| --- | --- |
| msd_task01 | 4D split; labels 1, 2, 3 -> 2, 1, 4; every second subject gets `simulated_shift`, since no site is known |
| ixi | T1 registered rigidly to T2 (mutual information), PD on T2's grid; skull removed by `brain_mask` of the T1 |
| gsp | skull removed by `brain_mask` |
| lidc | DICOM series -> NIfTI in HU |

Others are used as their publishers give them. `brain_mask` is approximate: MNI152's brain mask carried over by an affine
registration. A mask made by a better tool wins: <T1's name>_mask.nii.gz or _brain_mask.nii.gz beside the T1.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medsynth_lib.data.files.manifest import MODALITIES, Manifest, Scan
from medsynth_lib.data.files.nifti import read_volume, require_same_grid, write_volume
from medsynth_lib.data.files.paths import split_volume, stem
from medsynth_lib.data.files.selection import has
from medsynth_lib.data.preparation.dicom import read_series
from medsynth_lib.data.simulation.atlas import template_path
from medsynth_lib.data.simulation.fields import gaussian_blur, random_field
from medsynth_lib.data.simulation.scanner import rician
from medsynth_lib.files import DataError, atomic, cache_folder, content_hash, fingerprint
from medsynth_lib.processes import run

VERSION = 3  # raise when what is written changes
BRAIN_LITRES = (0.8, 2.2)  # a mask outside this range is a failed registration
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world is left-posterior-superior, NIfTI's right-anterior-superior
GAMMA = dict(flair=0.75, t1=1.35, t1ce=1.35, t2=1.25)  # of simulated_shift, and the other four of its settings
FWHM_MM = dict(flair=(1.2, 1.2, 3.0), t1=(1.2, 1.2, 1.5), t1ce=(1.2, 1.2, 1.5), t2=(1.2, 1.2, 3.0))
COIL, NOISE = 0.10, 0.03

Volumes = dict[str, tuple[np.ndarray, np.ndarray]]  # modality -> voxels (x, y, z) and affine (4, 4) in mm


def ready_dataset(manifest: Manifest, jobs: int = 1, progress: bool = False) -> Manifest:
    """Make every scan ready for `read_case`; what is made lies in the cache, once for all.

    Scans that cannot be made ready are left out. They are listed with the reason in left_out.csv beside the result, and
    printed. An interrupted run goes on where it stopped.

    Args:
        manifest: scans with a column `dataset`.
        jobs: worker processes.
        progress: show a progress bar.

    Raises:
        DataError: where no scan of a data set can be made ready.
    """
    parts = []
    for name in manifest.table["dataset"].unique():
        part = manifest.select(dataset=name)
        parts.append(made_ready(part, name, jobs, progress) if name in MAKERS else part.table)
    return manifest.replace(pd.concat(parts, ignore_index=True))


def foreseen(manifest: Manifest) -> Manifest:
    """Return the scans that `ready_dataset` would make ready, at the sites that they would get.

    No voxel is read.

    Args:
        manifest: scans with a column `dataset`.
    """
    parts = []
    for name, part in manifest.table.groupby("dataset", sort=False):
        part = part[has(manifest.replace(part), NEEDED.get(name, ())).to_numpy()]
        parts.append(part.assign(site=[site_when_ready(name, site, k) for k, site in enumerate(part["site"])]))
    return manifest.replace(pd.concat(parts, ignore_index=True)) if parts else manifest


def site_when_ready(name: str, site: str, number: int) -> str:
    """Return the site of a data set's n-th scan: MSD Task01 has two simulated ones."""
    return "MSD-shifted" if name == "msd_task01" and number % 2 else site


def made_ready(manifest: Manifest, name: str, jobs: int, progress: bool) -> pd.DataFrame:
    """Make the scans of one data set ready: their rows, with absolute paths into the cache."""
    needed = NEEDED[name]
    lacks = [not all(scan.has(modality) for modality in needed) for scan in manifest.scans()]
    scans = [scan for scan, lacking in zip(manifest.scans(), lacks, strict=True) if not lacking]
    left_out = [(s, f"lacks one of {', '.join(needed)}") for s in manifest.table["subject"][lacks]]
    key = fingerprint(VERSION, name, [file_identity(scan) for scan in scans], digits=12)
    folder = cache_folder("ready", f"{name}-{key}")
    tasks = [(name, scan, folder, number) for number, scan in enumerate(scans)]
    rows = run(make_scan, tasks, jobs, folder, progress, f"making {name} ready")
    left_out += [row for row in rows if isinstance(row, tuple)]
    rows = [row for row in rows if isinstance(row, dict)]
    with atomic(folder / "left_out.csv") as temporary:
        pd.DataFrame(left_out, columns=["subject", "reason"]).to_csv(temporary, index=False)
    if left_out:
        subject, reason = left_out[0]
        print(f"{name}: {len(left_out)} scan(s) left out, such as {subject} ({reason}); all in {folder.name}")
    if not rows:
        list_of_reasons = folder / "left_out.csv"
        raise DataError(
            f"{manifest.root}: no scan of {name} could be made ready; the reasons are in {list_of_reasons}."
        )
    return pd.DataFrame(rows)


def file_identity(scan: Scan) -> list:
    """Return name, size and time of a scan's files and masks: a change makes it anew."""
    identity = [scan["subject"], scan["site"]]
    for modality in MODALITIES:
        if scan.has(modality):
            path, _ = split_volume(scan.path(modality))
            files = sorted(path.iterdir()) if path.is_dir() else [path, *masks_beside(path)]
            identity.append([scan[modality], [[f.name, *state_of(f)] for f in files]])
    return identity


def state_of(path: Path) -> list[int]:
    """Return a file's size and time; nothing for a missing one, of which its maker will speak."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else []


def make_scan(name: str, scan: Scan, folder: Path, number: int) -> dict | tuple[str, str]:
    """Write one scan's volumes unless they are there.

    Returns:
        Its manifest row, or (subject, reason) where it cannot be done.
    """
    # hashed: a manifest's names must not lead out of the folder
    target = folder / fingerprint(scan["subject"], scan["site"], digits=12)
    if not target.exists():
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums in one order: the same registration everywhere
        try:
            volumes = MAKERS[name](scan, number)
        except DataError as error:
            return scan["subject"], str(error)
        except RuntimeError as error:  # SimpleITK has no other: the next scan may still be made
            return scan["subject"], f"SimpleITK failed ({last_line(error)}); check size and orientation of its images."
        with atomic(target) as temporary:
            for modality, (array, affine) in volumes.items():
                kind = "uint8" if modality == "seg" else "int16" if modality == "ct" else "float32"
                write_volume(temporary / f"{modality}.nii.gz", array, affine, kind)
    written = {m: str(target / f"{m}.nii.gz") for m in MODALITIES if (target / f"{m}.nii.gz").exists()}
    site = site_when_ready(name, scan["site"], number)
    return scan.cells | dict.fromkeys(MODALITIES, "") | written | dict(site=site)


def make_msd(scan: Scan, number: int) -> Volumes:
    """Split the 4D file; every second subject is scanned anew by `simulated_shift`."""
    volumes = {m: read_volume(scan.path(m)) for m in ("flair", "t1", "t1ce", "t2")}
    affine = volumes["flair"].affine.numpy()
    arrays = {m: v[0].numpy() for m, v in volumes.items()}
    if number % 2:
        brain = np.all([a != 0 for a in arrays.values()], axis=0)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        seed = int(content_hash(scan["subject"].encode())[:8], 16)
        arrays = {m: simulated_shift(a, brain, m, spacing, seed) for m, a in arrays.items()}
    if scan.has("seg"):
        labels = read_volume(scan.path("seg"), labels=(0, 1, 2, 3))
        require_same_grid(volumes["flair"], labels)
        arrays["seg"] = np.array([0, 2, 1, 4])[labels[0].numpy().astype(int)]
    return {m: (a, affine) for m, a in arrays.items()}


def simulated_shift(image: np.ndarray, brain: np.ndarray, contrast: str, spacing: np.ndarray, seed: int) -> np.ndarray:
    """Draw an image as another SIMULATED scanner might.

    This is not a second site, and is called simulated.

    Inside the brain: a monotone contrast curve v^GAMMA of the image over its 99.5th percentile, a point spread of FWHM_MM,
    a smooth coil field of log-amplitude COIL, Rician noise of NOISE. Outside: 0.

    Args:
        image: intensities (x, y, z).
        brain: its mask (x, y, z), boolean.
        contrast: one of MODALITIES with an entry in GAMMA.
        spacing: voxel size (3) in mm.
        seed: of coil field and noise, with the contrast.
    """
    rng = np.random.default_rng([seed, MODALITIES.index(contrast)])
    top = np.percentile(image[brain], 99.5)
    v = torch.from_numpy(np.clip(image / top, 0, None).astype(np.float32)) ** GAMMA[contrast]
    v = gaussian_blur(v[None], [f / 2.355 / s for f, s in zip(FWHM_MM[contrast], spacing, strict=True)])[0]
    axes = [(np.arange(n) - (n - 1) / 2) * min(s, 260 / n) for n, s in zip(image.shape, spacing, strict=True)]
    v = v * torch.exp(COIL * random_field(rng, axes, 90)[0])
    v = rician(v, NOISE, rng).clamp(min=1e-3).numpy()  # never 0 inside: 0 means outside
    return np.where(brain, v * top, 0)


def make_ixi(scan: Scan, number: int) -> Volumes:
    """Bring T1, T2 and PD to T2's grid and remove the skull."""
    t1, t2, pd_ = (to_itk(read_volume(scan.path(m))) for m in ("t1", "t2", "pd"))
    move = register(t2, t1, sitk.Euler3DTransform())
    t1_moved = sitk.Resample(t1, t2, move, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    brain = given_mask(scan.path("t1"), t2, move)
    brain = brain_mask(t1_moved, scan["subject"]) if brain is None else brain
    images = dict(
        t1=t1_moved, t2=t2, pd=sitk.Resample(pd_, t2, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    )
    return {m: (np.where(brain, array(image), 0), affine_of(t2)) for m, image in images.items()}


def make_gsp(scan: Scan, number: int) -> Volumes:
    """Remove the skull from the T1."""
    t1 = to_itk(read_volume(scan.path("t1")))
    brain = given_mask(scan.path("t1"), t1, sitk.Transform())
    brain = brain_mask(t1, scan["subject"]) if brain is None else brain
    return {"t1": (np.where(brain, array(t1), 0), affine_of(t1))}


def given_mask(t1_path: Path, grid: sitk.Image, transform: sitk.Transform) -> np.ndarray | None:
    """Read the user's own brain mask beside a T1 (boolean); None where there is none."""
    for path in masks_beside(t1_path):
        mask = to_itk(read_volume(path))
        return array(sitk.Resample(mask, grid, transform, sitk.sitkNearestNeighbor, 0.0)) > 0
    return None


def masks_beside(t1_path: Path) -> list[Path]:
    """List the brain masks beside a T1, the one that counts first."""
    names = [stem(t1_path) + ending for ending in ("_mask.nii.gz", "_brain_mask.nii.gz")]
    return [t1_path.with_name(name) for name in names if t1_path.with_name(name).is_file()]


def brain_mask(t1: sitk.Image, name: str) -> np.ndarray:
    """Find the approximate brain of a T1 head: MNI152's mask through an affine registration.

    Args:
        t1: the head.
        name: what an error calls it.

    Returns:
        The brain (x, y, z), boolean.

    Raises:
        DataError: where the mask is smaller or larger than any brain.
    """
    template, mask = template_images()
    move = register(template, t1, sitk.AffineTransform(3), sitk.BinaryDilate(mask, [2] * 3))
    carried = sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), t1, move.GetInverse(), sitk.sitkLinear, 0.0)
    brain = (array(carried) > 0.5) & (array(t1) > 0)
    brain = ndimage.binary_fill_holes(brain)
    litres = brain.sum() * np.prod(t1.GetSpacing()) / 1e6
    if not BRAIN_LITRES[0] < litres < BRAIN_LITRES[1]:
        raise DataError(
            f"{name}: skull-stripping found a brain of {litres:.2f} l, which is not possible; put a mask made by SynthStrip "
            "or HD-BET beside the T1 (..._mask.nii.gz)."
        )
    return brain


@cache
def template_images() -> tuple[sitk.Image, sitk.Image]:
    """Return MNI152's T1 and brain mask."""
    t1 = read_volume(template_path("t1"))
    brain = ndimage.binary_fill_holes(t1[0].numpy() > 0)
    mask = sitk.Cast(to_itk(t1) > 0, sitk.sitkUInt8)
    filled = sitk.GetImageFromArray(brain.astype(np.uint8).transpose(2, 1, 0))
    filled.CopyInformation(mask)
    return to_itk(t1), filled


def register(
    fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, mask: sitk.Image | None = None
) -> sitk.Transform:
    """Register two images by Mattes mutual information, coarse to fine.

    Samples lie on a regular grid, so that the result repeats.

    Args:
        fixed: the image whose points are mapped.
        moving: the image that they are mapped to.
        transform: the kind of transform.
        mask: of the fixed image; None takes all of it.

    Returns:
        The transform from fixed to moving points.

    Raises:
        DataError: where the optimiser fails.
    """
    method = mutual_information(mask)
    kind = sitk.CenteredTransformInitializerFilter.MOMENTS
    try:
        fixed, moving = coarse(fixed), coarse(moving)
        method.SetInitialTransform(sitk.CenteredTransformInitializer(fixed, moving, transform, kind))
        return method.Execute(fixed, moving)
    except RuntimeError as error:
        raise DataError(f"registration failed ({last_line(error)}); check the images' orientation.") from error


def mutual_information(mask: sitk.Image | None) -> sitk.ImageRegistrationMethod:
    """Return the method of `register`, without the transform that it starts from."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    if mask is not None:
        method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 150, 0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([3, 1])
    method.SetSmoothingSigmasPerLevel([5, 2])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def last_line(error: Exception) -> str:
    """Return the last line of an error: the first ones of SimpleITK name its own source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def coarse(image: sitk.Image) -> sitk.Image:
    """Return the image in voxels of about 2.5 mm: enough for a global registration, and faster."""
    return sitk.BinShrink(image, [max(1, int(2.6 / s)) for s in image.GetSpacing()])


def make_lidc(scan: Scan, number: int) -> Volumes:
    """Read one DICOM series as a volume in HU."""
    return {"ct": read_series(scan.path("ct"))}


def to_itk(volume: MetaTensor) -> sitk.Image:
    """Turn a volume (1, x, y, z) into an ITK image; world coordinates become LPS."""
    affine = LPS @ np.asarray(volume.affine, float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.asarray(volume)[0].transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def array(image: sitk.Image) -> np.ndarray:
    """Return the voxels (x, y, z) of an ITK image."""
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def affine_of(image: sitk.Image) -> np.ndarray:
    """Return the voxel-to-RAS affine (4, 4) of an ITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


MAKERS = dict(msd_task01=make_msd, ixi=make_ixi, gsp=make_gsp, lidc=make_lidc)
NEEDED = dict(msd_task01=("flair", "t1", "t1ce", "t2"), ixi=("t1", "t2", "pd"), gsp=("t1",), lidc=("ct",))
