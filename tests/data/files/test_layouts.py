"""Published layouts: look-alikes are found by name, made ready, and end up where the person was."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from data_download import lookalike
from medsynth_lib.data.files.brats import find_cases
from medsynth_lib.data.files.layouts import LAYOUTS, find, open_dataset, recognise
from medsynth_lib.data.files.manifest import Scan
from medsynth_lib.data.files.nifti import read_case, read_volume, write_volume
from medsynth_lib.data.preparation import harmonise as ready
from medsynth_lib.files import SAID, DataError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def volume(array, affine):
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array, np.float32))[None], affine=torch.from_numpy(affine))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "cache"))


# names alone ------------------------------------------------------------------------------------------------------------


def test_ixi_sites_and_a_missing_modality(tmp_path):
    touch(tmp_path, *(f"IXI-{m}/IXI012-HH-1211-{m}.nii.gz" for m in ("T1", "T2", "PD")))
    touch(tmp_path, "IXI-T1/IXI013-Guys-0700-T1.nii.gz", "IXI-T1/._IXI013-Guys-0700-T1.nii.gz", "IXI-T1/notes.txt")
    frame = find("ixi", tmp_path).table
    assert frame[["subject", "site"]].values.tolist() == [["IXI012", "HH"], ["IXI013", "Guys"]]
    assert frame["pd"].tolist() == ["IXI-PD/IXI012-HH-1211-PD.nii.gz", ""] and (frame["dataset"] == "ixi").all()


def test_upenn_takes_the_first_visit_and_hand_made_labels(tmp_path):
    case = "images_structural/UPENN-GBM-00002_11/UPENN-GBM-00002_11_"
    touch(tmp_path, *(f"{case}{m}.nii.gz" for m in ("FLAIR", "T1", "T1GD", "T2")))
    touch(tmp_path, "images_structural/UPENN-GBM-00002_21/UPENN-GBM-00002_21_T1.nii.gz")
    touch(tmp_path, "automated_segm/UPENN-GBM-00002_11_automated_approx_segm.nii.gz")
    assert find("upenn_gbm", tmp_path).table["seg"].item().startswith("automated_segm/")
    touch(tmp_path, "images_segm/UPENN-GBM-00002_11_segm.nii.gz")
    frame = find("upenn_gbm", tmp_path).table
    assert len(frame) == 1 and frame["seg"].item() == "images_segm/UPENN-GBM-00002_11_segm.nii.gz"
    assert frame["t1ce"].item().endswith("_T1GD.nii.gz")


def test_ucsf_leaves_out_follow_ups_and_other_sequences(tmp_path):
    for case in ("UCSF-PDGM-0004", "UCSF-PDGM-0409_FU001d"):
        names = ("FLAIR", "T1", "T1c", "T2", "tumor_segmentation", "ADC", "brain_segmentation")
        touch(tmp_path, *(f"{case}_nifti/{case}_{m}.nii.gz" for m in names))
    frame = find("ucsf_pdgm", tmp_path).table
    assert frame["subject"].tolist() == ["UCSF-PDGM-0004"] and frame["seg"].item().endswith("tumor_segmentation.nii.gz")


def test_msd_cells_point_into_the_4d_file(tmp_path):
    touch(tmp_path, "imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz", "imagesTs/BRATS_485.nii.gz")
    frame = find("msd_task01", tmp_path).table
    assert frame["t2"].tolist() == ["imagesTr/BRATS_001.nii.gz#3", "imagesTs/BRATS_485.nii.gz#3"]
    assert frame["seg"].tolist() == ["labelsTr/BRATS_001.nii.gz", ""]


def test_gsp_takes_the_first_session(tmp_path):
    touch(tmp_path, *(f"Sub0001_Ses{s}/Sub0001_Ses{s}_Scan_01_ANAT1.nii.gz" for s in (1, 2)))
    assert find("gsp", tmp_path).table["t1"].tolist() == ["Sub0001_Ses1/Sub0001_Ses1_Scan_01_ANAT1.nii.gz"]


def test_copdgene_joins_its_table(tmp_path):
    touch(tmp_path, "10005Q/10005Q_INSP_STD_NJC_COPD.nii.gz", "10006R/10006R_INSP_STD_UIA_COPD.nii.gz")
    (tmp_path / "phenotypes.txt").write_text("sid\tFEV1pp_utah\tFEV1_FVC_utah\tother\n10005Q\t81.5\t0.71\tx\n")
    frame = find("copdgene", tmp_path).table
    assert frame["site"].tolist() == ["NJC", "UIA"] and frame["fev1pp"].iloc[0] == 81.5 and "other" not in frame


def test_lidc_takes_the_largest_ct_series(tmp_path):
    study = "lidc_idri/LIDC-IDRI-0001/1.2.3"
    touch(tmp_path, *(f"{study}/CT_1.1/{i}.dcm" for i in range(3)), *(f"{study}/CT_1.2/{i}.dcm" for i in range(5)))
    touch(tmp_path, *(f"{study}/DX_1.3/{i}.dcm" for i in range(9)))
    assert find("lidc", tmp_path).table["ct"].tolist() == [f"{study}/CT_1.2"]


def test_two_sets_side_by_side(tmp_path):
    touch(tmp_path, "a/UPENN-GBM-00002_11_T1.nii.gz", "b/UCSF-PDGM-0004_T1.nii.gz")
    manifest = recognise(tmp_path)
    frame = manifest.table
    assert sorted(zip(frame["dataset"], frame["site"], strict=True)) == [("ucsf_pdgm", "UCSF"), ("upenn_gbm", "UPENN")]
    assert manifest.root == tmp_path and not frame.isna().any().any()


def test_brats_years_are_told_apart(tmp_path):
    for name in ("BraTS19_CBICA_AAB_1", "BraTS20_Training_001"):
        touch(tmp_path, f"x/{name}/{name}_t1.nii.gz")
    assert find("brats2019", tmp_path).table["subject"].tolist() == ["BraTS19_CBICA_AAB_1"]
    assert find("brats2020", tmp_path).table["subject"].tolist() == ["BraTS20_Training_001"]


def test_nothing_known_says_what_is_looked_for(tmp_path):
    touch(tmp_path, "scan.nii.gz")
    with pytest.raises(DataError, match="no manifest.csv, and no files named as in brats2019.*lidc"):
        recognise(tmp_path)
    with pytest.raises(DataError, match="no scans named as in gsp"):
        find("gsp", tmp_path)


def test_links_to_folders_are_followed(tmp_path):
    touch(tmp_path / "outside", "Sub0001_Ses1_Scan_01_ANAT1.nii.gz")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "outside", tmp_path / "data" / "link")
    assert recognise(tmp_path / "data").table["t1"].tolist() == ["link/Sub0001_Ses1_Scan_01_ANAT1.nii.gz"]


def test_a_manifest_wins_and_is_called_own(tmp_path):
    touch(tmp_path, "Sub0001_Ses1_Scan_01_ANAT1.nii.gz")
    (tmp_path / "manifest.csv").write_text("subject,site,t1\np1,Basel,p1.nii.gz\n")
    frame = open_dataset(tmp_path).table
    assert (
        frame["dataset"].tolist() == ["own"] and frame["ct"].tolist() == [""] and frame["t1"].tolist() == ["p1.nii.gz"]
    )


@pytest.mark.parametrize("name, separator", [("Manifest.CSV", ";"), ("manifest.tsv", "\t"), ("MANIFEST.txt", ",")])
def test_a_manifest_in_any_case_and_with_any_separator(tmp_path, name, separator):
    (tmp_path / name).write_text("subject,site,dataset,t1\np1,Basel,,p1.nii.gz\n".replace(",", separator))
    frame = open_dataset(tmp_path).table
    assert frame[["dataset", "t1", "ct"]].values.tolist() == [["own", "p1.nii.gz", ""]]


def test_manifests_that_cannot_be_taken(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        recognise(tmp_path / "nowhere")
    (tmp_path / "manifest.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="manifest.xlsx: is a workbook.* save it as manifest.csv"):
        open_dataset(tmp_path)
    (tmp_path / "manifest.csv").write_text("subject,site,t1\np1,Basel,p1.nii.gz\n")
    assert len(open_dataset(tmp_path)) == 1
    (tmp_path / "Manifest.tsv").write_text("subject\tsite\n")
    with pytest.raises(DataError, match="Manifest.tsv and manifest.csv: both are manifests"):
        open_dataset(tmp_path)


# what the published folders hold besides, and what people do to them -----------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_said_yet():
    SAID.clear()


BRATS19_NAMES = "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID"


def brats_case(root, name, modalities=("flair", "t1", "t1ce", "t2", "seg"), ending=".nii.gz"):
    touch(root, *(f"{name}/{Path(name).name}_{m}{ending}" for m in modalities))


def test_brats_2019_with_its_own_name_mapping(tmp_path):
    brats_case(tmp_path, "Training/HGG/BraTS19_CBICA_AAB_1")
    brats_case(tmp_path, "other/BraTS19_TCIA01_425_1")
    names = "Brats17_{0},Brats18_{0},NA,BraTS19_{0}"
    rows = [f"HGG,{names.format('CBICA_AAB_1')}", f"LGG,{names.format('TCIA01_425_1')}"]
    (tmp_path / "name_mapping.csv").write_text("\n".join([BRATS19_NAMES, *rows]))
    (tmp_path / "survival_data.csv").write_text(
        "BraTS19ID,Age,Survival,ResectionStatus\nBraTS19_CBICA_AAB_1,60,289,GTR\n"
    )
    frame = recognise(tmp_path).table
    assert frame[["site", "grade"]].values.tolist() == [["CBICA", "HGG"], ["TCIA", "LGG"]]


def test_both_years_with_a_name_mapping_each(tmp_path):
    brats_case(tmp_path, "a/BraTS19_CBICA_AAB_1")
    brats_case(tmp_path, "b/BraTS20_Training_002")
    brats_case(tmp_path, "c/BraTS20_Validation_001", ("flair", "t1", "t1ce", "t2"))
    (tmp_path / "a" / "name_mapping.csv").write_text(f"{BRATS19_NAMES}\nHGG,NA,NA,NA,BraTS19_CBICA_AAB_1\n")
    later = f'{BRATS19_NAMES},BraTS_2020_subject_ID\nLGG,NA,NA,NA,BraTS19_TMC_1_1,"BraTS20_Training_002"\n'
    (tmp_path / "b" / "Name_Mapping.CSV").write_text(later, encoding="utf-8-sig")
    validation = "BraTS_2019_subject_ID;BraTS_2020_subject_ID\nBraTS19_TCIA02_1_1;BraTS20_Validation_001\n"
    (tmp_path / "c" / "name_mapping_validation_data.csv").write_text(validation)
    frame = recognise(tmp_path).table.set_index("subject")
    assert frame["site"].to_dict() == {
        "BraTS19_CBICA_AAB_1": "CBICA",
        "BraTS20_Training_002": "TMC",
        "BraTS20_Validation_001": "TCIA",
    }
    assert frame["grade"].tolist() == ["HGG", "LGG", ""]


def test_name_mappings_that_disagree(tmp_path):
    brats_case(tmp_path, "BraTS20_Training_002")
    for folder, old in (("a", "BraTS19_CBICA_AAB_1"), ("b", "BraTS19_TCIA02_1_1")):
        (tmp_path / folder).mkdir()
        text = f"BraTS_2019_subject_ID,BraTS_2020_subject_ID\n{old},BraTS20_Training_002\n"
        (tmp_path / folder / "name_mapping.csv").write_text(text)
    with pytest.raises(DataError, match="a/name_mapping.csv and .*b/name_mapping.csv: case BraTS20_Training_002 is "):
        recognise(tmp_path)


def test_a_folder_of_one_grade_and_a_table_of_the_other(tmp_path):
    brats_case(tmp_path, "HGG/BraTS19_CBICA_AAB_1")
    (tmp_path / "name_mapping.csv").write_text("Grade,BraTS_2019_subject_ID\nLGG,BraTS19_CBICA_AAB_1\n")
    with pytest.raises(DataError, match="lies in HGG, but .*name_mapping.csv calls it LGG"):
        recognise(tmp_path)


def test_labels_under_another_name_are_taken_and_said(tmp_path, capsys):
    brats_case(tmp_path, "BraTS20_Training_355", ("flair", "t1", "t1ce", "t2"), ".nii")
    touch(tmp_path, "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    frame = recognise(tmp_path).table
    assert frame["seg"].tolist() == ["BraTS20_Training_355/W39_1998.09.19_Segm.nii"]
    assert "BraTS20_Training_355: its labels are taken from W39_1998.09.19_Segm.nii" in capsys.readouterr().out
    touch(tmp_path, "BraTS20_Training_355/mine_seg.nii.gz")
    with pytest.raises(DataError, match="W39_1998.09.19_Segm.nii and mine_seg.nii.gz are both its seg"):
        recognise(tmp_path)
    touch(tmp_path, "BraTS20_Training_355/BraTS20_Training_355_seg.nii")
    assert recognise(tmp_path).table["seg"].item().endswith("BraTS20_Training_355_seg.nii")


def test_scans_without_labels_are_counted(tmp_path, capsys):
    for k, modalities in enumerate((("t1", "seg"), ("t1",), ("t1",))):
        brats_case(tmp_path, f"BraTS19_CBICA_AA{k}_1", modalities)
    for list_scans in (recognise, lambda folder: find("brats2019", folder)):
        SAID.clear()
        list_scans(tmp_path)
        expected = "2 of 3 scans of brats2019 have no labels (seg), such as BraTS19_CBICA_AA1_1"
        assert expected in capsys.readouterr().out
    touch(tmp_path / "ixi", "IXI012-HH-1211-T1.nii.gz")
    recognise(tmp_path / "ixi")
    assert capsys.readouterr().out == ""  # a set that has none


def test_labels_of_a_manifest_are_counted(tmp_path, capsys):
    (tmp_path / "manifest.csv").write_text("subject,site,t1,seg\n1,A,a.nii,s.nii\n2,A,b.nii,\n")
    open_dataset(tmp_path)
    assert "1 of 2 scans of own have no labels (seg), such as 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, first, second",
    [
        ("ixi", "IXI-T1/IXI012-HH-1211-T1.nii.gz", "old_T1/IXI012-HH-1211-T1.nii.gz"),
        ("ixi", "IXI012-HH-1211-T1.nii", "IXI012-HH-1211-T1.nii.gz"),
        ("ixi", "IXI012-HH-1211-T1.nii.gz", "IXI012-HH-1299-T1.nii.gz"),
        ("upenn_gbm", "a/UPENN-GBM-00002_11_T1.nii.gz", "b/UPENN-GBM-00002_11_T1.nii.gz"),
        ("upenn_gbm", "a/UPENN-GBM-00002_11_segm.nii.gz", "b/UPENN-GBM-00002_11_segm.nii.gz"),
        ("ucsf_pdgm", "a/UCSF-PDGM-0004_T1c.nii.gz", "b/UCSF-PDGM-0004_T1c.nii.gz"),
        ("gsp", "a/Sub0001_Ses1_Scan_01_ANAT1.nii.gz", "b/Sub0001_Ses1_Scan_01_ANAT1.nii.gz"),
        ("msd_task01", "a/imagesTr/BRATS_001.nii.gz", "b/imagesTr/BRATS_001.nii.gz"),
        ("copdgene", "a/10005Q_INSP_STD_NJC_COPD.nii.gz", "b/10005Q_INSP_STD_NJC_COPD.nii.gz"),
        ("brats2019", "BraTS19_A_1_1/BraTS19_A_1_1_t1.nii", "BraTS19_A_1_1/BraTS19_A_1_1_t1.nii.gz"),
    ],
)
def test_two_files_of_one_kind_are_refused_with_both_names(tmp_path, name, first, second):
    touch(tmp_path, first)
    assert len(find(name, tmp_path)) == 1
    touch(tmp_path, second)
    with pytest.raises(DataError) as caught:
        find(name, tmp_path)
    assert Path(first).name in str(caught.value) and Path(second).name in str(caught.value)
    assert "keep one of them" in str(caught.value)


@pytest.mark.parametrize(
    "name, words",
    [
        ("BraTS2021_00000/BraTS2021_00000_flair.nii.gz", ["BraTS 2021", "hides its sites", "write a manifest.csv"]),
        ("BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz", ["BraTS 2023", "t1n as t1", "label 3 is 4 here"]),
        ("BraTS-MET-00002-000/BraTS-MET-00002-000-seg.nii.gz", ["BraTS 2023 or later", "label 3 is 4 here"]),
        ("HGG/Brats18_CBICA_AAB_1/Brats18_CBICA_AAB_1_t1.nii.gz", ["2017 or 2018", "find_cases(folder).write("]),
    ],
)
def test_sets_that_need_a_manifest_say_what_it_must_hold(tmp_path, capsys, name, words):
    touch(tmp_path, name)
    for read in (recognise, lambda folder: find("brats2020", folder)):
        with pytest.raises(DataError) as caught:
            read(tmp_path)
        assert all(word in str(caught.value) for word in [str(tmp_path), "1 files such as", Path(name).name, *words])
    touch(tmp_path, "IXI012-HH-1211-T1.nii.gz")  # beside a set that is read
    assert recognise(tmp_path).table["dataset"].tolist() == ["ixi"]
    assert words[0] in capsys.readouterr().out


def test_the_manifest_of_brats_2018_is_written_as_the_line_says(tmp_path):
    brats_case(tmp_path, "HGG/Brats18_TCIA01_1_1")
    find_cases(tmp_path).write(tmp_path / "manifest.csv")
    assert open_dataset(tmp_path).table[["site", "grade"]].values.tolist() == [["TCIA", "HGG"]]


def test_a_case_that_was_unpacked_into_a_folder_of_its_name(tmp_path):
    brats_case(tmp_path, "BraTS19_CBICA_AAB_1/BraTS19_CBICA_AAB_1")
    assert recognise(tmp_path).table["subject"].tolist() == ["BraTS19_CBICA_AAB_1"]


def test_upper_case_endings_and_hidden_folders_in_every_layout(tmp_path):
    names = ["a/IXI-T1/IXI012-HH-1211-T1.NII.GZ", "b/UPENN-GBM-00002_11_T1.NII", "c/UCSF-PDGM-0004_T1.Nii.gz"]
    names += ["d/Sub0001_Ses1_Scan_01_ANAT1.NII.gz", "e/imagesTr/BRATS_001.NII.GZ", "e/labelsTr/BRATS_001.nii.gz"]
    names += ["f/10005Q_INSP_STD_NJC_COPD.NII.GZ", "g/LIDC-IDRI-0001/1.2/CT_1/1.DCM"]
    names += ["h/BraTS19_A_1_1/BraTS19_A_1_1_t1.NII.GZ", "h/BraTS19_A_1_1/BraTS19_A_1_1_SEG.nii"]
    touch(tmp_path, *names, *(f"{hidden}/{name}" for name in names for hidden in ("__MACOSX", ".trash", "x/.git")))
    touch(tmp_path, *(str(Path(name).with_name(f"._{Path(name).name}")) for name in names))
    frame = recognise(tmp_path).table
    assert sorted(frame["dataset"]) == sorted(set(LAYOUTS) - {"brats2020"})
    cells = {cell.split("#")[0] for cell in frame[["t1", "seg", "ct"]].to_numpy().ravel()} - {""}
    assert cells == {*names} - {"g/LIDC-IDRI-0001/1.2/CT_1/1.DCM"} | {"g/LIDC-IDRI-0001/1.2/CT_1"}


def test_a_loop_of_links_and_two_links_to_one_folder(tmp_path):
    touch(tmp_path / "real", "IXI012-HH-1211-T1.nii.gz")
    data = tmp_path / "data"
    data.mkdir()
    for link, to in (("a", tmp_path / "real"), ("b", tmp_path / "real"), ("loop", data), ("up", tmp_path)):
        os.symlink(to, data / link)
    assert recognise(data).table["t1"].tolist() == ["a/IXI012-HH-1211-T1.nii.gz"]


def test_gsp_takes_the_first_of_several_scans_and_says_so(tmp_path, capsys):
    touch(tmp_path, *(f"Sub0001_Ses1/Sub0001_Ses1_Scan_{s}_ANAT1.nii.gz" for s in ("10", "02")))
    assert find("gsp", tmp_path).table["t1"].tolist() == ["Sub0001_Ses1/Sub0001_Ses1_Scan_02_ANAT1.nii.gz"]
    assert "1 subjects, such as Sub0001, have several scans" in capsys.readouterr().out


def test_lidc_slices_may_be_named_by_their_uid(tmp_path):
    touch(tmp_path, "LIDC-IDRI-0001/1.2/CT_1.3/1.3.6.1.4.1", "LIDC-IDRI-0001/1.2/CT_1.3/1.3.6.1.4.2")
    assert find("lidc", tmp_path).table["ct"].tolist() == ["LIDC-IDRI-0001/1.2/CT_1.3"]


def test_lidc_as_the_client_of_tcia_lays_it_out(tmp_path):
    for person, modality, slices in (("0001", "CT", 3), ("0001", "DX", 1), ("0002", "CT", 2), ("0003", "DX", 1)):
        folder = tmp_path / f"LIDC-IDRI-{person}" / "01-01-2000-NA-NA-30178" / f"300056{slices}.000000-NA-03192"
        lookalike.dicom(folder, np.zeros((4, 4, slices)), np.diag([-1.0, -1, 2, 1]), person, "1.2", modality)
        touch(folder, "069.xml", "LICENSE")
    for path in list((tmp_path / "LIDC-IDRI-0002").rglob("*.dcm")):
        path.rename(path.with_suffix(""))  # as some viewers export
    frame = find("lidc", tmp_path).table
    assert frame["subject"].tolist() == ["LIDC-IDRI-0001", "LIDC-IDRI-0002"]
    assert frame["ct"].str.endswith(("3000563.000000-NA-03192", "3000562.000000-NA-03192")).all()


# the table of COPDGene ----------------------------------------------------------------------------------------------------


def copdgene(root, **tables):
    touch(root, "10005Q/10005Q_INSP_STD_NJC_COPD.nii.gz", "10006R/10006R_INSP_STD_UIA_COPD.nii.gz")
    for name, text in tables.items():
        (root / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return find("copdgene", root).table.set_index("subject")


@pytest.mark.parametrize(
    "text",
    [
        "sid,FEV1pp_utah,FEV1_FVC_utah\n10005Q,55.2,0.5\n10006R,NA,\n",
        '"","sid","FEV1pp_utah","FEV1_FVC_utah"\n"1","10005Q",55.2,0.5\n"2","10006R",NA,NA\n',
        "\ufeffsid;FEV1pp_utah;FEV1_FVC_utah\n10005Q;55,2;0,5\n10006R;;\n",
        "SID\tfev1pp_utah\tfev1_fvc_utah\n10005q\t55.2\t0.5\n10006R\t.\t.\n",
        "# dbGaP\n##\tphv1\tphv2\tphv3\ndbGaP_Subject_ID\tSUBJECT_ID\tFEV1pp_utah\tFEV1_FVC_utah\n1\t10005Q\t55.2\t0.5\n",
        "sid,visitnum,FEV1pp_utah,FEV1_FVC_utah\n10005Q,2,40,0.4\n10005Q,1,55.2,0.5\n10006R,2,80,0.8\n",
        "sid,FEV1pp_utah,FEV1_FVC_utah\n10005Q,55.2,0.5\n10005Q,55.20,0.5\n",  # one row twice, alike
        "sid,FEV1pp_utah_P1,FEV1_FVC_utah_P1,FEV1pp_utah_P2\n10005Q,55.2,0.5,40\n",
    ],
)
def test_copdgene_reads_its_table_whoever_wrote_it(tmp_path, text):
    frame = copdgene(tmp_path, a__txt=text, README__txt='see "sid", and \'others\n')
    assert frame.loc["10005Q", ["fev1pp", "fev1_fvc"]].tolist() == [55.2, 0.5]
    assert frame.loc["10006R", ["fev1pp", "fev1_fvc"]].isna().all()


@pytest.mark.parametrize(
    "tables, words",
    [
        (dict(a__csv="sid,FEV1pp_utah\n10005Q,high\n"), ["a.csv", "'FEV1pp_utah', line 2: 'high' is no number"]),
        (dict(a__csv='sid,FEV1pp_utah\n10005Q,"55\n'), ["a.csv", "line 2", "close every quote"]),
        (
            dict(a__csv="sid,FEV1pp_utah\n10005Q,55\n10005Q,56\n"),
            ["a.csv and", "subject 10005q has fev1pp 55 in one row and 56 in another"],
        ),
        (
            dict(a__csv="sid,FEV1pp_utah\n10005Q,55\n", b__txt="sid\tFEV1pp_utah\n10005Q\t56\n"),
            ["a.csv and", "b.txt: subject 10005q", "55", "56"],
        ),
    ],
)
def test_copdgene_tables_that_are_wrong_or_disagree(tmp_path, tables, words):
    with pytest.raises(DataError) as caught:
        copdgene(tmp_path, **tables)
    assert all(word in str(caught.value) for word in words)


def test_what_is_not_found_in_a_table_is_said(tmp_path, capsys):
    copdgene(tmp_path, a__csv="subject,FEV1\n10005Q,55\n")
    assert "2 of 2 subjects, such as 10005Q, have no spirometry in a table: none here has a column sid" in (
        capsys.readouterr().out
    )
    copdgene(tmp_path, b__csv="sid,FEV1\n10005Q,55\n")
    printed = capsys.readouterr().out
    assert "b.csv: has no column FEV1pp_utah; its columns are 'sid', 'FEV1'" in printed


# 4D files -----------------------------------------------------------------------------------------------------------------


def test_one_volume_of_a_4d_file(tmp_path):
    data = np.random.default_rng(0).uniform(1, 2, (4, 5, 6, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 3, 4, 1])), tmp_path / "four.nii.gz")
    read = read_volume(f"{tmp_path}/four.nii.gz#1")
    assert np.array_equal(read[0].numpy(), data[..., 1]) and np.allclose(np.diag(read.affine)[:3], (2, 3, 4))
    for wrong in ("3", "-1", "x"):
        with pytest.raises(DataError, match=f"no volume {wrong}"):
            read_volume(f"{tmp_path}/four.nii.gz#{wrong}")


# made ready ---------------------------------------------------------------------------------------------------------------


def test_unprepared_sets_come_back_as_they_are(tmp_path, cache):
    touch(tmp_path / "d", "UCSF-PDGM-0004_T1.nii.gz")
    manifest = recognise(tmp_path / "d")
    pd.testing.assert_frame_equal(ready.ready_dataset(manifest).table, manifest.table)


def small_msd(root, n=2):
    rng = np.random.default_rng(0)
    brain = np.zeros((12, 14, 10), bool)
    brain[2:-2, 2:-2, 2:-2] = True
    for i in range(n):
        four = (rng.uniform(50, 100, (*brain.shape, 4)) * brain[..., None]).astype(np.float32)
        labels = np.where(brain, rng.integers(0, 4, brain.shape), 0).astype(np.uint8)
        for folder, array in (("imagesTr", four), ("labelsTr", labels)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1])), root / folder / f"BRATS_{i + 1:03d}.nii.gz")
    return brain


def test_msd_is_split_relabelled_and_every_second_subject_shifted(tmp_path, cache):
    brain = small_msd(tmp_path / "d")
    manifest = ready.ready_dataset(recognise(tmp_path / "d"))
    assert manifest.table["site"].tolist() == ["MSD", "MSD-shifted"]
    for i, scan in enumerate(manifest.scans()):
        four = nib.load(tmp_path / "d" / "imagesTr" / f"BRATS_00{i + 1}.nii.gz").get_fdata()
        labels = nib.load(tmp_path / "d" / "labelsTr" / f"BRATS_00{i + 1}.nii.gz").get_fdata()
        case = read_case(scan, ("flair", "t1", "t1ce", "t2"))
        for k, modality in enumerate(("flair", "t1", "t1ce", "t2")):
            same = np.allclose(case[modality][0].numpy(), four[..., k])
            assert same == (i == 0) and (case[modality][0].numpy()[~brain] == 0).all()
        for theirs, ours in {0: 0, 1: 2, 2: 1, 3: 4}.items():
            assert (case["seg"][0].numpy()[labels == theirs] == ours).all()


def test_ready_goes_on_after_an_interruption_and_is_done_once(tmp_path, cache, monkeypatch):
    small_msd(tmp_path / "d")
    manifest, made, maker = recognise(tmp_path / "d"), [], ready.MAKERS["msd_task01"]

    def counted(scan, number):
        made.append(number)
        if made == [0, 1]:
            raise KeyboardInterrupt
        return maker(scan, number)

    monkeypatch.setitem(ready.MAKERS, "msd_task01", counted)
    with pytest.raises(KeyboardInterrupt):
        ready.ready_dataset(manifest)
    first = ready.ready_dataset(manifest).table
    assert made == [0, 1, 1]  # the first subject was not made again
    assert ready.ready_dataset(manifest).table.equals(first) and made == [0, 1, 1]


def test_a_changed_file_is_made_ready_again(tmp_path, cache):
    small_msd(tmp_path / "d")
    first = ready.ready_dataset(recognise(tmp_path / "d")).table
    os.utime(tmp_path / "d" / "imagesTr" / "BRATS_001.nii.gz", (1, 1))
    assert ready.ready_dataset(recognise(tmp_path / "d")).table["t1"][0] != first["t1"][0]


def test_scans_that_cannot_be_made_ready_are_listed(tmp_path, cache, capsys):
    small_msd(tmp_path / "d")
    path = tmp_path / "d" / "imagesTr" / "BRATS_002.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    frame = ready.ready_dataset(recognise(tmp_path / "d")).table
    assert frame["subject"].tolist() == ["BRATS_001"] and "BRATS_002" in capsys.readouterr().out
    (listed,) = (tmp_path / "cache").rglob("left_out.csv")
    assert "truncated" in pd.read_csv(listed).set_index("subject")["reason"]["BRATS_002"]
    (tmp_path / "d" / "imagesTr" / "BRATS_001.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no scan of msd_task01 could be made ready"):
        ready.ready_dataset(recognise(tmp_path / "d"))


@pytest.mark.parametrize("change", ["cut", "other grid", "unknown", "missing"])
def test_a_bad_label_leaves_out_one_subject(tmp_path, cache, change, capsys):
    small_msd(tmp_path / "d")
    path = tmp_path / "d" / "labelsTr" / "BRATS_002.nii.gz"
    image = nib.load(path)
    labels = np.asarray(image.dataobj)
    manifest = recognise(tmp_path / "d")
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif change == "missing":
        path.unlink()
    else:
        affine = image.affine + np.outer([change == "other grid", 0, 0, 0], [0, 0, 0, 1])  # 1 mm aside
        nib.save(nib.Nifti1Image(labels + (3 if change == "unknown" else 0), affine), path)
    assert ready.ready_dataset(manifest).table["subject"].tolist() == ["BRATS_001"]
    reason = {"cut": "truncated", "other grid": "differ", "unknown": "unknown labels", "missing": "no such file"}[
        change
    ]
    assert "BRATS_002" in (printed := capsys.readouterr().out) and reason in printed


@pytest.mark.parametrize(
    "subject, site", [("../../../../evil", "X"), ("{root}/evil", "X"), ("s", "a/../../../../../evil")]
)
def test_names_of_a_manifest_never_lead_out_of_the_cache(tmp_path, cache, subject, site):
    """Even where the manifest's own check were gone: a manifest made by hand comes this way, too."""
    small_msd(tmp_path / "d")
    manifest = recognise(tmp_path / "d").assign(subject=[subject.format(root=tmp_path), "other"], site=site)
    made = ready.ready_dataset(manifest).table
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "d"]
    for cell in made["t1"]:
        assert Path(cell).resolve().is_relative_to((tmp_path / "cache" / "ready").resolve())


