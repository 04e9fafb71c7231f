"""A mask becomes a DICOM Segmentation whose frames lie on the images they were made from, however both are sorted."""

import itertools
import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from app.labels import ORGANS
from evaluation.dicom_series import lay_on_series
from evaluation.dicomseg import main
from evaluation.masks import read_mask
from tests.dicom_series import CORONAL, INTERCEPT_HU, SAGITTAL, Series, distinct_hu

COS, SIN = np.cos(0.3), np.sin(0.3)
SHUFFLED = (3, 0, 4, 1, 2)
SERIES = {
    "axial": Series(),
    "shuffled": Series(order=SHUFFLED),
    "downwards": Series(positions_mm=Series().positions_mm[::-1]),
    "coronal": Series(orientation=CORONAL, order=SHUFFLED),
    "sagittal": Series(orientation=SAGITTAL, order=SHUFFLED),
    "oblique": Series(orientation=((COS, SIN, 0), (-SIN * COS, COS * COS, SIN)), order=SHUFFLED),
    "thin": Series(spacing_mm=(0.625, 0.7, 0.7)),
}
TILTED = Series(tilt_degrees=12, order=SHUFFLED)
ROUNDED = Series(spacing_mm=(0.625, 0.7, 0.7), positions_mm=Series(spacing_mm=(0.625, 0.7, 0.7)).positions_mm.round(1))


