"""Small folders that look like published data sets: their names, array sizes, types, orientations and odd headers, filled with
SIMULATED images. For tests, and for trying a path before the data is there.

Images are simulated on a coarse grid and interpolated to the published one, so they are smooth. What could not be confirmed
from a publisher's page or a well-known loader is marked (unconfirmed). CT has the published 512 x 512 matrix, but fewer,
thicker slices, to stay small.
"""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from medsynth_lib.data.preparation.dicom import same_locale
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
    """Write two centres, high and low grades, the name mapping of that year and the survival table.

    The name mapping has no column of 2020. One patient was alive when the table was made.
    """
    top = folder / "MICCAI_BraTS_2019_Data_Training"
    brats(top / "HGG", {f"BraTS19_CBICA_AA{c}_1": (i, "A") for i, c in enumerate("BGJ")})
    brats(top / "HGG", {"BraTS19_TCIA02_117_1": (10, "B"), "BraTS19_TCIA08_105_1": (11, "B")})
    brats(top / "LGG", {"BraTS19_TCIA09_141_1": (12, "B")})
    cases = sorted(path.name for path in top.glob("*/BraTS19_*"))
    rows = [["LGG" if "TCIA09" in case else "HGG", *names_of(case), case] for case in cases]
    write_table(top / "name_mapping.csv", NAMES[:5], rows)
    survival = [[cases[0], "60.463", "289", "GTR"], [cases[1], "52.263", "ALIVE (361 days later)", "STR"]]
    survival.append([cases[2], "54.301", "464", "NA"])
    write_table(top / "survival_data.csv", ["BraTS19ID", "Age", "Survival", "ResectionStatus"], survival)


NAMES = [
    "Grade", "BraTS_2017_subject_ID", "BraTS_2018_subject_ID", "TCGA_TCIA_subject_ID", "BraTS_2019_subject_ID",
    "BraTS_2020_subject_ID",
]  # fmt: skip


def names_of(case: str) -> list[str]:
    """Return the names that a case of BraTS 2019 has in 2017, in 2018 and in TCGA, "NA" where it has none."""
    return [case.replace("BraTS19", "Brats17"), case.replace("BraTS19", "Brats18"), "NA"]