def test_simulated_shift_is_monotone_inside_and_zero_outside(monkeypatch):
    monkeypatch.setattr(ready, "NOISE", 0.0)
    monkeypatch.setattr(ready, "COIL", 0.0)
    ramp = np.broadcast_to(np.linspace(1, 100, 40)[:, None, None], (40, 20, 20)).copy()
    brain = np.ones(ramp.shape, bool)
    brain[:, :3] = False
    shifted = ready.simulated_shift(ramp * brain, brain, "t1", (1, 1, 1), seed=0)
    assert (shifted[~brain] == 0).all() and (shifted[brain] > 0).all()
    assert (np.diff(shifted[4:-4, 10, 10]) > 0).all() and not np.allclose(shifted[brain], ramp[brain], rtol=0.05)


@pytest.fixture(scope="module")
def moved_head():
    """A simulated head with its skull: T1 stored sagittally and moved, T2 axially, as IXI has them."""
    images, affine = lookalike.head(2, "A", ("t1", "t2"), skull=True, tumour=False)
    sagittal = np.array([[0, 0, 2.4, -89.4], [-1.875, 0, 0, 119.5], [0, 1.875, 0, -119.5], [0, 0, 0, 1]])
    axial = np.array([[-1.875, 0, 0, 119.5], [0, -1.875, 0, 119.5], [0, 0, 2.5, -80.6], [0, 0, 0, 1]])
    motion = lookalike.motion(2)
    t1 = volume(lookalike.on_grid(images["t1"], motion @ affine, (128, 128, 75), sagittal), sagittal)
    t2 = volume(lookalike.on_grid(images["t2"], affine, (128, 128, 65), axial), axial)
    brain = lookalike.on_grid(images["brain"], affine, (128, 128, 65), axial, order=0) > 0
    return t1, t2, brain, motion


