"""Damaged and hostile input: every reader gives a valid result or one DataError; never a crash, a hang or a write elsewhere.

`make fuzz` runs more than 100,000 cases; some hundreds, always the same ones, are part of `make test`.
"""

import gzip
import io
import os
import re
import shutil
import tarfile
import warnings
import zipfile
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from data_download import lookalike, registry
from data_download.archive import unpack
from medsynth_lib.data.files import layouts
from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.nifti import read_volume, write_volume
from medsynth_lib.data.files.paths import split_volume
from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.data.preparation.dicom import read_series
from medsynth_lib.files import DataError
from medsynth_lib.settings import load_settings
from medsynth_lib.training.checkpoint import load_checkpoint

THOROUGH = os.environ.get("MEDSYNTH_FUZZ") == "thorough"
CASES = {"count": 0}


def fuzz(share=1.0, usual=None):
    """Settings of one target: its share of 2,000 cases when thorough, of 60 otherwise; each case has 10 s at most."""
    return settings(
        max_examples=int(share * 2000) if THOROUGH else usual or int(share * 60),
        derandomize=not THOROUGH,
        database=None,
        deadline=10_000,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def sandbox(tmp_path):
    """A folder to work in; whatever appears beside it fails the test."""
    inside = tmp_path / "sandbox"
    inside.mkdir()
    yield inside
    assert [p.name for p in tmp_path.iterdir()] == ["sandbox"]


def attempt(function, *arguments, errors=DataError):
    """The function's result, or None where it refused by one of its documented errors."""
    CASES["count"] += 1
    try:
        return function(*arguments)
    except errors as error:
        assert str(error)
        return None


def small_nifti():
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5) + 1, np.diag([1.0, 2, 3, 1]))
    return image.to_bytes()


NIFTI = small_nifti()
# offset, numpy type and count of the header's fields (NIfTI-1): where extreme values hurt most
FIELDS = {"dim": (40, "<i2", 8), "datatype": (70, "<i2", 1), "bitpix": (72, "<i2", 1), "pixdim": (76, "<f4", 8),
          "vox_offset": (108, "<f4", 1), "slope": (112, "<f4", 2), "qform": (252, "<i2", 2), "quatern": (256, "<f4", 6),
          "sform": (280, "<f4", 12), "sizeof": (0, "<i4", 1), "extension": (348, "<u1", 4)}  # fmt: skip
EXTREME = [0, 1, -1, 2, 4, 7, 16, 64, 128, 255, 512, 1024, 2304, 32767, -32768]
EXTREME_FLOAT = [0.0, -1.0, 1e-38, 1e38, float("nan"), float("inf"), -float("inf"), 352.0, 1e9]
changes = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, len(NIFTI) - 1), st.integers(0, 255)),
        st.tuples(st.just("field"), st.sampled_from(sorted(FIELDS)), st.integers(0, 11), st.integers(0, 14)),
        st.tuples(st.just("cut"), st.integers(0, len(NIFTI))),
        st.tuples(st.just("add"), st.binary(max_size=40)),
    ),
    min_size=1,
    max_size=6,
)


def damaged(data, edits):
    data = bytearray(data)
    for kind, *what in edits:
        if kind == "byte" and what[0] < len(data):
            data[what[0]] = what[1]
        elif kind == "field":
            offset, dtype, count = FIELDS[what[0]]
            values = EXTREME_FLOAT if "f" in dtype else EXTREME
            value = np.array(values[what[2] % len(values)]).astype(dtype)
            at = offset + what[1] % count * value.itemsize
            data[at : at + value.itemsize] = value.tobytes()
        elif kind == "cut":
            del data[what[0] :]
        elif kind == "add":
            data += what[0]
    return bytes(data)


def require_volume(volume):
    if volume is not None:
        assert volume.ndim == 4 and volume.shape[0] == 1 and volume.dtype == torch.float32
        assert torch.isfinite(volume.as_tensor()).all() and np.isfinite(np.asarray(volume.affine)).all()


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_headers_and_bodies(sandbox, ending):
    @fuzz()
    @given(changes)
    def run(edits):
        data = damaged(NIFTI, edits)
        path = sandbox / f"scan{ending}"
        path.write_bytes(gzip.compress(data, 1) if ending == ".nii.gz" else data)
        require_volume(attempt(read_volume, path))
        require_volume(attempt(read_volume, f"{path}#1"))

    run()


