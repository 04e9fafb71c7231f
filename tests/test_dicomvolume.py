"""DICOM series to volumes: found by content, laid as dcm2niix lays them, or refused with the cause."""

import ctypes
import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RawDataStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)

import app.gdcm
from app.ct import read_ct
from app.dicomseries import find_series, series_sha256
from app.dicomvolume import read_series
from app.errors import InputError
from tests.dicom_series import AXIAL, CORONAL, ORIGIN_MM, SAGITTAL, SPACING_MM, Series, distinct_hu
from tests.nifti_files import mask_on
from tests.scans import smooth_hu

TOOLS = Path(sys.executable).parent  # dcm2niix and gdcmconv come with their Python packages
PRONE, FEET_FIRST = ((-1, 0, 0), (0, -1, 0)), ((-1, 0, 0), (0, 1, 0))
OBLIQUE = ((np.cos(0.3), 0, np.sin(0.3)), (0, 1, 0))
TURNED = ((0, 1, 0), (-1, 0, 0))


def read(files):
    (series,), _ = find_series(files)
    return read_series(series)


def refusal(files) -> str:
    with pytest.raises(InputError) as caught:
        read(files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path, **tags):
    """Change attributes of a file; None removes one."""
    image = pydicom.dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    correct_ambiguous_vr(image, is_little_endian=True)
    image.save_as(path)


def file_order(volume) -> np.ndarray:
    """Voxels in the axes (i, j, k) of the mask's file."""
    return volume.geometry.in_file_order(volume.hu).T


# Geometry


@pytest.mark.parametrize("orientation", [AXIAL, PRONE, FEET_FIRST, OBLIQUE, TURNED])
@pytest.mark.parametrize("order", [None, [2, 0, 4, 1, 3]])
@pytest.mark.parametrize("multiframe", [False, True])
def test_a_series_lies_as_dcm2niix_lays_it(tmp_path, orientation, order, multiframe):
    series = Series(orientation=orientation, order=order)
    folder = tmp_path / "in"
    files = [series.write_multiframe(folder / "x")] if multiframe else series.write(folder)
    volume = read(files)
    command = [TOOLS / "dcm2niix", "-z", "n", "-b", "n", "-f", "ct", "-o", tmp_path, folder]
    subprocess.run(command, check=True, capture_output=True)
    expected = nib.load(tmp_path / "ct.nii")
    assert np.array_equal(file_order(volume), np.asarray(expected.dataobj))
    mask = mask_on(volume, tmp_path, file_order(volume))
    np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
    by_itk = sitk.ReadImage(tmp_path / "mask.nii.gz"), sitk.ReadImage(tmp_path / "ct.nii")
    assert np.allclose(by_itk[0].GetOrigin(), by_itk[1].GetOrigin(), atol=1e-4)
    assert np.allclose(by_itk[0].GetDirection(), by_itk[1].GetDirection(), atol=1e-6)
    assert volume.warnings == ()


