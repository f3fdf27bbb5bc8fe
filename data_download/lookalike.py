"""Small folders that look like published data sets: their names, array sizes, types, orientations and odd headers, filled with
SIMULATED images. For tests, and for trying a path before the data is there.

Images are simulated on a coarse grid and interpolated to the published one, so they are smooth. What could not be confirmed
from a publisher's page or a well-known loader is marked (unconfirmed). CT has the published 512 x 512 matrix, but fewer,
thicker slices, to stay small.
"""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from scipy import ndimage

from medsynth_lib.data.simulation.physics import Sequence
from medsynth_lib.data.simulation.scanner import SITES, ideal_image, scan
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.data.simulation.thorax import make_thorax
from medsynth_lib.files import DataError, atomic

COARSE_MM = 4.8
BRATS = (240, 240, 155), np.array([[-1.0, 0, 0, 119.5], [0, -1, 0, 119.5], [0, 0, 1, -77], [0, 0, 0, 1]])  # LPS, 1 mm
Shape = tuple[int, int, int]
NOTE = "Everything in this folder is simulated by medsynth: names and headers look like {}, the images are nobody's.\n"


def write(name: str, folder: Path | str) -> Path:
    """Write a look-alike of a data set, all at once or not at all, and return the folder.

    Raises:
        KeyError: for an unknown name.
        DataError: for a folder that exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder}: is there already; choose a new folder for the look-alike.")
    with atomic(folder) as temporary:
        temporary.mkdir()
        WRITERS[name](temporary)
        (temporary / "SIMULATED.txt").write_text(NOTE.format(name))
    return folder


def head(
    seed: int, site: str, contrasts: tuple[str, ...], skull: bool = False, tumour: bool = True
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Simulate one subject at a site.

    Returns:
        Images {contrast: (x, y, z)}, labels "seg" and brain mask "brain"; their affine (4, 4) in mm.
    """
    subject = make_subject(seed, (54, 54, 44), COARSE_MM, tumour=tumour)
    images = {c: scan(subject, SITES[site], c, noise=False) for c in contrasts if c != "pd"}
    if "pd" in contrasts:
        proton, white = ideal_image(subject, Sequence("spin_echo", dict(tr=4000, te=14)), SITES[site].field)
        images["pd"] = 800 * proton.abs().numpy() / white * subject.brain
    if skull:
        images = {
            c: image + shells(subject.brain, c) * np.percentile(image[subject.brain], 60) for c, image in images.items()
        }
    return images | {"seg": subject.seg, "brain": subject.brain.astype(np.uint8)}, subject.affine


def shells(brain: np.ndarray, contrast: str) -> np.ndarray:
    """Draw fluid, skull, fat and skin around a brain, relative to grey matter.

    They are work for skull-stripping, not anatomy.
    """
    mm = ndimage.distance_transform_edt(~brain) * COARSE_MM
    fluid, fat = dict(t1=(0.25, 1.3), t2=(2.2, 0.9), pd=(1.1, 1.0))[contrast]
    return np.select([brain, mm < 4, mm < 11, mm < 19], [0, fluid, 0.08, fat], 0)


def on_grid(image: np.ndarray, affine: np.ndarray, shape: Shape, grid: np.ndarray, order: int = 1) -> np.ndarray:
    """Interpolate (x, y, z) with its affine onto another grid."""
    step = np.linalg.inv(affine) @ grid
    return ndimage.affine_transform(image.astype(np.float32), step[:3, :3], step[:3, 3], shape, order=order)