def test_damaged_gzip(sandbox):
    packed = gzip.compress(NIFTI, 9, mtime=0)

    @fuzz(0.5)
    @given(
        st.lists(st.tuples(st.integers(0, len(packed) - 1), st.integers(0, 255)), min_size=1, max_size=4),
        st.integers(0, 60),
    )
    def run(edits, cut):
        data = bytearray(packed)
        for at, value in edits:
            data[at] = value
        path = sandbox / "scan.nii.gz"
        path.write_bytes(bytes(data[: len(data) - cut]))
        require_volume(attempt(read_volume, path))

    run()


cells = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "NA", "1e999", '"', '""', "a,b", "../../x", "/etc/passwd", "x\x00y", "\ufeff", "é" * 200, "train"]
    ),
)


def test_manifests(sandbox):
    @fuzz()
    @given(
        st.lists(st.sampled_from(["subject", "site", "split", "flair", "t1", "ct", "age", "subject", ""]), max_size=7),
        st.lists(st.lists(cells, max_size=8), max_size=6),
        st.binary(max_size=12),
        st.integers(0, 400),
    )
    def run(columns, rows, noise, at):
        text = "\n".join([",".join(columns), *(",".join(row) for row in rows)]).encode("utf-8", "surrogatepass")
        path = sandbox / "manifest.csv"
        path.write_bytes(text[:at] + noise + text[at:])
        manifest = attempt(Manifest.read, path)
        if manifest is not None:
            frame = manifest.table
            assert isinstance(frame, pd.DataFrame) and {"subject", "site", "split"} <= set(frame)
            assert not frame[["subject", "site"]].map(lambda cell: ".." in cell or "/" in cell).any().any()
            assert (frame["subject"] != "").all() and not frame.duplicated(["subject", "site"]).any()
            attempt(manifest.write, sandbox / "again.csv")

    run()


BOMB = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b]\n"
yaml_texts = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        [BOMB, "!!python/object/apply:os.system ['touch evil']", "a: !!python/name:os.system", "[" * 300, "- a\n b: c"]
    ),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
        max_leaves=8,
    ).map(yaml.safe_dump),
)


def test_contracts(sandbox):
    Contract().save(sandbox / "good.yaml")
    good = yaml.safe_load((sandbox / "good.yaml").read_text())

    @fuzz(0.5)
    @given(
        st.one_of(yaml_texts, st.tuples(st.sampled_from(sorted(good)), st.one_of(st.none(), st.integers(), st.text())))
    )
    def run(change):
        text = change if isinstance(change, str) else yaml.safe_dump(good | {change[0]: change[1]})
        (sandbox / "contract.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        contract = attempt(Contract.load, sandbox / "contract.yaml")
        assert contract is None or isinstance(contract, Contract)

    run()
    assert sorted(p.name for p in sandbox.iterdir()) == ["contract.yaml", "good.yaml"]


def test_registries_and_profiles(sandbox):
    (sandbox / "profiles").mkdir()
    serial = iter(range(10**9))

    @fuzz(0.5)
    @given(yaml_texts)
    def run(text):
        path = sandbox / f"{next(serial)}.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        attempt(registry.load, path)
        path.rename(sandbox / "profiles" / "mine.yaml")
        attempt(load_settings, "01", "mine", None, sandbox, errors=(ValueError, KeyError))

    run()
    assert [p.name for p in sandbox.rglob("*")] == ["profiles", "mine.yaml"]


TAR_TYPES = dict(file=tarfile.REGTYPE, folder=tarfile.DIRTYPE, symlink=tarfile.SYMTYPE, hardlink=tarfile.LNKTYPE,
                 device=tarfile.CHRTYPE, pipe=tarfile.FIFOTYPE)  # fmt: skip
ZIP_MODES = dict(file=0o100644, folder=0o040755, symlink=0o120777, hardlink=0o100644, device=0o020644, pipe=0o010644)
PACKINGS = {"zip": zipfile.ZIP_STORED, "zip deflated": zipfile.ZIP_DEFLATED, "zip lzma": zipfile.ZIP_LZMA}


def archived(packing, members):
    """Bytes of an archive of members (name, kind, size): tar by "", "gz", "bz2" or "xz", or zip by PACKINGS."""
    buffer = io.BytesIO()
    if packing in PACKINGS:
        with zipfile.ZipFile(buffer, "w", PACKINGS[packing]) as bundle, warnings.catch_warnings(action="ignore"):
            for name, kind, size in members:
                info = zipfile.ZipInfo(name)  # it cuts a name at its first NUL
                info.external_attr = ZIP_MODES[kind] << 16
                bundle.writestr(info, bytes(size), PACKINGS[packing])
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode=f"w:{packing}") as tar:
        for name, kind, size in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = TAR_TYPES[kind], "/etc/passwd", size if kind == "file" else 0
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