@pytest.mark.slow
def test_registration_finds_the_motion(moved_head):
    t1, t2, _, motion = moved_head
    found = ready.register(ready.to_itk(t2), ready.to_itk(t1), sitk.Euler3DTransform())
    flip = np.array([-1, -1, 1])  # ITK counts left and back
    for point in np.random.default_rng(0).uniform(-60, 60, (20, 3)):
        moved = np.array(found.TransformPoint((point * flip).tolist())) * flip
        assert np.linalg.norm(moved - (motion @ [*point, 1])[:3]) < 0.5


@pytest.mark.slow
def test_skull_stripping_keeps_the_brain(moved_head):
    t1, t2, brain, _ = moved_head
    grid = ready.to_itk(t2)
    move = ready.register(grid, ready.to_itk(t1), sitk.Euler3DTransform())
    mask = ready.brain_mask(sitk.Resample(ready.to_itk(t1), grid, move, sitk.sitkLinear, 0.0), "head")
    assert 2 * (mask & brain).sum() / (mask.sum() + brain.sum()) > 0.9


def test_your_own_mask_wins(moved_head, tmp_path):
    t1 = moved_head[0]
    write_volume(tmp_path / "Sub0001_Ses1_Scan_01_ANAT1.nii.gz", t1[0], t1.affine)
    mask = np.zeros(t1.shape[1:])
    mask[40:80, 40:80, 20:50] = 1
    write_volume(tmp_path / "Sub0001_Ses1_Scan_01_ANAT1_mask.nii.gz", mask, t1.affine, "uint8")
    scan = Scan({"t1": "Sub0001_Ses1_Scan_01_ANAT1.nii.gz", "subject": "s"}, tmp_path)
    array, _ = ready.make_gsp(scan, 0)["t1"]
    assert (array[mask == 0] == 0).all() and (array[mask == 1] != 0).mean() > 0.5