def test_every_voxel_lies_where_its_image_says(tmp_path):
    """Against the equation of PS3.3, C.7.6.2.1.1, image by image; each voxel has a value of its own."""
    series = Series(orientation=OBLIQUE, tilt_degrees=12)
    files = series.write(tmp_path / "in")
    stored = file_order(volume := read(files))
    mask = mask_on(volume, tmp_path, stored)
    for path in files:
        image = pydicom.dcmread(path)
        row, column = np.reshape(image.ImageOrientationPatient, (2, 3)).astype(float)
        for r, c in ((0, 0), (3, 0), (0, 5), (23, 31)):
            lps = np.array(image.ImagePositionPatient, float) + c * image.PixelSpacing[1] * row
            lps += r * image.PixelSpacing[0] * column
            i, j, k = np.linalg.solve(mask.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
            assert np.allclose([i, j, k], np.rint([i, j, k]), atol=1e-3)
            hu = image.pixel_array[r, c] + image.RescaleIntercept
            assert stored[round(i), round(j), round(k)] == hu


def test_gantry_tilt_shears_the_mask_and_is_told(tmp_path):
    volume = read(Series(tilt_degrees=15).write(tmp_path / "in"))
    assert volume.warnings == ("gantry tilt of 15.0 degrees: the mask is sheared as the slices are (sform)",)
    assert volume.geometry.voxel_ml == pytest.approx(np.prod(SPACING_MM) / 1000)
    mask = mask_on(volume, tmp_path, file_order(volume))
    step = mask.affine[:3, 2]
    np.testing.assert_allclose(step, [0, -5 * np.tan(np.radians(15)), 5], atol=1e-4)
    assert mask.header["qform_code"] == 0
    with pytest.raises(RuntimeError, match="orthonormal"):  # a program that cannot lay it right must not lay it wrong
        sitk.ReadImage(tmp_path / "mask.nii.gz")


def test_slice_thickness_plays_no_part(tmp_path):
    files = Series().write(tmp_path / "in")
    for path in files:
        edit(path, SliceThickness=1.25, SpacingBetweenSlices=9, SliceLocation=0)
    assert read(files).geometry.spacing_mm == pytest.approx(SPACING_MM)


def moved(along_mm=(0, 0, 0), slice_=2) -> np.ndarray:
    positions = Series().positions_mm.copy()
    positions[slice_] += along_mm
    return positions


def test_slices_within_a_hundredth_are_even(tmp_path):
    assert read(Series(positions_mm=moved((0, 0, 0.04))).write(tmp_path / "a")).warnings == ()
    thick = Series(spacing_mm=(20, 0.8, 0.75))
    thick.positions_mm[2] += (0, 0, 0.15)
    volume = read(thick.write(tmp_path / "b"))
    assert volume.warnings == ("its slices are up to 0.15 mm from even places: evened",)
    assert volume.geometry.spacing_mm[0] == pytest.approx(20)


@pytest.mark.parametrize(
    ("series", "cause"),
    [
        (Series(order=[0, 1, 3, 4]), "slices are missing (1): gaps of up to 10 mm, the others 5 mm"),
        (Series(hu=distinct_hu(9), order=[0, 1, 5, 6, 7, 8]), "slices are missing (3)"),
        (Series(positions_mm=moved((0, 0, 1))), "its slices are unevenly spaced: 4 to 6 mm"),
        (Series(positions_mm=moved((0, 0, 0.2))), "its slices are unevenly spaced: 4.8 to 5.2 mm"),
        (Series(positions_mm=moved((2, 0, 0))), "do not lie one above the other: up to 2.0 mm off a straight line"),
        (
            Series(hu=distinct_hu(6), positions_mm=[*Series().positions_mm, ORIGIN_MM]),
            "another image of the series lies at the same place",
        ),
        (
            Series(hu=distinct_hu(6), spacing_mm=(1, 0.8, 0.75), acquisitions=[1, 2] * 3),
            "images of one acquisition lie between those of another: several scans in one?",
        ),
        (
            Series(hu=distinct_hu(6), positions_mm=[*Series().positions_mm, np.add(ORIGIN_MM, (9, 0, 0))]),
            "some of its images lie side by side at one height",
        ),
    ],
)
def test_what_makes_no_even_volume_is_refused(tmp_path, series, cause):
    message = refusal(series.write(tmp_path / "in"))
    assert cause in message
    assert message.startswith(f"'{tmp_path / 'in'}': ")


@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"ImageOrientationPatient": [0.96, 0.28, 0, -0.28, 0.96, 0]}, "2 different orientations"),
        ({"PixelSpacing": [0.8, 0.76]}, "2 different pixel spacings: 0.8 x 0.75 and 0.8 x 0.76"),
        ({"Rows": 12, "PixelData": bytes(12 * 32 * 2)}, "2 different sizes: 12 x 32 and 24 x 32"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "is not two directions at a right angle"),
        ({"PixelSpacing": [0.8, 0]}, "its PixelSpacing is not positive"),
        ({"Rows": None}, "its Rows or Columns are missing"),
        ({"ImagePositionPatient": None}, "it has no ImagePositionPatient: where it lies is not known"),
        ({"SamplesPerPixel": 3}, "slices are missing (1)"),
        ({"PixelData": b"\0\0"}, "truncated: 2 of the 1536 bytes of its pixels"),
        ({"BitsAllocated": 32}, "pixels of 16 bits in 32"),
        ({"RescaleIntercept": None}, "some of its images have a RescaleIntercept, others have none"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "its HU are given by a table (Modality LUT): not supported"),
    ],
)
def test_one_odd_file_is_named_with_its_cause(tmp_path, tags, cause):
    files = Series().write(tmp_path / "in")
    edit(files[3], **tags)
    assert cause in refusal(files)