def save(path: Path, array: np.ndarray, affine: np.ndarray, dtype: str = "int16", qform_only: bool = False) -> None:
    """Write NIfTI quickly (gzip level 1), saying in its description that it is simulated."""
    image = nib.Nifti1Image(
        np.rint(array).astype(dtype) if np.issubdtype(dtype, np.integer) else array.astype(dtype), affine
    )
    image.header["descrip"] = b"simulated by medsynth"
    if qform_only:  # as many converters from DICOM leave it
        image.set_sform(None, code=0)
        image.set_qform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def stripped(seed: int, site: str, contrasts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Simulate a skull-stripped subject with a tumour on the BraTS grid.

    Images are at least 1 in the brain and 0 outside; "seg" holds the labels.
    """
    images, affine = head(seed, site, contrasts)
    shape, grid = BRATS
    brain = on_grid(images["brain"], affine, shape, grid, order=0)
    fine = {c: np.maximum(np.rint(on_grid(images[c], affine, shape, grid)), 1) * brain for c in contrasts}
    return fine | {"seg": on_grid(images["seg"], affine, shape, grid, order=0)}


def brats(folder: Path, cases: dict[str, tuple[int, str]], names: str = "{case}/{case}_{modality}.nii.gz") -> None:
    """Write cases {folder name: (seed, site)} into a BraTS training folder."""
    for case, (seed, site) in cases.items():
        for modality, image in stripped(seed, site, ("flair", "t1", "t1ce", "t2")).items():
            kind = "uint8" if modality == "seg" else "int16"
            save(folder / names.format(case=case, modality=modality), image, BRATS[1], kind)


def brats2019(folder: Path) -> None:
    """Write two centres, high and low grades, and the survival table."""
    top = folder / "MICCAI_BraTS_2019_Data_Training"
    brats(top / "HGG", {f"BraTS19_CBICA_AA{c}_1": (i, "A") for i, c in enumerate("BGJ")})
    brats(top / "HGG", {"BraTS19_TCIA02_117_1": (10, "B"), "BraTS19_TCIA08_105_1": (11, "B")})
    brats(top / "LGG", {"BraTS19_TCIA09_141_1": (12, "B")})
    (top / "survival_data.csv").write_text("BraTS19ID,Age,Survival,ResectionStatus\nBraTS19_CBICA_AAB_1,60.5,289,GTR\n")


def brats2020(folder: Path) -> None:
    """Write anonymous cases and the name mapping."""
    top = folder / "MICCAI_BraTS2020_TrainingData"
    cases = {f"BraTS20_Training_{i + 1:03d}": (i, "AB"[i > 2]) for i in range(6)}
    brats(top, cases)
    earlier = [f"BraTS19_CBICA_AA{c}_1" for c in "BGJ"] + [f"BraTS19_TCIA02_{n}_1" for n in (117, 118, 135)]
    mapping = pd.DataFrame(dict(Grade="HGG", BraTS_2019_subject_ID=earlier, BraTS_2020_subject_ID=list(cases)))
    mapping.to_csv(top / "name_mapping.csv", index=False)


def msd_task01(folder: Path) -> None:
    """Write 4D float32 in the order FLAIR, T1w, t1gd, T2w.

    Labels are 0 to 3 in another order than those of BraTS; macOS has left its files.
    """
    top = folder / "Task01_BrainTumour"
    for i in range(6):
        person = stripped(i, "A", ("flair", "t1", "t1ce", "t2"))
        volumes = np.stack([person[c] for c in ("flair", "t1", "t1ce", "t2")], -1)
        save(top / "imagesTr" / f"BRATS_{i + 1:03d}.nii.gz", volumes, BRATS[1], "float32")
        labels = np.array([0, 2, 1, 0, 3])[person["seg"].astype(int)]
        save(top / "labelsTr" / f"BRATS_{i + 1:03d}.nii.gz", labels, BRATS[1], "uint8")
    (top / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"\0\5\x16\7 macOS")
    about = dict(name="BRATS", tensorImageSize="4D", modality={"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"})
    (top / "dataset.json").write_text(json.dumps(about | dict(labels={"1": "edema", "2": "non-enhancing tumor"})))


def ixi(folder: Path) -> None:
    """Write heads whose T1 is stored sagittally, T2 and PD axially, and that moved in between.

    T1 has the axes P, S, R and 0.9375 x 0.9375 x 1.2 mm, T2 and PD slices of 1.25 mm. One subject has no PD. Axis directions of
    T2 and PD are unconfirmed.
    """
    sagittal = np.array([[0, 0, 1.2, -89.4], [-0.9375, 0, 0, 119.5], [0, 0.9375, 0, -119.5], [0, 0, 0, 1]])
    axial = np.array([[-0.9375, 0, 0, 119.5], [0, -0.9375, 0, 119.5], [0, 0, 1.25, -80.6], [0, 0, 0, 1]])
    number = 0
    for site, scanner, people in (("Guys", "B", 4), ("HH", "A", 3), ("IOP", "C", 1)):
        for _ in range(people):
            number += 1
            images, affine = head(number, scanner, ("t1", "t2", "pd"), skull=True, tumour=False)
            name = f"IXI{number:03d}-{site}-{700 + number:04d}"
            moved = motion(number) @ affine  # between the two series the head moves
            t1 = on_grid(images["t1"], moved, (256, 256, 150), sagittal)
            save(folder / "IXI-T1" / f"{name}-T1.nii.gz", t1, sagittal, qform_only=True)
            for modality in ("t2", "pd")[: 1 if number == 4 else 2]:
                image = on_grid(images[modality], affine, (256, 256, 130), axial)
                save(folder / f"IXI-{modality.upper()}" / f"{name}-{modality.upper()}.nii.gz", image, axial)


def motion(seed: int) -> np.ndarray:
    """Draw a small rigid motion (4, 4) in mm: up to 4 degrees about z, and up to 5 mm."""
    rng = np.random.default_rng(seed)
    angle = np.deg2rad(rng.uniform(-4, 4))
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = rng.uniform(-5, 5, 3)
    return matrix


def upenn_gbm(folder: Path) -> None:
    """Write scans before (_11) and, for one subject, after surgery (_21).

    Some have labels by hand, the others automatic ones.
    """
    top, names = folder / "UPENN-GBM", dict(flair="FLAIR", t1="T1", t1ce="T1GD", t2="T2")
    for i in range(4):
        case = f"UPENN-GBM-{max(i, 1):05d}_{'11' if i else '21'}"
        for modality, image in stripped(max(i, 1), "A", tuple(names)).items():
            if modality != "seg":
                path = top / "images_structural" / case / f"{case}_{names[modality]}.nii.gz"
            elif i == 1:
                path = top / "images_segm" / f"{case}_segm.nii.gz"
            else:
                path = top / "automated_segm" / f"{case}_automated_approx_segm.nii.gz"
            save(path, image, BRATS[1])


def ucsf_pdgm(folder: Path) -> None:
    """Write baseline scans, a follow-up (FU), and files that the lessons do not use."""
    top, names = folder / "UCSF-PDGM-v3", dict(flair="FLAIR", t1="T1", t1ce="T1c", t2="T2", seg="tumor_segmentation")
    for i, case in enumerate(("UCSF-PDGM-0004", "UCSF-PDGM-0005", "UCSF-PDGM-0007", "UCSF-PDGM-0007_FU003d")):
        person = stripped(20 + i, "B", ("flair", "t1", "t1ce", "t2"))
        for modality, image in person.items():
            save(top / f"{case}_nifti" / f"{case}_{names[modality]}.nii.gz", image, BRATS[1])
        save(top / f"{case}_nifti" / f"{case}_brain_segmentation.nii.gz", person["t1"] > 0, BRATS[1], "uint8")


def gsp(folder: Path) -> None:
    """Write T1 of young adults with the skull, 1.2 mm; one came twice.

    The axis directions are unconfirmed.
    """
    grid = np.array([[1.2, 0, 0, -85.8], [0, 1.2, 0, -114.6], [0, 0, 1.2, -114.6], [0, 0, 0, 1]])
    for i in range(7):
        case = f"Sub{max(i, 1):04d}_Ses{1 if i else 2}"
        images, affine = head(40 + i, "A", ("t1",), skull=True, tumour=False)
        t1 = on_grid(images["t1"], affine, (144, 192, 192), grid)
        save(folder / case / f"{case}_Scan_01_ANAT1.nii.gz", t1, grid)


def chest(seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Simulate a chest in HU, stored from right to left and front to back.

    Returns:
        HU (512, 512, 40), its affine (voxels of 0.8 x 0.66 x 8.75 mm), and its truth.
    """
    thorax = make_thorax(seed, (48, 48, 48))
    shape = (512, 512, 40)
    extent = np.array(thorax.hu.shape) * thorax.spacing
    step = extent / shape
    low = thorax.affine[:3, 3] - np.array(thorax.spacing) / 2
    grid = np.diag([-step[0], -step[1], step[2], 1])
    grid[:3, 3] = [low[0] + extent[0] - step[0] / 2, low[1] + extent[1] - step[1] / 2, low[2] + step[2] / 2]
    image = ndimage.affine_transform(thorax.hu, *_step(thorax.affine, grid), shape, order=1, mode="nearest")
    return np.rint(image), grid, thorax.truth


def _step(affine: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    step = np.linalg.inv(affine) @ grid
    return step[:3, :3], step[:3, 3]


def copdgene(folder: Path) -> None:
    """Write NIfTI in HU and the phenotype table, as this course asks for them.

    Subject numbers and centres are invented.
    """
    rows = []
    for i in range(6):
        sid = f"{10005 + i}{'QRTVXZ'[i]}"
        hu, grid, truth = chest(i)
        save(folder / sid / f"{sid}_INSP_STD_NJC_COPD.nii.gz", hu, grid)
        rows.append(dict(sid=sid, FEV1pp_utah=round(truth["fev1pp"], 1), FEV1_FVC_utah=round(truth["fev1_fvc"], 2)))
    pd.DataFrame(rows).to_csv(folder / "COPDGene_phenotypes.txt", sep="\t", index=False)


def lidc(folder: Path) -> None:
    """Write DICOM series of 40 slices as idc-index lays them out, and a radiograph, no CT."""
    for i in range(6):
        hu, grid, _ = chest(10 + i)
        person = f"LIDC-IDRI-{i + 1:04d}"
        study = folder / "lidc_idri" / person / f"1.2.826.0.1.{i}.1"
        dicom(study / f"CT_1.2.826.0.1.{i}.1.1", hu, grid, person, f"1.2.826.0.1.{i}.1", "CT")
        if i == 0:
            dicom(study / f"DX_1.2.826.0.1.{i}.1.2", hu[:, :, :1], grid, person, f"1.2.826.0.1.{i}.1", "DX")


def dicom(folder: Path, hu: np.ndarray, affine: np.ndarray, person: str, study: str, modality: str) -> None:
    """Write a volume as one DICOM file a slice, slices in random file order.

    Given an intercept of -1024, the writer stores HU + 1024, as CT scanners do.
    """
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    series = f"{study}.{1 if modality == 'CT' else 2}"
    order = np.random.default_rng(0).permutation(hu.shape[2])
    for k in range(hu.shape[2]):
        image = sitk.GetImageFromArray(hu[:, :, k].T.astype(np.int16)[None])
        image.SetSpacing(spacing.tolist())
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"{series}.{k + 1}", "0008|0060": modality,
            "0010|0020": person, "0010|0010": "simulated^medsynth", "0020|000d": study, "0020|000e": series,
            "0020|0013": str(k + 1), "0020|0032": "\\".join(f"{v:.6f}" for v in lps[:3, 3] + lps[:3, 2] * k),
            "0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "-1024", "0028|1053": "1", "0018|0050": f"{spacing[2]:.6f}",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{order[k]:04d}.dcm"))
        writer.Execute(image)


WRITERS = dict(
    brats2019=brats2019, brats2020=brats2020, msd_task01=msd_task01, ixi=ixi, upenn_gbm=upenn_gbm, ucsf_pdgm=ucsf_pdgm,
    gsp=gsp, copdgene=copdgene, lidc=lidc,
)  # fmt: skip