def write_table(path: Path, names: list[str], rows: list[list[str]], separator: str = ",") -> None:
    """Write a table as text; cells with the separator in them are quoted."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([names, *rows])


def brats2020(folder: Path) -> None:
    """Write anonymous cases, the name mapping and the survival table.

    Case 355 has its labels under the name that they came with. One case was not in BraTS 2019.
    """
    top = folder / "MICCAI_BraTS2020_TrainingData"
    cases = {f"BraTS20_Training_{number:03d}": (i, "AB"[i > 2]) for i, number in enumerate((1, 2, 3, 4, 5, 355))}
    brats(top, cases)
    last = top / "BraTS20_Training_355"
    (last / f"{last.name}_seg.nii.gz").rename(last / "W39_1998.09.19_Segm.nii.gz")
    earlier = [f"BraTS19_CBICA_AA{c}_1" for c in "BGJ"] + [f"BraTS19_TCIA02_{n}_1" for n in (117, 118, 135)]
    rows = [["HGG", *names_of(old), old, new] for old, new in zip(earlier, cases, strict=True)]
    write_table(top / "name_mapping.csv", NAMES, rows)
    survival = [["BraTS20_Training_001", "60.46301370", "289", "GTR"]]
    survival.append(["BraTS20_Training_002", "52.26301370", "ALIVE (361 days later)", "NA"])
    write_table(top / "survival_info.csv", ["Brats20ID", "Age", "Survival_days", "Extent_of_Resection"], survival)


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
    for hidden in (top / "imagesTr", folder / "__MACOSX" / "Task01_BrainTumour" / "imagesTr"):
        hidden.mkdir(parents=True, exist_ok=True)
        (hidden / "._BRATS_001.nii.gz").write_bytes(b"\0\5\x16\7 macOS")
    about = dict(
        name="BRATS", description="Gliomas segmentation tumour and oedema in on brain images", licence="CC-BY-SA 4.0",
        reference="https://www.med.upenn.edu/sbia/brats2017.html", release="2.0 04/05/2018", tensorImageSize="4D",
        modality={"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, numTraining=6, numTest=0, test=[],
        labels={"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
    )  # fmt: skip
    pairs = [{k: f"./{k}sTr/BRATS_{i + 1:03d}.nii.gz" for k in ("image", "label")} for i in range(6)]
    (top / "dataset.json").write_text(json.dumps(about | dict(training=pairs)))


def ixi(folder: Path) -> None:
    """Write heads whose T1 is stored sagittally, T2 and PD axially, and that moved in between.

    T1 has the axes P, S, R and 0.9375 x 0.9375 x 1.2 mm, T2 and PD slices of 1.25 mm. One subject has no PD. Axis directions of
    T2 and PD are unconfirmed. IXI.xls, the people's ages, is an empty workbook.
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
    (folder / "IXI.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504))  # a workbook in name only


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

    Some have labels by hand, the others automatic ones. The clinical table has a row a scan.
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
    names = (
        "ID Gender Age_at_scan_years Survival_from_surgery_days_UPDATED Survival_Status Survival_Censor IDH1 MGMT KPS"
    )
    names += " GTR_over90percent Time_since_baseline_preop PsP_TP_score"
    known = ["Wildtype", "Not Available", "Not Available", "Y", "0", "Not Applicable"]
    rows = [[f"UPENN-GBM-{i:05d}_11", "F", f"{50 + i}.5", "Not Available", "Alive", "700", *known] for i in (1, 2, 3)]
    write_table(top / "UPENN-GBM_clinical_info_v2.1.csv", names.split(), rows)


def ucsf_pdgm(folder: Path) -> None:
    """Write baseline scans, a follow-up (FU), and files that the lessons do not use."""
    top, names = folder / "UCSF-PDGM-v3", dict(flair="FLAIR", t1="T1", t1ce="T1c", t2="T2", seg="tumor_segmentation")
    for i, case in enumerate(("UCSF-PDGM-0004", "UCSF-PDGM-0005", "UCSF-PDGM-0007", "UCSF-PDGM-0007_FU003d")):
        person = stripped(20 + i, "B", ("flair", "t1", "t1ce", "t2"))
        for modality, image in person.items():
            save(top / f"{case}_nifti" / f"{case}_{names[modality]}.nii.gz", image, BRATS[1])
        save(top / f"{case}_nifti" / f"{case}_brain_segmentation.nii.gz", person["t1"] > 0, BRATS[1], "uint8")
    names = [
        "ID",
        "Sex",
        "Age at MRI",
        "WHO CNS Grade",
        "Final pathologic diagnosis (WHO 2021)",
        "MGMT status",
        "MGMT index",
    ]
    names += ["1p/19q", "IDH", "1-dead 0-alive", "OS", "EOR", "Biopsy prior to imaging"]
    names += ["BraTS21 ID", "BraTS21 Segmentation Cohort", "BraTS21 MGMT Cohort"]
    known = [
        "4",
        "Glioblastoma, IDH-wildtype",
        "positive",
        "13",
        "unknown",
        "wildtype",
        "1",
        "1303.0",
        "STR",
        "No",
        "",
        "",
        "",
    ]
    rows = [
        [case, "M", str(60 + i), *known] for i, case in enumerate(("UCSF-PDGM-004", "UCSF-PDGM-005", "UCSF-PDGM-007"))
    ]
    write_table(folder / "UCSF-PDGM-metadata_v5.csv", names, rows)  # numbers of three digits, unlike those of the files


def gsp(folder: Path) -> None:
    """Write T1 of young adults with the skull, 1.2 mm; one came twice.

    The axis directions and the columns of the list are unconfirmed.
    """
    grid = np.array([[1.2, 0, 0, -85.8], [0, 1.2, 0, -114.6], [0, 0, 1.2, -114.6], [0, 0, 0, 1]])
    for i in range(7):
        case = f"Sub{max(i, 1):04d}_Ses{1 if i else 2}"
        images, affine = head(40 + i, "A", ("t1",), skull=True, tumour=False)
        t1 = on_grid(images["t1"], affine, (144, 192, 192), grid)
        save(folder / case / f"{case}_Scan_01_ANAT1.nii.gz", t1, grid)
    rows = [[f"Sub{i:04d}_Ses1", str(18 + i), "F", "RHT"] for i in range(1, 7)]
    write_table(folder / "GSP_list_140630.csv", ["Subject_ID", "Age_Bin", "Sex", "Hand"], rows)


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
        spirometry = f"{truth['fev1pp']:.1f}", f"{truth['fev1_fvc']:.2f}"
        rows.append([sid, str(1 + i % 2), f"{50 + i}.5", "", "40", spirometry[0], "NA", spirometry[1], "2"])
    names = "sid gender Age_Enroll Height_CM ATS_PackYears FEV1pp_utah FVCpp_utah FEV1_FVC_utah finalGold"
    write_table(folder / "COPDGene_phenotypes.txt", names.split(), rows, "\t")
    (folder / "README.txt").write_text('Phenotypes: "sid" names a subject, as in the files.\n')


def lidc(folder: Path) -> None:
    """Write DICOM series of 40 slices, and a radiograph, no CT.

    Five patients lie as idc-index lays them out, the last one as the client of TCIA does, with its list and the readers' marks.
    """
    for i in range(6):
        hu, grid, _ = chest(10 + i)
        person, uid = f"LIDC-IDRI-{i + 1:04d}", f"1.2.826.0.1.{i}.1"
        study, series = folder / "lidc_idri" / person / uid, f"CT_{uid}.1"
        if i == 5:
            study, series = folder / "LIDC-IDRI" / person / "01-01-2000-NA-NA-30178", "3000566.000000-NA-03192"
        dicom(study / series, hu, grid, person, uid, "CT")
        if i == 0:
            dicom(study / f"DX_{uid}.2", hu[:, :, :1], grid, person, uid, "DX")
    (study / series / "069.xml").write_text('<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage/>')
    (study / series / "LICENSE").write_text("CC BY 3.0\n")
    names = "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,Study Description,Study Date,"
    names += "Series Description,Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,File Size,File Location,"
    known = [
        f"{uid}.1",
        "LIDC-IDRI",
        "",
        "",
        person,
        uid,
        "",
        "01-01-2000",
        "",
        "medsynth",
        "CT",
        "CT Image Storage",
        "",
        "40",
    ]
    location = f".\\LIDC-IDRI\\{person}\\{study.name}\\{series}"
    row = [*known, "20 MB", location, "2026-01-01T00:00:00"]
    write_table(folder / "metadata.csv", [*names.split(",")[:-1], "Download Timestamp"], [row])


@same_locale()
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