def test_a_file_that_is_there_twice_is_used_once(tmp_path):
    files = Series().write(tmp_path / "in")
    copies = [shutil.copy(path, tmp_path / "in" / f"copy of {path.name}") for path in files[1:3]]
    volume = read([*files, *map(Path, copies)])
    assert volume.warnings == ("2 images are there twice: each is used once",)
    assert np.array_equal(volume.hu, read(files).hu)


# Finding


def test_series_are_found_by_content(tmp_path):
    one, two = Series(number=3), Series(number=7, hu=distinct_hu() + 9)
    files = one.write(tmp_path / "in" / "a") + two.write(tmp_path / "in" / "a")
    rng = random.Random(0)
    shuffled = []
    for path in files:
        place = tmp_path / "in" / rng.choice("ab") / f"{rng.randrange(10**9)}.tmp"
        place.parent.mkdir(exist_ok=True)
        shuffled.append(path.rename(place))
    series, others = find_series(shuffled)
    assert not others
    assert sorted(found.number for found in series) == [3, 7]
    for found, made in zip(sorted(series, key=lambda found: found.number), (one, two), strict=True):
        assert np.array_equal(np.sort(read_series(found).hu, None), np.sort(made.hu, None))


def test_what_is_no_slice_of_an_axial_volume_is_passed_over(tmp_path):
    wanted = Series(number=1).write(tmp_path / "in")
    kinds = {
        2: {"tags": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}},
        3: {"tags": {"SOPClassUID": SecondaryCaptureImageStorage}},
        4: {"tags": {"SOPClassUID": MultiFrameGrayscaleWordSecondaryCaptureImageStorage}},
        5: {"tags": {"Modality": "RTSTRUCT", "SOPClassUID": RTStructureSetStorage, "PixelData": None}},
        6: {"tags": {"Modality": "MR"}},
        7: {"orientation": CORONAL},
        8: {"orientation": SAGITTAL},
        9: {"hu": distinct_hu(1)},
        10: {"tags": {"ImagePositionPatient": None, "ImageOrientationPatient": None}},  # a screenshot
        11: {"tags": {"PixelData": None, "SOPClassUID": RawDataStorage}},
        12: {"tags": {"SamplesPerPixel": 3}},
    }
    others = [path for number, kind in kinds.items() for path in Series(number=number, **kind).write(tmp_path / "in")]
    (series,), passed_over = find_series(wanted + others)
    assert series.number == 1
    assert passed_over == {
        "localizer": 5,
        "secondary capture": 10,
        "RTSTRUCT": 5,
        "MR": 5,
        "image of a CT series that is not axial": 10,
        "image of a CT series at one place (a single slice)": 1,
        "CT image without a position": 5,
        "CT object without an image": 5,
        "colour image": 5,
    }