def test_itk_and_back_keeps_voxels_and_world(moved_head):
    t1 = moved_head[0]
    image = ready.to_itk(t1)
    assert np.array_equal(ready.array(image), t1[0].numpy()) and np.allclose(ready.affine_of(image), t1.affine)


def test_dicom_series_in_any_file_order_becomes_hu(tmp_path, cache):
    rng = np.random.default_rng(0)
    hu = np.rint(rng.uniform(-1000, 500, (16, 12, 9)))
    affine = np.array([[-0.7, 0, 0, 5], [0, -0.7, 0, 6], [0, 0, 2.5, -30], [0, 0, 0, 1]])
    lookalike.dicom(
        tmp_path / "d" / "LIDC-IDRI-0001" / "1.2.3" / "CT_1.2.3.1", hu, affine, "LIDC-IDRI-0001", "1.2.3", "CT"
    )
    frame = ready.ready_dataset(recognise(tmp_path / "d")).table
    read = read_volume(frame["ct"][0])
    assert np.array_equal(read[0].numpy(), hu) and np.allclose(read.affine, affine, atol=1e-4)


def test_a_missing_dicom_slice_is_noticed(tmp_path, cache):
    hu = np.zeros((8, 8, 9))
    series = tmp_path / "d" / "LIDC-IDRI-0001" / "1.2.3" / "CT_1.2.3.1"
    lookalike.dicom(series, hu + np.arange(9), np.diag([-1.0, -1, 2, 1]), "LIDC-IDRI-0001", "1.2.3", "CT")
    middle = next(p for p in sorted(series.iterdir()) if pydicom.dcmread(p).ImagePositionPatient[2] == 8)
    middle.unlink()
    with pytest.raises(DataError, match="could be made ready"):
        ready.ready_dataset(recognise(tmp_path / "d"))
    (listed,) = (tmp_path / "cache").rglob("left_out.csv")
    assert "a slice is missing" in Path(listed).read_text()


