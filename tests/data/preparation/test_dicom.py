"""DICOM folders as they come: right volumes in HU, or one error that names the choice."""

import locale
import shutil
import sys

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless

from data_download import lookalike
from medsynth_lib.data.preparation.dicom import read_series, same_locale
from medsynth_lib.data.simulation.thorax import make_thorax
from medsynth_lib.evaluation.ct import measure
from medsynth_lib.files import SAID, DataError

pytestmark = pytest.mark.slow  # by their number

PIXEL = (0.7, 0.9)  # mm, of chests in small: between columns, and between rows
STEP = 0.625  # mm; a tenth of a millimetre is rounding


@pytest.fixture(scope="module")
def chest():
    """HU in the order of the files, and the spacing that the chest truly has."""
    thorax = make_thorax(1, (36, 36, 36))
    return np.rint(thorax.hu[::-1, ::-1]).copy()


@pytest.fixture(scope="module")
def original(chest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom") / "series"
    lookalike.dicom(folder, chest, np.diag([-PIXEL[0], -PIXEL[1], STEP, 1]), "P1", "1.2.3", "CT")
    for path in folder.iterdir():  # ITK writes the spacings the right way round; a reader must not swap them
        assert pydicom.dcmread(path).PixelSpacing == [PIXEL[1], PIXEL[0]]
    return folder


@pytest.fixture
def series(original, tmp_path):
    SAID.clear()
    return shutil.copytree(original, tmp_path / "series")


def edit(folder, change, only=lambda k: True):
    """Change the headers: `change(k, header)` of the k-th slice from below."""
    for path in sorted(folder.iterdir()):
        header = pydicom.dcmread(path)
        if only(k := int(header.InstanceNumber) - 1):
            change(k, header)
            header.save_as(path)


def put(name, value):
    return lambda k, header: setattr(header, name, value)


def beside(folder, change, only=lambda k: True, prefix="other_"):
    """Add changed copies of slices, with UIDs of their own."""
    for path in sorted(folder.glob("[!a-z]*")):
        header = pydicom.dcmread(path)
        if only(k := int(header.InstanceNumber) - 1):
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.9.{prefix.encode().hex()}.{k}"[
                :60
            ]
            change(k, header)
            header.save_as(folder / f"{prefix}{path.name}")


def stored(header, values, **tags):
    """Store values (columns, rows) in another way."""
    for name, value in tags.items():
        setattr(header, name, value)
    header.PixelData = np.ascontiguousarray(np.asarray(values).T).tobytes()


def same(folder, chest, tolerance=1e-6):
    """The voxels of the chest, its affine, and thus its lung."""
    hu, affine = read_series(folder)
    assert hu.dtype == np.float32 and np.abs(hu - chest).max() <= tolerance
    assert np.allclose(affine, np.diag([-PIXEL[0], -PIXEL[1], STEP, 1]), atol=0.06)
    assert abs(np.linalg.det(affine[:3, :3]) / (PIXEL[0] * PIXEL[1] * STEP) - 1) < 0.003


def test_lung_of_the_lookalike_is_the_chests_own(tmp_path):
    """Within 1 % of what the voxels of the simulator hold, and the histogram to the voxel."""
    thorax = make_thorax(2, (48, 48, 48))
    hu, spacing = np.rint(thorax.hu), np.array(thorax.spacing)
    lookalike.dicom(tmp_path / "s", hu[::-1, ::-1], np.diag([*-spacing[:2], spacing[2], 1]), "P", "1.2", "CT")
    edit(
        tmp_path / "s",
        lambda k, h: setattr(h, "ImagePositionPatient", [0, 0, round(float(h.ImagePositionPatient[2]), 1)]),
    )
    read, affine = read_series(tmp_path / "s")
    found, true = measure(read, np.linalg.norm(affine[:3, :3], axis=0)), measure(hu, spacing)
    assert found == pytest.approx(true, rel=0.01)
    assert np.array_equal(np.histogram(read, 200)[0], np.histogram(hu, 200)[0])


def rename(ending):
    def change(folder):
        for n, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / ending.format(n=n))

    return change