def labels_of(hu):
    """All 14 labels in every slice; which one follows from a voxel's HU, and that from its place in the series."""
    return ((hu.astype(int) + 1000) // 7 % 14).astype(np.uint8)


def affine_of(series):
    """NIfTI affine (column, row, slice) of regular slices, sheared where the gantry is tilted."""
    row, column = np.array(series.orientation)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * series.spacing_mm[2], column * series.spacing_mm[1]
    affine[:3, 2] = (series.positions_mm[-1] - series.positions_mm[0]) / (len(series.hu) - 1)
    affine[:3, 3] = series.positions_mm[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def save_mask(path, labels, affine):
    """`labels` in the file's axes."""
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def mask_of(series, folder, labels=None):
    labels = labels_of(series.hu) if labels is None else labels
    return save_mask(folder / "mask.nii.gz", np.ascontiguousarray(labels.T), affine_of(series))


@pytest.fixture
def mask(tmp_path):
    """On `Series()`."""
    return mask_of(Series(), tmp_path)


@pytest.fixture
def dicom(tmp_path):
    """The folder of `Series()`."""
    return Series().write(tmp_path / "dicom")[0].parent


def program(name):
    found = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    return found or pytest.skip(f"{name} is not installed")


def convert(mask, dicom, *options):
    """Run the command, into a folder that it makes; the segmentation is what pydicom reads."""
    output = mask.parent / "new" / "seg.dcm"
    assert main([str(mask), str(dicom), "-o", str(output), *options]) == 0
    assert list(output.parent.iterdir()) == [output]
    return pydicom.dcmread(output)


def frames_of(seg):
    """{(SOPInstanceUID, frame number or None, segment number): (ImagePositionPatient, pixels)}."""
    frames = {}
    for group, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        [source] = group.DerivationImageSequence[0].SourceImageSequence
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        key = (source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber"), segment)
        assert key not in frames
        frames[key] = (list(group.PlanePositionSequence[0].ImagePositionPatient), pixels)
    return frames


def check_frames(seg, dicom_paths):
    """Every frame says of its source image what that image's own pixels say."""
    frames = frames_of(seg)
    expected = 0
    for image in map(pydicom.dcmread, dicom_paths):
        assert seg.FrameOfReferenceUID == image.FrameOfReferenceUID
        labels = labels_of(image.pixel_array + INTERCEPT_HU)
        if labels.ndim == 2:
            sources = [(None, image.ImagePositionPatient, labels)]
        else:
            groups = image.PerFrameFunctionalGroupsSequence
            positions = [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]
            sources = zip(range(1, len(labels) + 1), positions, labels, strict=True)
        for number, position_mm, truth in sources:
            for organ in ORGANS:
                found_mm, pixels = frames[image.SOPInstanceUID, number, organ.label]
                assert found_mm == position_mm
                np.testing.assert_array_equal(pixels, truth == organ.label)
                expected += 1
    assert len(frames) == expected


MULTIFRAME = ("shuffled", "downwards", "oblique")


@pytest.mark.parametrize(("name", "multiframe"), [*((n, False) for n in SERIES), *((n, True) for n in MULTIFRAME)])
def test_each_frame_lies_on_its_image(tmp_path, name, multiframe):
    """The mask is made from what dcm2niix makes of the series: no geometry of ours on the way."""
    (dicom := tmp_path / "dicom").mkdir()
    paths = [SERIES[name].write_multiframe(dicom / "frames")] if multiframe else SERIES[name].write(dicom)
    subprocess.run([program("dcm2niix"), "-f", "ct", "-o", tmp_path, dicom], check=True, capture_output=True)
    ct = nibabel.load(tmp_path / "ct.nii")
    mask = save_mask(tmp_path / "mask.nii.gz", labels_of(np.asarray(ct.dataobj)), ct.affine)
    check_frames(convert(mask, dicom), paths)


@pytest.mark.parametrize("series", [TILTED, ROUNDED], ids=["tilted", "rounded"])
def test_a_tilted_gantry_and_rounded_positions(tmp_path, series):
    paths = series.write(tmp_path / "dicom")
    seg = convert(mask_of(series, tmp_path), tmp_path / "dicom")
    check_frames(seg, paths)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(series.spacing_mm[0], abs=0.05)  # at right angles


def said_frame_by_frame(tmp_path):
    image = pydicom.dcmread(path := SERIES["shuffled"].write_multiframe(tmp_path / "frames"))
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        for group in image.PerFrameFunctionalGroupsSequence:
            group[keyword] = image.SharedFunctionalGroupsSequence[0][keyword]
        del image.SharedFunctionalGroupsSequence[0][keyword]
    image.save_as(path)
    return [path]


def orientation_of_another_last_digit(tmp_path):
    paths = Series().write(tmp_path / "dicom")
    image = pydicom.dcmread(paths[2])
    image.ImageOrientationPatient = [1, 1e-7, 0, 0, 1, 0]
    image.save_as(paths[2])
    return paths


def without_what_may_be_missing(tmp_path):
    tags = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    tags += ("AccessionNumber", "ReferringPhysicianName", "SliceThickness", "SeriesNumber", "ImageType")
    return Series(tags=dict.fromkeys(tags)).write(tmp_path / "dicom")


def values_not_of_their_type(tmp_path):
    paths = Series(tags={"PatientWeight": 70.5}).write(tmp_path / "dicom")
    for path in paths:
        whole = path.read_bytes()
        assert whole.count(b"DS\4\x0070.5") == whole.count(b"\x20\0\x11\0IS\2\x001 ") == 1
        path.write_bytes(whole.replace(b"70.5", b"70,5").replace(b"\x20\0\x11\0IS\2\x001 ", b"\x20\0\x11\0IS\2\0x "))
    return paths


def an_image_twice(tmp_path):
    Series().write(tmp_path / "dicom" / "copy")  # referred to once
    return Series().write(tmp_path / "dicom" / "a")


def without_a_preamble(tmp_path):
    paths = Series().write(tmp_path / "whole")
    (tmp_path / "dicom").mkdir()
    for path in paths:
        raw = path.read_bytes()  # the meta header goes with it
        (tmp_path / "dicom" / path.name).write_bytes(raw[raw.index(b"\x08\0\x08\0CS") :])
    return paths


def in_folders_that_are_links(tmp_path):
    paths = Series().write(tmp_path / "elsewhere")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "link").symlink_to(tmp_path / "elsewhere")
    return paths


def frames_that_are_not_counted(tmp_path):
    paths = Series().write(tmp_path / "dicom")
    for path in paths:
        image = pydicom.dcmread(path)
        image.NumberOfFrames = None
        image.save_as(path)
    return paths


@pytest.mark.parametrize(
    "write",
    [without_a_preamble, in_folders_that_are_links, frames_that_are_not_counted, said_frame_by_frame,
     orientation_of_another_last_digit, without_what_may_be_missing, values_not_of_their_type, an_image_twice],
    ids=lambda write: write.__name__,
)  # fmt: skip
def test_headers_may_be(tmp_path, mask, write):
    paths = write(tmp_path)
    check_frames(convert(mask, tmp_path / "dicom" if len(paths) > 1 else paths[0]), paths)


def test_the_masks_axes_may_have_any_order_and_direction(tmp_path):
    TILTED.write(tmp_path / "dicom")
    labels = labels_of(TILTED.hu).T
    for axes, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        turn = np.column_stack([axes, signs])
        affine = affine_of(TILTED) @ inv_ornt_aff(turn, labels.shape)
        mask = save_mask(tmp_path / "mask.nii.gz", apply_orientation(labels, turn), affine)
        on_series = lay_on_series(read_mask(mask), tmp_path / "dicom")
        at = [TILTED.positions_mm.tolist().index(list(image.ImagePositionPatient)) for image in on_series.images]
        assert sorted(at) == list(range(5))
        np.testing.assert_array_equal(on_series.labels, labels_of(TILTED.hu)[at], err_msg=str(turn))


def test_dcmqi_reads_back_the_mask_with_names_and_colours(tmp_path):
    """3D Slicer reads segmentations with dcmqi."""
    reader = program("segimage2itkimage")
    series = SERIES["oblique"]
    series.write(tmp_path / "dicom")
    labels = labels_of(series.hu)
    labels[1:3] = 0
    mask = mask_of(series, tmp_path, labels)
    convert(mask, tmp_path / "dicom")
    options = ["--inputDICOM", tmp_path / "new/seg.dcm", "--outputDirectory", tmp_path, "-t", "nii", "--mergeSegments"]
    subprocess.run([reader, *options], check=True, capture_output=True)
    read, written = (nibabel.as_closest_canonical(nibabel.load(path)) for path in (tmp_path / "1.nii.gz", mask))
    np.testing.assert_array_equal(read.dataobj, written.dataobj)
    np.testing.assert_allclose(read.affine, written.affine, atol=1e-4)
    [segments] = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]
    found = {s["labelID"]: (s["SegmentLabel"], tuple(s["recommendedDisplayRGBValue"])) for s in segments}
    assert found == {organ.label: (organ.name, organ.colour) for organ in ORGANS}


@pytest.mark.parametrize("multiframe", [False, True])
def test_dciodvfy_finds_no_fault(tmp_path, multiframe):
    """Neither in what is written nor in the test's own series."""
    validator = program("dciodvfy")
    dicom = TILTED.write_multiframe(tmp_path / "f") if multiframe else TILTED.write(tmp_path / "dicom")[0].parent
    convert(mask_of(TILTED, tmp_path, labels_of(TILTED.hu) % 4), dicom)
    for path in (tmp_path / "new" / "seg.dcm", dicom if multiframe else next(dicom.iterdir())):
        run = subprocess.run([validator, path], capture_output=True, text=True)
        assert "Error" not in run.stderr and "Warning" not in run.stderr
        assert run.returncode == 0 and run.stderr


SNOMED = (  # by label, by hand from the tables of DICOM PS3.16: structure and, of a pair, side (right 24028007)
    "10200004", "64033007 24028007", "78961009", "15776009", "15825003", "64131007", "23451007 24028007",
    "23451007 7771000", "28231008", "32849002", "69695003", "38848004", "64033007 7771000",
)  # fmt: skip


def test_segments_have_coded_names(mask, dicom):
    found = {}
    for segment in convert(mask, dicom).SegmentSequence:
        [name] = segment.SegmentedPropertyTypeCodeSequence
        codes = (name, *name.get("SegmentedPropertyTypeModifierCodeSequence", ()))
        assert {code.CodingSchemeDesignator for code in codes} == {"SCT"}
        found[segment.SegmentLabel] = " ".join(code.CodeValue for code in codes)
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert found == {organ.name: code for organ, code in zip(ORGANS, SNOMED, strict=True)}


def test_organs_that_are_not_there_are_left_out_and_named(tmp_path, dicom, capsys):
    labels = labels_of(Series().hu)
    labels[~np.isin(labels, (3, 13))] = 0
    labels[1] = 0
    seg = convert(mask_of(Series(), tmp_path, labels), dicom)
    assert [(s.SegmentNumber, s.SegmentLabel) for s in seg.SegmentSequence] == [(1, "spleen"), (2, "left kidney")]
    assert seg.NumberOfFrames == 4 * 2
    for (_, _, number), (position_mm, pixels) in frames_of(seg).items():
        [k] = np.flatnonzero((Series().positions_mm == position_mm).all(axis=1))
        np.testing.assert_array_equal(pixels, labels[k] == (3, 13)[number - 1])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("not in the mask, left out: liver, right kidney, pancreas") and "spleen" not in line


@pytest.mark.filterwarnings("error")  # pydicom's warnings repeat the value
@pytest.mark.parametrize(
    ("character_set", "name"),
    [("ISO_IR 100", "Erfunden^Jörg"), ("GB18030", "测试^虚构"), ("ISO_IR 192", "Inventé^Œuvre=虚构")],
)
def test_patient_and_study_are_the_series_own_and_not_printed(tmp_path, mask, capfd, character_set, name):
    """Values that break DICOM's rules too: they are the scanner's, and what the archive knows the patient by."""
    identity = {
        "SpecificCharacterSet": character_set,
        "PatientName": name,
        "PatientID": "INVENTED-" + "0" * 70,
        "PatientBirthDate": "1900.01.01",
        "PatientSex": "invented",
        "StudyDate": "00000000",
        "StudyTime": "noon",
        "AccessionNumber": "INVENTED-" + "1" * 20,
    }
    with pydicom.config.disable_value_validation():
        paths = Series(tags=identity).write(tmp_path / "dicom")
    seg = convert(mask, tmp_path / "dicom")
    assert capfd.readouterr() == ("", "")
    with pydicom.config.disable_value_validation():
        assert {keyword: str(seg[keyword].value) for keyword in identity} == identity
        source = pydicom.dcmread(paths[0])
    assert (seg.StudyInstanceUID, seg.StudyID) == (source.StudyInstanceUID, source.StudyID)
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID


def test_the_weights_are_named_where_the_run_is_logged(tmp_path, mask, dicom):
    case = {"name": "mask", "status": "done", "input_sha256": "0", "mask_sha256": sha256(mask.read_bytes()).hexdigest()}
    log = tmp_path / "logs" / "run" / "run.json"
    log.parent.mkdir(parents=True)
    for run, version in (([case], "5" * 64), ([{**case, "mask_sha256": "another"}], "unknown")):
        log.write_text(json.dumps({"cases": run, "weights": {"sha256": "5" * 64}}))
        segment = convert(mask, dicom).SegmentSequence[0]
        assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == version


# Which series


def study_with(folder, *series):
    """Nested folders with other files among them."""
    for one in series:
        one.write(folder / "study" / f"series{one.number}")
    Series(number=90, tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}).write(folder / "study" / "scout")
    mr = Series(number=91, tags={"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}).write(folder / "study" / "mr")
    (folder / "notes.txt").write_text("no DICOM")
    (folder / "empty").touch()
    (folder / "cut").write_bytes(mr[0].read_bytes()[:400])
    return folder


def test_the_series_that_the_mask_lies_on_is_found_among_others(tmp_path):
    thick = Series(distinct_hu(3), spacing_mm=(10, 0.8, 0.75), number=2)  # every second of the thin slices
    study = study_with(tmp_path / "dicom", Series(), thick, Series(orientation=SAGITTAL, number=3)) / "study"
    check_frames(convert(mask_of(thick, tmp_path), study), (study / "series2").iterdir())


def test_one_of_two_series_on_one_grid_is_chosen_by_its_number(tmp_path, mask, capsys):
    study = study_with(tmp_path / "dicom", Series(number=3), Series(number=4), Series(orientation=SAGITTAL, number=5))
    line = refusal(capsys, mask, study)
    assert line == f"error: {mask} lies on 2 series in {study}: choose one by its number (3, 4)"
    assert refusal(capsys, mask, study, "--series-number", "7") == f"error: {study}: no CT series with number 7"
    check_frames(convert(mask, study, "--series-number", "4"), (study / "study" / "series4").iterdir())


def test_where_numbers_do_not_tell_two_series_apart_their_folders_do(tmp_path, mask, capsys):
    for number in (3, 4):
        Series(number=number, tags={"SeriesNumber": None}).write(tmp_path / "dicom" / f"s{number}")
    folders = f"{tmp_path}/dicom/s3, {tmp_path}/dicom/s4"
    assert refusal(capsys, mask, tmp_path / "dicom").endswith(f"give the folder of one alone ({folders})")
    convert(mask, tmp_path / "dicom" / "s3")


# What is refused


def refusal(capsys, mask, dicom, *options, output=None):
    output = output or mask.parent / "seg.dcm"
    before = sorted(output.parent.rglob("*"))
    assert main([str(mask), str(dicom), "-o", str(output), *options]) == 2
    assert sorted(output.parent.rglob("*")) == before
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert out == "" and line.startswith("error: ")
    return line


def shifted(axis, voxels):
    shift = np.eye(4)
    shift[axis, 3] = voxels
    return affine_of(Series()) @ shift


def scaled(axis, by):
    return affine_of(Series()) @ np.diag([by if axis == a else 1.0 for a in range(4)])


@pytest.mark.parametrize(
    ("affine", "difference"),
    [
        (shifted(0, 0.5), "0.375 mm"), (shifted(1, 0.5), "0.4 mm"), (shifted(2, 0.5), "2.5 mm"),
        (shifted(2, 1), "5 mm"), (shifted(0, -10), "7.5 mm"),
        (scaled(0, -1), "mm"), (scaled(1, 1.05), "0.96 mm"), (scaled(2, 1.2), "3 mm"),
        *((affine_of(series), "mm") for series in (TILTED, SERIES["coronal"], SERIES["oblique"])),
    ],
)  # fmt: skip
def test_a_mask_beside_the_series_is_refused(tmp_path, dicom, capsys, affine, difference):
    mask = save_mask(tmp_path / "mask.nii.gz", labels_of(Series().hu).T, affine)
    line = refusal(capsys, mask, dicom)
    assert line.startswith(f"error: {mask} does not lie on {dicom}: series 1: its images ")
    assert line.endswith(f"{difference} from the mask's slices") or "pixels" in line


@pytest.mark.parametrize(
    ("series", "difference"),
    [
        (Series(order=(0, 1, 3, 4)), "1 of the mask's 5 slices have no image"),
        (Series(distinct_hu(6)), "up to 5 mm from"),
        (Series(distinct_hu(5, 24, 24)), r"24 x 24 pixels, the mask's slices 24 x 32"),
        (Series(tags={"FrameOfReferenceUID": None}), "no FrameOfReferenceUID"),
        (Series(tags={"ImageOrientationPatient": None}), "no position, orientation or pixel spacing"),
        (Series(tags={"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}), "orientation"),
        (Series(tags={"StudyInstanceUID": None}), "no StudyInstanceUID"),
        (Series(tags={"SOPInstanceUID": "1.2.3"}), "several of its images have one SOPInstanceUID"),
    ],
)
def test_a_series_that_is_not_the_masks_is_refused(tmp_path, mask, capsys, series, difference):
    series.write(tmp_path / "dicom")
    line = refusal(capsys, mask, tmp_path / "dicom")
    assert line.startswith(f"error: {mask} does not lie on {tmp_path / 'dicom'}: series 1: ") and difference in line


def test_the_slice_of_a_damaged_image_is_missed(mask, dicom, capsys):
    damaged = sorted(dicom.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes().replace(b"\x28\0\x10\0US", b"\x28\0\x10\0Ub"))  # no type of value
    assert refusal(capsys, mask, dicom).endswith("1 of the mask's 5 slices have no image")


def test_frames_at_one_place_are_refused(tmp_path, mask, capsys):
    twice = [0, 1, 2, 3, 4, 4]
    path = Series(distinct_hu(6), positions_mm=Series().positions_mm[twice]).write_multiframe(tmp_path / "frames")
    assert "frames lie at one place" in refusal(capsys, mask, path)


def test_what_is_not_there_is_refused(tmp_path, mask, dicom, capsys):
    assert refusal(capsys, mask, tmp_path / "none") == f"error: {tmp_path / 'none'}: no such file or folder"
    assert refusal(capsys, mask, mask) == f"error: {mask}: no CT series"
    empty = mask_of(Series(), tmp_path, np.zeros_like(labels_of(Series().hu)))
    assert f"{empty}: no organ in it" in refusal(capsys, empty, dicom)


# Writing


def test_a_file_that_is_there_is_replaced_but_no_input(mask, dicom, capsys):
    uids = [convert(mask, dicom).SOPInstanceUID for _ in range(2)]
    assert uids[0] != uids[1]
    for path in (mask, next(dicom.iterdir())):
        before = path.read_bytes()
        line = refusal(capsys, mask, dicom, output=path)
        assert line == f"error: {path}: would replace what it is made from" and path.read_bytes() == before


def test_a_full_disk_leaves_no_half_file(mask, dicom, capsys, small_disk):
    output = small_disk(8) / "seg.dcm"
    line = refusal(capsys, mask, dicom, output=output)
    assert line == f"error: {output}: cannot be written: No space left on device"