@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"ImagePositionPatient": None}, "it has no ImagePositionPatient: where it lies is not known"),
        ({"ImageOrientationPatient": None}, "it has no ImageOrientationPatient: where it lies is not known"),
        ({"PixelSpacing": None}, "it has no PixelSpacing: where it lies is not known"),
        ({"PixelSpacing": [0, 0]}, "its PixelSpacing is not positive"),
    ],
)
def test_a_series_that_does_not_say_where_it_lies_is_refused_not_passed_over(tmp_path, tags, cause):
    files = Series(tags=tags).write(tmp_path / "in")
    assert refusal(files).endswith(f"'{files[0].name}': {cause}")
    good = Series().write(tmp_path / "half")
    assert refusal([good[0], *Series(tags=tags).write(tmp_path / "half")[1:]]).endswith(cause)


@pytest.mark.parametrize(
    ("text", "number"), [("1598734612", 1598734612), (" 7 ", 7), ("-7", None), ("7.5", None), ("9" * 5000, None)]
)
def test_no_series_is_refused_for_its_number(tmp_path, text, number):
    files = Series().write(tmp_path / "in")
    for path in files:
        image = pydicom.dcmread(path)
        image.add(pydicom.DataElement("SeriesNumber", "LO", text, validation_mode=pydicom.config.IGNORE))
        image.save_as(path)
    (series,), _ = find_series(files)
    assert series.number == number and not series.damaged
    assert np.array_equal(file_order(read_series(series)).T[:, ::-1], distinct_hu())


def test_files_that_cannot_be_read_are_not_passed_over(tmp_path):
    files = Series().write(tmp_path / "in")
    cut = tmp_path / "in" / "cut"
    cut.write_bytes(files[4].read_bytes()[:300])
    cause = "1 files that cannot be read, 'cut' among them (truncated: it ends inside its header): lost slices?"
    assert cause in refusal([*files[:4], cut])
    image = pydicom.dcmread(files[4])
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(files[4], image)
    assert "(deflated DICOM is not read: convert it to explicit little endian): lost slices?" in refusal(files)
    alone = tmp_path / "alone" / "cut"
    alone.parent.mkdir()
    shutil.copy(cut, alone)
    assert "'cut' among them" in refusal([alone])
    assert len(find_series([*files, alone])[0]) == 2  # the damage is in another folder


# Pixels


def stored_bytes(hu, kind, bits, junk=0):
    values = (hu.astype(np.int32) + 1024) if kind == "u" else hu.astype(np.int32)
    return ((values & (2**bits - 1)) | junk).astype("<u2").tobytes()


@pytest.mark.parametrize(("kind", "bits"), [("u", 12), ("i", 12), ("u", 16), ("i", 16), ("i", 13)])
def test_stored_bits_of_every_kind(tmp_path, kind, bits):
    hu = np.random.default_rng(0).integers(-1024, 2048 if bits == 12 else 3071, (3, 8, 8)).astype(np.int16)
    files = Series(hu=hu).write(tmp_path / "in")
    for k, path in enumerate(files):
        edit(
            path,
            PixelData=stored_bytes(hu[k], kind, bits, junk=0xF000 if bits == 12 else 0),
            BitsStored=bits,
            HighBit=bits - 1,
            PixelRepresentation=int(kind == "i"),
            RescaleIntercept=-1024 if kind == "u" else 0,
        )
    assert np.array_equal(file_order(read(files)).T[:, ::-1], hu)


def test_each_slice_has_its_own_rescaling(tmp_path):
    hu = np.full((3, 4, 4), 100, np.int16)
    files = Series(hu=hu).write(tmp_path / "in")
    edit(files[1], RescaleSlope=0.5, RescaleIntercept=-1024)
    edit(files[2], RescaleSlope=None, RescaleIntercept=-1000)
    assert [plane[0, 0] for plane in read(files).hu] == [100, -462, 124]


def test_acquisitions_one_above_the_other_are_one_scan(tmp_path):
    files = Series(hu=distinct_hu(6), acquisitions=[4, 4, 2, 2, 3, 3]).write(tmp_path / "in")
    assert read(files).hu.shape[0] == 6