def clutter(folder):
    """What lies beside slices and is no image."""
    for name in ("LICENSE", "notes.txt", "068.xml", ".DS_Store"):
        (folder / name).write_text("no image")
    (folder / "below").mkdir()
    header = pydicom.dcmread(next(folder.glob("*.dcm")))
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = "1.2.840.10008.1.3.10"
    del header.SeriesInstanceUID, header.PixelData
    header.save_as(folder / "DICOMDIR")


def encoded(syntax):
    def change(folder):
        for path in folder.iterdir():
            header = pydicom.dcmread(path)
            if syntax == RLELossless:
                header.compress(syntax)
                header.save_as(path)
                continue
            header.file_meta.TransferSyntaxUID = syntax
            if syntax == ExplicitVRBigEndian:
                header.PixelData = np.frombuffer(header.PixelData, "<i2").astype(">i2").tobytes()
            little = syntax != ExplicitVRBigEndian
            pydicom.dcmwrite(path, header, implicit_vr=False, little_endian=little, enforce_file_format=True)

    return change


@same_locale()
def jpeg2000(folder):
    """Compressed by ITK, without loss."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for path in folder.iterdir():
        image = sitk.ReadImage(str(path))
        whole = sitk.Cast(image, sitk.sitkInt16)
        for key in image.GetMetaDataKeys():
            whole.SetMetaData(key, image.GetMetaData(key))
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.Execute(whole)
        assert "JPEG 2000" in pydicom.dcmread(path).file_meta.TransferSyntaxUID.name


def by_slice(k, header):
    """Each slice with a slope and an intercept of its own, as PET-CTs and some archives have."""
    hu = header.pixel_array.T.astype(float) - 1024
    slope, intercept = (0.5, -1024 - k) if k % 2 else (0.25, -1100 + k)
    stored(header, np.rint((hu - intercept) / slope).astype(np.int16), RescaleSlope=slope, RescaleIntercept=intercept)


def unsigned(k, header):
    stored(header, (header.pixel_array.T).astype(np.uint16), PixelRepresentation=0)


def twelve_bits(k, header):
    """Signed 12 bits, with a drawing in the bits above them."""
    hu = header.pixel_array.T.astype(np.int16) - 1024
    bits = (hu.astype(np.uint16) & 0x0FFF) | (0x8000 if k == 3 else 0)
    stored(header, bits.astype(np.uint16), BitsStored=12, HighBit=11, PixelRepresentation=1, RescaleIntercept=0)


def reversed_order(k, header):
    header.InstanceNumber, header.SliceLocation = 36 - k, -float(header.ImagePositionPatient[2])


def localiser(folder):
    def change(k, header):
        header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        header.ImageOrientationPatient, header.SeriesInstanceUID = [0, 1, 0, 0, 0, -1], "1.2.9"

    beside(folder, change, lambda k: k < 2)


def others(folder):
    beside(folder, put("Modality", "PT"), lambda k: k < 5, "pet_")
    beside(folder, put("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"), lambda k: k == 0, "screen_")

    def report(k, header):
        header.Modality, header.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.22"
        del header.PixelData, header.Rows, header.ImagePositionPatient

    beside(folder, report, lambda k: k == 0, "report_")


GOOD = dict(
    as_written=lambda f: None,
    no_ending=rename("IM-{n:04d}"),
    uid_names=rename("1.2.3.{n}"),
    upper_case=rename("{n:03d}.DCM"),
    clutter=clutter,
    rounded_positions=lambda f: edit(
        f, lambda k, h: setattr(h, "ImagePositionPatient", [round(float(v), 1) for v in h.ImagePositionPatient])
    ),
    reversed_order=lambda f: edit(f, reversed_order),
    no_slice_location=lambda f: edit(f, lambda k, h: h.pop("SliceThickness", None)),
    wrong_thickness=lambda f: edit(f, put("SliceThickness", 5)),
    deflated=encoded(DeflatedExplicitVRLittleEndian),
    big_endian=encoded(ExplicitVRBigEndian),
    run_length=encoded(RLELossless),
    jpeg2000=jpeg2000,
    unsigned=lambda f: edit(f, unsigned),
    twelve_bits=lambda f: edit(f, twelve_bits),
    inverted_display=lambda f: edit(f, put("PhotometricInterpretation", "MONOCHROME1")),
    localiser=localiser,
    other_modalities=others,
    copies=lambda f: beside(f, lambda k, h: None, lambda k: k in (0, 7)),
    one_acquisition_a_slice=lambda f: edit(f, lambda k, h: setattr(h, "AcquisitionNumber", k)),
)


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD)
def test_same_volume_however_it_is_stored(series, chest, change):
    change(series)
    same(series, chest)


def test_each_slice_has_its_own_rescaling(series, chest):
    edit(series, by_slice)
    same(series, chest, tolerance=0.25)  # steps of half a HU


def test_what_is_left_aside_is_said(series, capsys):
    others(series)
    localiser(series)
    read_series(series)
    assert "5 x PT, 1 x SR, 2 x localiser, 1 x screen capture" in capsys.readouterr().out


def test_padding_becomes_air_and_tissue_stays(series, chest):
    def corner(value):
        def change(k, header):
            values = header.pixel_array.T.copy()
            values[:4, :4] = value
            stored(header, values)
            header.add_new("PixelPaddingValue", "SS", value)

        return change

    edit(series, corner(32000), lambda k: k % 2)
    edit(series, corner(-2000), lambda k: k % 2 == 0)
    padded = chest.copy()
    padded[:4, :4] = -1024
    same(series, padded)
    edit(series, lambda k, h: h.add_new("PixelPaddingValue", "SS", 1064))  # 40 HU: a wrong mark, which muscle has
    hu, _ = read_series(series)
    assert ((hu == 40) == (padded == 40))[6:].all()


def test_a_slanted_patient_keeps_shape_and_place(series, chest):
    """Oblique axes and a descending stack: only the affine changes."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))

    def change(k, header):
        header.ImageOrientationPatient = [round(float(v), 6) for v in turn[:, :2].T.ravel()]
        header.ImagePositionPatient = [round(float(v), 4) for v in np.array([9, 8, 7]) - k * STEP * turn[:, 2]]

    edit(series, change)
    hu, affine = read_series(series)
    assert np.array_equal(hu, chest[:, :, ::-1])
    lps = np.diag([-1, -1, 1, 1]) @ affine
    assert np.allclose(lps[:3, :3], turn * (*PIXEL, STEP), atol=1e-3)
    assert np.allclose(lps @ (0, 0, 35, 1), (9, 8, 7, 1), atol=1e-3)