LIMIT = 10_000
HOSTILE = ["../evil", "/evil", "a/../../evil", "C:evil", "..\\evil", "x" * 300, "A/B", "..", "/", "a\nb", "a/./b", "./a",
           "a//b"]  # fmt: skip
member_names = st.one_of(
    st.lists(st.sampled_from(["a", "b", "set"]), min_size=1, max_size=3).map("/".join),
    st.sampled_from(HOSTILE),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=6),
)
members = st.tuples(
    member_names,
    st.one_of(st.just("file"), st.sampled_from(sorted(TAR_TYPES))),
    st.one_of(st.integers(0, 100), st.integers(0, 2 * LIMIT)),
)
packings = st.sampled_from(["", "gz", "bz2", "xz", *PACKINGS])


def require_unpacked_or_nothing(sandbox, path, out):
    """Unpack; "unpacked", or the reason of the refusal. Nothing half-done may lie about, and nothing but plain files inside."""
    CASES["count"] += 1
    try:
        unpack(path, out, LIMIT)
        verdict = "unpacked"
    except DataError as error:
        verdict = str(error)
    held = list(out.rglob("*"))
    assert out.exists() == (verdict == "unpacked") and not any(p.name.startswith(".") for p in sandbox.iterdir())
    assert all((p.is_file() or p.is_dir()) and not p.is_symlink() for p in held)
    assert sum(p.stat().st_size for p in held if p.is_file()) <= LIMIT
    return verdict


@pytest.mark.slow
def test_archives_of_hostile_members(sandbox):
    serial, verdicts = iter(range(10**9)), []

    @fuzz(2)
    @given(packings, st.lists(members, min_size=1, max_size=4))
    def run(packing, content):
        (sandbox / "archive").write_bytes(archived(packing, content))
        verdict = require_unpacked_or_nothing(sandbox, sandbox / "archive", sandbox / f"out{next(serial)}")
        if any(
            name in ("../evil", "/evil", "a/../../evil") or kind in ("symlink", "device") for name, kind, _ in content
        ):
            assert "nothing was unpacked" in verdict.lower()
        verdicts.append(verdict)

    run()
    reasons = ["unpacked", "absolute path", "points outside", "link or a device", "control characters"]
    for reason in reasons + ["more than 255", "case alone", "unpacks to more"] * THOROUGH:  # these are rare
        assert any(reason in verdict for verdict in verdicts), f"no case was refused for: {reason}"


def test_damaged_archives(sandbox):
    serial = iter(range(10**9))

    @fuzz()
    @given(
        packings,
        st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5),
        st.floats(0.3, 1),
    )
    def run(packing, edits, keep):
        data = bytearray(archived(packing, [("set/a.txt", "file", 150), ("set/b/c.txt", "file", 3)]))
        del data[3072:]  # of a tar's 10,240 bytes the rest is padding
        for at, new in edits:
            start = int(at * (len(data) - 1))
            data[start : start + len(new)] = new
        (sandbox / "archive").write_bytes(bytes(data[: int(keep * len(data))]))
        require_unpacked_or_nothing(sandbox, sandbox / "archive", sandbox / f"out{next(serial)}")

    run()