def test_which_file_comes_first_does_not_decide_what_a_series_is(tmp_path):
    axial = Series().write(tmp_path / "in")
    for name in ("A", "Z"):
        scout = shutil.copy(Series(orientation=CORONAL).write(tmp_path / "scout")[0], tmp_path / "in" / name)
        assert "2 different orientations" in refusal([*axial, Path(scout)])


def test_series_of_no_uid_are_told_apart_by_their_folders(tmp_path):
    files = [file for name in "ab" for file in Series(tags={"SeriesInstanceUID": ""}).write(tmp_path / name)]
    assert [len(series.files) for series in find_series(files)[0]] == [5, 5]


def test_a_small_field_is_in_mm_as_the_standard_says(tmp_path):
    """An inner ear; a file with such voxels might be a trunk in cm."""
    hu = np.clip(smooth_hu((4, 64, 64)), -1000, 1000)
    files = Series(hu=hu, spacing_mm=(0.625, 0.1875, 0.1875)).write(tmp_path / "in")
    (series,), _ = find_series(files)
    assert read_ct(series).geometry.spacing_mm == pytest.approx((0.625, 0.1875, 0.1875))


def test_compressed_pixels_that_gdcm_would_invert_are_refused(tmp_path):
    files = Series(hu=distinct_hu(2), tags={"PhotometricInterpretation": "MONOCHROME1"}).write(tmp_path / "in")
    assert np.array_equal(file_order(read(files)).T[:, ::-1], distinct_hu(2))  # plain values are what they are
    subprocess.run([TOOLS / "gdcmconv", "--rle", files[0], files[0]], check=True, capture_output=True)
    assert "compressed pixels of MONOCHROME1 are not supported" in refusal(files)


def test_pixels_that_were_not_scanned_are_air_and_tissue_is_not(tmp_path):
    hu = np.zeros((2, 4, 4), np.int16)
    hu[:, 0], hu[:, 1] = -3024, 40
    files = Series(hu=hu).write(tmp_path / "in")
    for path in files:
        edit(path, PixelPaddingValue=-2000)
    assert set(np.unique(read(files).hu)) == {-1024, 0, 40}
    for path in files:
        edit(path, PixelPaddingValue=1064)  # of 40 HU: somebody's mistake
    assert set(np.unique(read(files).hu)) == {-3024, 0, 40}
    for path in files:
        edit(path, PixelPaddingValue=None)
        edit(path, PixelRepresentation=0, PixelPaddingValue=63536)
    assert set(np.unique(read(files).hu)) == {-1024, 0, 40}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_plain_encodings(tmp_path, syntax):
    files = Series().write(tmp_path / "in")
    expected = read(files).hu
    for path in files:
        image = pydicom.dcmread(path)
        image.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, "<i2").astype(">i2").tobytes()
        options = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
        pydicom.dcmwrite(path, image, **options)
    assert np.array_equal(read(files).hu, expected)


@pytest.mark.parametrize("multiframe", [False, True])
@pytest.mark.parametrize("codec", ["jpeg", "j2k", "jpegls", "rle"])
def test_compressed_series(tmp_path, codec, multiframe):
    series = Series(hu=distinct_hu(2))
    files = [series.write_multiframe(tmp_path / "in" / "x")] if multiframe else series.write(tmp_path / "in")
    expected = read(files).hu
    for path in files:
        subprocess.run([TOOLS / "gdcmconv", f"--{codec}", path, path], check=True, capture_output=True)
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(read(files).hu, expected)

    whole = files[-1].read_bytes()
    files[-1].write_bytes(whole[:-20])
    assert "truncated: its compressed pixels have no end" in refusal(files)