def multiframe(series, change=lambda k, group: None):
    """Turn single slices into one enhanced file, frames in a random order."""
    headers = sorted((pydicom.dcmread(p) for p in series.iterdir()), key=lambda h: int(h.InstanceNumber))
    order = np.random.default_rng(1).permutation(len(headers))
    whole = headers[0]
    pixels = np.stack([headers[k].pixel_array for k in order])
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = whole.ImageOrientationPatient
    shared.PixelMeasuresSequence[0].PixelSpacing = whole.PixelSpacing
    groups = []
    for k in order:
        group = Dataset()
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [Dataset()], [Dataset()]
        group.FrameContentSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = headers[k].ImagePositionPatient
        group.PixelValueTransformationSequence[0].RescaleSlope = 1
        group.PixelValueTransformationSequence[0].RescaleIntercept = -1024
        change(int(k), group)
        groups.append(group)
    del whole.ImagePositionPatient, whole.ImageOrientationPatient, whole.PixelSpacing
    del whole.RescaleSlope, whole.RescaleIntercept
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    whole.NumberOfFrames, whole.PixelData = len(order), pixels.tobytes()
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], groups
    shutil.rmtree(series)
    series.mkdir()
    whole.save_as(series / "all.dcm")
    return whole


def test_frames_of_an_enhanced_file_are_put_in_order(series, chest):
    multiframe(series)
    same(series, chest)