PARTS = ["IXI012-HH-1211-T1", "BRATS_001", "imagesTr", "BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAB_1_t1",
         "Sub0001_Ses1_Scan_01_ANAT1",
         "UPENN-GBM-00001_11_T1", "UCSF-PDGM-0004_T1", "10005Q_INSP_STD_NJC_COPD", "LIDC-IDRI-0001", "CT_1.2", "name_mapping",
         "..", "a b", "é", "x\ny", "#", "BraTS20_Training_001"]  # fmt: skip
name = st.one_of(
    st.sampled_from(PARTS), st.text(st.characters(blacklist_characters="/\x00", codec="utf-8"), min_size=1, max_size=8)
)


def test_file_names(sandbox):
    serial = iter(range(10**9))

    @fuzz()
    @given(
        st.lists(st.tuples(st.lists(name, min_size=1, max_size=3), st.sampled_from([".nii.gz", ".nii", ".dcm", ".csv", ".txt"])),
                 max_size=5),
        st.binary(max_size=30),
    )  # fmt: skip
    def run(paths, content):
        folder = sandbox / str(next(serial))
        folder.mkdir()
        for parts, ending in paths:
            path = folder.joinpath(*(part for part in parts if part not in ("..", ".")), "x").parent
            path = path.with_name(path.name[:80] + ending) if path != folder else folder / f"x{ending}"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except OSError:  # a file where a folder should be: not what is tested
                continue
        manifest = attempt(layouts.recognise, folder)
        if manifest is not None:
            for cell in manifest.table[list(layouts.MODALITIES)].to_numpy().ravel():
                assert cell == "" or (folder / re.sub(r"#\d$", "", cell)).resolve().is_relative_to(folder.resolve())

    run()


def test_checkpoints(sandbox):
    network = torch.nn.Linear(2, 2)
    tensors = {f"network/n/{k}": v.detach() for k, v in network.state_dict().items()}
    save_file(tensors, sandbox / "good.safetensors", metadata={"meta": "{}"})
    good = (sandbox / "good.safetensors").read_bytes()

    @fuzz(0.5)
    @given(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=3), st.integers(0, len(good))
    )
    def run(edits, cut):
        data = bytearray(good)
        for at, value in edits:
            data[at] = value
        path = sandbox / "bad.safetensors"
        path.write_bytes(bytes(data[:cut]))
        attempt(load_checkpoint, path, {"n": torch.nn.Linear(2, 2)}, {}, errors=ValueError)

    run()


def test_written_volumes(sandbox):
    @fuzz(0.5)
    @given(st.lists(st.floats(width=32), min_size=8, max_size=8), st.sampled_from(["int16", "uint8", "float32"]))
    def run(values, dtype):
        path = sandbox / "out.nii.gz"
        array = np.array(values, np.float32).reshape(2, 2, 2)
        attempt(write_volume, path, array, np.eye(4), dtype)
        assert {p.name for p in sandbox.iterdir()} <= {"out.nii.gz"}

    run()


# -- flipped bits, in files that a scanner or a disk might leave -----------------------------------------------------------