def test_a_dicom_slice_without_orientation_leaves_out_one_patient(tmp_path, cache, capsys):
    for person in ("LIDC-IDRI-0001", "LIDC-IDRI-0002"):
        series = tmp_path / "d" / person / "1.2.3" / "CT_1.2.3.1"
        lookalike.dicom(series, np.zeros((8, 8, 9)) + np.arange(9), np.diag([-1.0, -1, 2, 1]), person, "1.2.3", "CT")
    for path in series.iterdir():  # of the second patient
        path.write_bytes(path.read_bytes().replace(b"\x20\x00\x37\x00", b"\x20\x00\x38\x00"))  # (0020,0037) gone
    assert ready.ready_dataset(recognise(tmp_path / "d")).table["subject"].tolist() == ["LIDC-IDRI-0001"]
    assert "LIDC-IDRI-0002" in (printed := capsys.readouterr().out) and "DICOM" in printed


def test_every_layout_has_a_lookalike():
    assert set(lookalike.WRITERS) == set(LAYOUTS)
    with pytest.raises(KeyError):
        lookalike.write("unknown", Path("never-written"))
    assert not Path("never-written").exists()


@pytest.mark.slow
def test_a_lookalike_says_that_it_is_simulated(tmp_path):
    folder = lookalike.write("copdgene", tmp_path / "c")
    assert "simulated" in (folder / "SIMULATED.txt").read_text()
    frame = recognise(folder).table
    header = nib.load(folder / frame["ct"][0]).header
    assert len(frame) == 6 and b"simulated" in header["descrip"].item() and (frame["fev1pp"] > 0).all()
    with pytest.raises(DataError, match="is there already"):
        lookalike.write("copdgene", tmp_path / "c")