def test_two_times_in_an_enhanced_file_are_refused(series):
    def change(k, group):
        group.FrameContentSequence[0].TemporalPositionIndex = 1 + k % 2
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, k // 2 * 1.25]

    multiframe(series, change)
    with pytest.raises(DataError, match=r"36 DICOM slices at 18 positions.*temporal position: 1 \(18 slices\), 2 \(18"):
        read_series(series)


def test_an_enhanced_file_that_lost_its_descriptions_is_refused(series):
    whole = multiframe(series)
    del whole.PerFrameFunctionalGroupsSequence
    whole.save_as(series / "all.dcm")
    with pytest.raises(DataError, match="all.dcm: DICOM with several frames but no positions"):
        read_series(series)


def brighter(k, header):
    stored(header, header.pixel_array.T + np.int16(50))


def second_phase(**tags):
    def add(folder):
        edit(folder, lambda k, h: [setattr(h, name, values[0]) for name, values in tags.items()])

        def change(k, header):
            brighter(k, header)
            for name, values in tags.items():
                setattr(header, name, values[1])

        beside(folder, change)

    return add


def between(folder):
    """A second acquisition, half a step higher."""
    edit(folder, put("AcquisitionNumber", 1))

    def change(k, header):
        brighter(k, header)
        header.AcquisitionNumber = 2
        header.ImagePositionPatient = [0, 0, (k + 0.5) * STEP]

    beside(folder, change)


def place(make):
    return lambda f: edit(f, lambda k, h: setattr(h, "ImagePositionPatient", [float(v) for v in make(k)]))


def without(name, only=lambda k: k == 4):
    return lambda f: edit(f, lambda k, h: delattr(h, name), only)


def one(f, k=4):
    """The path of the k-th slice."""
    return next(p for p in f.iterdir() if int(pydicom.dcmread(p).InstanceNumber) == k + 1)


def cut(f):
    path = one(f)
    path.write_bytes(path.read_bytes()[:-100])


def coronal(k, header):
    header.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def film(k, header):
    """A compression that no slice has."""
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    header.PixelData = encapsulate([header.PixelData])
    header["PixelData"].VR = "OB"