def flipped(data, bits):
    """Bytes with single bits turned: positions count bits."""
    data = bytearray(data)
    for bit in bits:
        data[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(data)


VOXELS = np.arange(60, dtype=np.float32).reshape(3, 4, 5) + 1
flips = st.lists(st.integers(0, 10**6), min_size=1, max_size=3, unique=True)


def test_flipped_bits_of_packed_images(sandbox):
    """gzip has a checksum: whatever bit is turned, the voxels are the right ones or the file is refused."""
    packed, path = gzip.compress(NIFTI, 6, mtime=0), sandbox / "scan.nii.gz"

    @fuzz(20, usual=150)
    @given(flips)
    def run(bits):
        path.write_bytes(flipped(packed, bits))
        volume = attempt(read_volume, path)
        require_volume(volume)
        assert volume is None or np.array_equal(volume[0].numpy(), VOXELS)

    run()


def test_flipped_bits_of_plain_images(sandbox):
    """Without a checksum a bit turned among the voxels changes its voxel, and no other."""
    path, body = sandbox / "scan.nii", 352 * 8

    @fuzz(15, usual=150)
    @given(flips)
    def run(bits):
        path.write_bytes(flipped(NIFTI, bits))
        volume = attempt(read_volume, path)
        require_volume(volume)
        if volume is not None and all(bit % (8 * len(NIFTI)) >= body for bit in bits):
            touched = {(bit % (8 * len(NIFTI)) - body) // 16 for bit in bits}
            changed = np.flatnonzero(volume[0].numpy().ravel("F") != VOXELS.ravel("F"))
            assert set(changed) <= touched and volume.shape == (1, 3, 4, 5)

    run()


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """The files of a small CT series, and its volume in HU."""
    folder, rng = tmp_path_factory.mktemp("dicom") / "CT", np.random.default_rng(0)
    hu = rng.integers(-1000, 1000, (6, 7, 5)).astype(float)
    lookalike.dicom(folder, hu, np.diag([-1.0, -1, 2, 1]), "LIDC-IDRI-0001", "1.2.3", "CT")
    return {path.name: path.read_bytes() for path in folder.iterdir()}, read_series(folder)[0]


@pytest.mark.slow
def test_flipped_bits_of_dicom_series(sandbox, series):
    """A bit among the pixels changes its slice, and no other; elsewhere the series is refused or is a sound volume."""
    files, whole = series
    pixels = 6 * 7 * 2

    @fuzz(7, usual=60)
    @given(st.sampled_from(sorted(files)), flips, st.booleans())
    def run(name, bits, inside):
        size = len(files[name])
        bits = [8 * (size - pixels) + bit % (8 * pixels) if inside else bit for bit in bits]
        for each, content in files.items():
            (sandbox / each).write_bytes(flipped(content, bits) if each == name else content)
        found = attempt(read_series, sandbox)
        if found is None:
            return
        hu, affine = found
        assert np.isfinite(hu).all() and np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 1e-9
        if inside:
            assert hu.shape == whole.shape and len({k for *_, k in np.argwhere(hu != whole)}) <= 1

    run()


# -- folders in which files were renamed, removed, doubled, swapped or hidden -----------------------------------------------


def named_file(path, *_, **__):
    """Stands for a writer of images: each file holds its own name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(path).encode())


def named_series(folder, hu, affine, person, study, modality):
    series = f"{study}.{1 if modality == 'CT' else 2}"
    for k in range(3):
        pydicom_file(folder / f"{k:04d}.dcm", series, person, modality)


def pydicom_file(path, series, person, modality):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.SeriesInstanceUID, data.PatientID, data.Modality = series, person, modality
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = (
        "1.2.840.10008.5.1.4.1.1.2",
        series,
    )
    data.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def layout_folders(tmp_path_factory):
    """A folder of names for every published layout: no image in it, for layouts are read from names."""
    blank = np.ones((2, 2, 2))
    truth = dict(fev1pp=90.0, fev1_fvc=0.7)
    names = dict(
        save=named_file, dicom=named_series, on_grid=lambda *_, **__: blank,
        stripped=lambda seed, site, contrasts: dict.fromkeys((*contrasts, "seg"), blank),
        head=lambda seed, site, contrasts, **_: (dict.fromkeys(contrasts, blank), np.eye(4)),
        chest=lambda seed: (np.ones((2, 2, 3)), np.eye(4), truth),
    )  # fmt: skip
    top, folders = tmp_path_factory.mktemp("layouts"), {}
    with mock.patch.multiple(lookalike, **names):
        for name in lookalike.WRITERS:
            folders[name] = lookalike.write(name, top / name)
    return folders


def contents(folder, manifest):
    """What every cell of a manifest names: (subject, site, modality) -> the bytes of the file, or the files of a series."""
    found = {}
    for scan in manifest.scans():
        for modality in layouts.MODALITIES:
            if scan.has(modality):
                path, number = split_volume(scan.path(modality))
                files = sorted(path.glob("[!.]*")) if path.is_dir() else [path]
                files = [file for file in files if file.is_file()]
                found[scan["subject"], scan["site"], modality] = number, [file.read_bytes() for file in files]
    return found


def rename(path, other, text):
    path.rename(path.with_name(text + path.name))
    return {path}


def remove(path, other, text):
    path.unlink()
    return {path}


def double(path, other, text):
    """A second file of the same name, in a folder of its own, which holds something else."""
    copy = path.parent / ("copy" + text) / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(b"another image")
    return set()


def swap(path, other, text):
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)
    return {path, other}


def hide(path, other, text):
    """Leftovers of other systems: they must not count."""
    for place in (path.parent / f".trash{text}", path.parent / "__MACOSX", path.parent / ".ipynb_checkpoints"):
        place.mkdir(exist_ok=True)
        (place / path.name).write_bytes(b"hidden")
    (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    return set()


def shout(path, other, text):
    path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ").replace(".dcm", ".DCM")))
    return {path}


def replaced_by_folder(path, other, text):
    path.unlink()
    path.mkdir()
    return {path}


def moved(path, other, text):
    """Into another folder, as somebody who tidies up might."""
    place = path.parent / ("moved" + text)
    place.mkdir(exist_ok=True)
    path.rename(place / path.name)
    return {path}


def rename_folder(path, other, text):
    mine = {p for p in path.parent.rglob("*") if p.is_file()}
    path.parent.rename(path.parent.with_name(path.parent.name + text + "x"))
    return mine


MUTATIONS = [rename, remove, double, swap, hide, shout, replaced_by_folder, moved, rename_folder]


def mutate(folder, mutation, at, to, text):
    """Change a folder; return the files whose cells may differ from then on."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        return set()
    path, other = files[at % len(files)], files[to % len(files)]
    if mutation is rename_folder and path.parent == folder:
        return set()
    try:
        return mutation(path, other, text)
    except OSError:  # a name too long, or taken
        return {path, other}


@pytest.mark.slow
def test_folders_that_somebody_tidied(sandbox, layout_folders):
    """Whatever happens to some files, each other image stays the image of its subject, or the folder is refused."""
    serial = iter(range(10**9))
    sound = {name: contents(folder, layouts.recognise(folder)) for name, folder in layout_folders.items()}

    @fuzz(15, usual=60)
    @given(
        st.sampled_from(sorted(layout_folders)),
        st.lists(st.tuples(st.sampled_from(MUTATIONS), st.integers(0, 999), st.integers(0, 999),
                           st.sampled_from(["", "x", "2 ", "é", "#", "Ses2_"])), min_size=1, max_size=3),
    )  # fmt: skip
    def run(name, mutations):
        folder = sandbox / str(next(serial))
        shutil.copytree(layout_folders[name], folder)
        touched = {p for mutation in mutations for p in mutate(folder, *mutation)}
        spoilt = {p.relative_to(folder).as_posix() for p in touched}
        manifest = attempt(layouts.recognise, folder)
        if manifest is not None:
            require_same_images(name, contents(folder, manifest), sound[name], layout_folders[name], spoilt)
        shutil.rmtree(folder)

    run()


def require_same_images(name, found, sound, original, spoilt):
    """Cells whose files nobody touched hold what they held; no cell holds what lay hidden."""
    lost = {(original / path).read_bytes() for path in spoilt if (original / path).is_file()}
    for key, (number, files) in found.items():
        assert b"hidden" not in files
        before = sound.get(key)
        if before is None or set(before[1]) & lost or b"another image" in files and key not in sound:
            continue
        if not set(files) & lost:
            assert (number, files) == before, f"{name}: {key} is another image now"


@pytest.mark.slow  # it counts the cases of slow tests, too
def test_zz_enough_cases():
    """Runs last: the others counted."""
    print(f"\n{CASES['count']} cases")
    assert CASES["count"] >= (100_000 if THOROUGH else 800)