def test_compressed_pixels_that_lie_about_their_size_take_no_memory(tmp_path):
    """8 GB by their own header, 3 KB by that of DICOM."""
    files = Series(hu=distinct_hu(2)).write(tmp_path / "in")
    subprocess.run([TOOLS / "gdcmconv", "--j2k", files[0], files[0]], check=True, capture_output=True)
    raw, size = files[0].read_bytes(), b"\0\0\0\x20\0\0\0\x18"
    at = raw.index(size, raw.index(b"\xe0\x7f\x10\x00"))
    files[0].write_bytes(raw[:at] + b"\0\1\0\x20\0\1\0\x18" + raw[at + len(size) :])
    assert "GDCM cannot decode its pixels (1.2.840.10008.1.2.4.90): refused" in refusal(files)


def test_a_compressed_series_in_a_folder_whose_name_is_not_utf8(tmp_path):
    files = Series(hu=distinct_hu(2)).write(tmp_path / os.fsdecode(b"M\xfcller"))
    expected = read(files).hu
    plain = shutil.copy(files[0], tmp_path / "plain")
    subprocess.run([TOOLS / "gdcmconv", "--rle", plain, files[0]], check=True, capture_output=True)
    assert np.array_equal(read(files).hu, expected)


def test_a_decoder_needs_no_more_memory_where_there_are_more_cpus(tmp_path, monkeypatch):
    """The BLAS of numpy starts a thread for each CPU, which reserves 40 MB of what the decoder may have."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = Series(hu=distinct_hu(2)).write(tmp_path / "in")[0]
    subprocess.run([TOOLS / "gdcmconv", "--rle", path, path], check=True, capture_output=True)
    with app.gdcm.Decoder() as decoder:
        decoder.decode(path, 1, 24 * 32)
        status = Path(f"/proc/{decoder._process.pid}/status").read_text()
    assert "\nThreads:\t1\n" in status


def test_a_decoder_lives_with_a_limit_that_it_cannot_raise(tmp_path):
    """As batch systems set it; a container's root may not raise it either."""

    def limited():
        ctypes.CDLL(None).prctl(24, 24, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_RESOURCE
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    path = Series(hu=distinct_hu(2)).write(tmp_path / "in")[0]
    subprocess.run([TOOLS / "gdcmconv", "--rle", path, path], check=True, capture_output=True)
    code = (
        "import pathlib, sys\nfrom app.gdcm import Decoder\n"
        "with Decoder() as decoder: print(decoder.decode(pathlib.Path(sys.argv[1]), 1, 24 * 32).sum())"
    )
    run = subprocess.run([sys.executable, "-c", code, path], preexec_fn=limited, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (f"{distinct_hu(2)[0].sum()}\n", "")


def test_a_decoder_that_does_not_end_is_ended(tmp_path, monkeypatch):
    files = Series(hu=distinct_hu(2)).write(tmp_path / "in")
    subprocess.run([TOOLS / "gdcmconv", "--rle", files[1], files[1]], check=True, capture_output=True)
    (tmp_path / "slow.py").write_text('import time; time.sleep(20); print(\'{"error": "late"}\', flush=True)')
    for name, value in {"__file__": str(tmp_path / "slow.py"), "_SECONDS": 0.2, "_SECONDS_PER_FRAME": 0}.items():
        monkeypatch.setattr(app.gdcm, name, value)
    assert refusal(files).endswith("ended without an answer")


def test_the_time_of_one_file_does_not_end_the_next(tmp_path, monkeypatch):
    files = Series(hu=distinct_hu(3)).write(tmp_path / "in")
    expected = read(files).hu
    for path in files:
        subprocess.run([TOOLS / "gdcmconv", "--rle", path, path], check=True, capture_output=True)
    cancelled, cancel = [], threading.Timer.cancel
    monkeypatch.setattr(threading.Timer, "cancel", lambda timer: (cancelled.append(timer), cancel(timer)))
    assert np.array_equal(read(files).hu, expected)
    assert len(cancelled) == 3


def test_compressed_frames_with_a_rescaling_of_their_own_are_refused(tmp_path):
    path = Series(hu=distinct_hu(2)).write_multiframe(tmp_path / "in" / "x")
    image = pydicom.dcmread(path)
    del image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for frame, intercept in zip(image.PerFrameFunctionalGroupsSequence, (-1024, -924), strict=True):
        rescaling = pydicom.Dataset()
        rescaling.RescaleIntercept, rescaling.RescaleSlope, rescaling.RescaleType = intercept, 1, "HU"
        frame.PixelValueTransformationSequence = [rescaling]
    image.save_as(path)
    assert (read([path]).hu[1] - read([path]).hu[0] == 24 * 32 + 100).all()  # plain ones are read
    subprocess.run([TOOLS / "gdcmconv", "--rle", path, path], check=True, capture_output=True)
    assert "compressed frames, each with a rescaling of its own, are not supported" in refusal([path])


def test_more_voxels_than_memory_are_refused(tmp_path, monkeypatch):
    files = Series().write(tmp_path / "in")
    monkeypatch.setattr("app.volume._memory_bytes", lambda: 2 * 5 * 24 * 32 - 1)
    assert "more than the memory of this machine" in refusal(files)


def test_a_decoder_that_crashes_ends_the_series_alone(tmp_path, monkeypatch):
    files = Series(hu=distinct_hu(2)).write(tmp_path / "in")
    subprocess.run([TOOLS / "gdcmconv", "--rle", files[1], files[1]], check=True, capture_output=True)
    (tmp_path / "crash.py").write_text("import os; os.abort()")
    monkeypatch.setattr(app.gdcm, "__file__", str(tmp_path / "crash.py"))
    assert f"'{files[1].name}': GDCM cannot decode its pixels (1.2.840.10008.1.2.5): ended" in refusal(files)


# Files


def test_the_checksum_is_of_the_files_whatever_they_are_called(tmp_path):
    files = Series().write(tmp_path / "in")
    sums = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    volume = read(files)
    assert volume.sha256 == series_sha256(reversed(sums)) == hashlib.sha256("\n".join(sums).encode()).hexdigest()
    renamed = [path.rename(path.with_name(f"{k}.dcm")) for k, path in enumerate(reversed(files))]
    assert read(renamed).sha256 == volume.sha256


def test_a_file_that_changes_or_goes_is_refused(tmp_path, monkeypatch):
    files = Series().write(tmp_path / "in")
    (series,), _ = find_series(files)
    inner, real = os.fstat, read_series(series)
    states = iter(range(2, 10**6))
    monkeypatch.setattr(os, "fstat", lambda d: (os.utime(files[2], ns=(next(states),) * 2), inner(d))[1])
    with pytest.raises(InputError, match=f"'{files[2].name}': the file changed while it was read"):
        read_series(series)
    monkeypatch.undo()
    assert np.array_equal(read_series(series).hu, real.hu)
    files[1].unlink()
    with pytest.raises(InputError, match=f"'{files[1].name}': No such file or directory"):
        read_series(series)


def test_reading_needs_the_volume_and_little_more(tmp_path):
    Series(hu=np.random.default_rng(0).integers(-1000, 1000, (60, 512, 256)).astype(np.int16)).write(tmp_path / "in")
    code = (
        "import pathlib, resource, sys\n"
        "from app.dicomseries import find_series; from app.dicomvolume import read_series\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "(series,), _ = find_series(pathlib.Path(sys.argv[1]).iterdir())\n"
        "before = peak(); volume = read_series(series); print(peak() - before, volume.hu.nbytes)\n"
        "print(*{'SimpleITK', 'scipy', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "in"], capture_output=True, text=True, check=True)
    figures, imports = run.stdout.split("\n", 1)
    used, volume = map(int, figures.split())
    assert used < volume + 20 * 2**20
    assert imports == "\n"