BAD = dict(
    two_series=(lambda f: beside(f, put("SeriesInstanceUID", "1.2.2"), lambda k: k < 2),
                r"2 series in one DICOM folder: .*1\.2\.3\.1 \(36 slices.*1\.2\.2 \(2 slices such as other_.*choose one"),
    two_patients=(lambda f: beside(f, put("PatientID", "P2")), "2 series in one DICOM folder: patient .*; patient P2"),
    phases=(second_phase(NominalPercentageOfCardiacPhase=(40, 75)),
            r"72 DICOM slices at 36 positions.*cardiac phase: 40.0 \(36 slices\), 75.0 \(36 slices\)"),
    echoes=(second_phase(EchoNumbers=(1, 2)), "echo: 1"),
    times=(second_phase(TemporalPositionIdentifier=(1, 2)), "temporal position: 1"),
    acquisitions=(second_phase(AcquisitionNumber=(3, 4)), r"acquisition number: 3 \(36 slices\), 4 \(36"),
    kernels=(second_phase(ConvolutionKernel=("B30f", "B70f")), "kernel: B30f"),
    twins=(second_phase(AcquisitionTime=("101010", "101110")), "acquisition time: 101010"),
    acquisitions_between=(between, "2 values of acquisition number in one DICOM series"),
    kernel_changes=(lambda f: edit(f, lambda k, h: setattr(h, "ConvolutionKernel", "B30f" if k < 20 else "B70f")),
                    "2 values of kernel"),
    tilted=(place(lambda k: (0, 0.3 * k, STEP * k)), r"shifted against each other, by 0.30 mm a slice \(25.6 degrees"),
    little_tilt=(place(lambda k: (0, 0.02 * k, STEP * k)), "shifted against each other"),
    jumps=(place(lambda k: (3 * (k > 20), 0, STEP * k)), "shifted against each other"),
    slice_missing=(lambda f: one(f, 17).unlink(), "0.6[0-9] to 1.25 mm apart, the widest gap between .* a slice is missing"),
    spacing_changes=(place(lambda k: (0, 0, STEP * k if k < 18 else STEP * (2 * k - 18))), "spacing changes"),
    second_slice_missing=(lambda f: one(f, 1).unlink(), "a slice is missing"),
    no_position=(without("ImagePositionPatient"), "without a usable ImagePositionPatient .missing."),
    no_orientation=(without("ImageOrientationPatient"), "without a usable Image(Orientation|Position)Patient"),
    no_spacing=(without("PixelSpacing"), "without a usable PixelSpacing"),
    bad_axes=(lambda f: edit(f, put("ImageOrientationPatient", [1, 0, 0, 1, 0, 0])), "not two axes at right angles"),
    zero_spacing=(lambda f: edit(f, put("PixelSpacing", [0, 0])), "not above 0"),
    no_rescaling=(without("RescaleIntercept"), "no RescaleSlope and RescaleIntercept"),
    zero_slope=(lambda f: edit(f, put("RescaleSlope", 0)), "RescaleSlope 0"),
    no_hu=(lambda f: edit(f, put("RescaleType", "ED")), "RescaleType is ED, not HU"),
    coronal_beside=(lambda f: beside(f, coronal, lambda k: k < 2), "slices of 2 grids in one series.*36 slices.*2 slices"),
    other_pixels=(lambda f: edit(f, put("PixelSpacing", [0.5, 0.5]), lambda k: k < 3), "slices of 2 grids"),
    cut_file=(cut, "damaged DICOM"),
    no_modality=(without("Modality", lambda k: k == 35), "damaged DICOM header, or no image .Modality ''"),
    odd_modality=(lambda f: edit(f, put("Modality", "KT"), lambda k: k == 0), "Modality 'KT'"),
    header_cut=(lambda f: one(f, 35).write_bytes(one(f, 35).read_bytes()[:600]), "usable Image(Orientation|Position)Patient"),
    odd_bytes=(lambda f: one(f).write_bytes(one(f).read_bytes().replace(b"(\x00\x02\x00\x02", b"(\x00\x02\x00\x03")),
               "DICOM"),
    empty_file=(lambda f: one(f).write_bytes(b""), r"1 file\(s\) such as .*dcm are no readable DICOM"),
    text_file=(lambda f: one(f).write_text("<html>404</html>" * 30), "are no readable DICOM"),
    unknown_compression=(
        lambda f: edit(f, film),
        r"cannot be decoded \(MPEG-4.*gdcmconv --raw"),
    only_pet=(lambda f: edit(f, put("Modality", "PT")), "0 readable DICOM slices of CT, but 36 x PT"),
    one_slice=(lambda f: [p.unlink() for p in f.iterdir() if p != one(f)], r"1 readable DICOM slice\(s\)"),
    folders_below=(lambda f: shutil.move(shutil.copytree(f, f.parent / "x"), f / "sub") and
                   [p.unlink() for p in f.glob("*.dcm")], r"folders below it are not searched \(sub\)"),
    multi_frame=(lambda f: edit(f, put("NumberOfFrames", 3)), "several frames but no positions"),
)  # fmt: skip


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_what_is_not_one_volume_is_refused_with_the_choice(series, change, message):
    change(series)
    with pytest.raises(DataError, match=message) as caught:
        read_series(series)
    assert str(caught.value).startswith(str(series)) and "\n" not in str(caught.value)


def test_a_lean_of_less_than_half_a_pixel_is_straight(series, chest):
    place(lambda k: (0, 0.3 * k / 35, STEP * k))(series)
    same(series, chest)


def test_without_pydicom_an_error_says_what_to_install(series, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match="pip install pydicom"):
        read_series(series)


def test_reading_leaves_the_locale_as_it_is(series):
    """ITK sets it to C; then Python would take text files for ASCII."""
    before = locale.setlocale(locale.LC_ALL), locale.getencoding()
    jpeg2000(series)
    read_series(series)
    assert (locale.setlocale(locale.LC_ALL), locale.getencoding()) == before
