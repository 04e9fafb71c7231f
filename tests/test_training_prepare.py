import shutil

import nibabel
import numpy as np
import pytest

import training.phantom
from app.ct import read_ct
from app.preprocess import clipped_statistics
from tests.dicom_series import Series
from tests.scans import smooth_hu
from training import prepare
from training.partial_labels import mark_uncertain
from training.phantom import ORGANS, phantom, write
from training.prepare_case import shrink, unsaturated_statistics
from training.quality_phantom import quality_phantom
from training.store import UNCERTAIN, read_case, read_cases, read_pixels


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for k in range(2):
        write(folder, f"case_{k}", *phantom(k, 48))
    return folder


def run(store, scans, *arguments):
    return prepare.main(["--images", f"{scans}/images", "--store", str(store), "--workers", "1", *arguments])


def labelled(store, scans, *arguments):
    return run(store, scans, "--labels", f"{scans}/labels", *arguments)


def test_the_store_holds_what_inference_would_read(tmp_path, scans):
    assert labelled(tmp_path, scans) == 0
    cases = read_cases(tmp_path)
    assert [case.name for case in cases] == ["case_0", "case_1"]
    for k, case in enumerate(cases):
        ct = read_ct(scans / f"images/case_{k}_0000.nii.gz")
        hu, labels = read_pixels(tmp_path, case)
        assert np.array_equal(hu, ct.hu) and np.array_equal(labels, phantom(k, 48)[1])
        assert (case.mean_hu, case.std_hu) == clipped_statistics(ct.hu)
        assert case.image_sha256 == ct.sha256 and case.patient == case.name and case.saturated_hu is None
        assert tuple(case.spacing_mm) == pytest.approx(ct.geometry.spacing_mm)
        assert case.organ_pixels[20][1] == (labels[20] == 1).sum() > 0


def test_hidden_files_are_passed_over(tmp_path, scans, capsys):
    shutil.copytree(scans, tmp_path / "scans")
    for name in ("images/._case_0_0000.nii.gz", "images/.x_0000.nii.gz", "labels/._case_0.nii.gz"):
        (tmp_path / "scans" / name).write_bytes(b"\0\5\x16\7")  # macOS puts such beside files (AppleDouble)
    assert labelled(tmp_path / "store", tmp_path / "scans", "--shrink", "2") == 0
    assert "2 prepared, 0 were there already, 0 failed" in capsys.readouterr().out


def test_label_maps_in_another_orientation_are_brought_to_the_image(tmp_path, scans):
    shutil.copytree(scans, tmp_path / "scans")
    path = tmp_path / "scans/labels/case_0.nii.gz"
    turned = nibabel.load(path).as_reoriented([[1, -1], [2, 1], [0, -1]])
    nibabel.save(turned, path)
    assert labelled(tmp_path / "store", tmp_path / "scans", "--cases", "case_0") == 0
    assert np.array_equal(read_pixels(tmp_path / "store", read_cases(tmp_path / "store")[0])[1], phantom(0, 48)[1])


def first_voxel(data, value):
    return np.where(np.indices(data.shape).sum(0) == 0, np.float32(value), data)


def shift(x_mm):
    return np.array([[0, 0, 0, x_mm], [0] * 4, [0] * 4, [0] * 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data, affine: (first_voxel(data, 17), affine), "holds 17, not 0 to 13"),
        (lambda data, affine: (first_voxel(data, np.nan), affine), ": the label map holds NaN or infinity"),
        (lambda data, affine: (data[:, :, :-1], affine), "voxels"),
        (lambda data, affine: (data, affine + shift(30)), "30.0 mm away"),
        (lambda data, affine: (data, affine @ np.diag([1, 1, 1.1, 1])), "mm away"),
    ],
)
def test_wrong_label_maps_are_named_and_the_others_go_on(tmp_path, scans, capsys, change, message):
    shutil.copytree(scans, tmp_path / "scans")
    path = tmp_path / "scans/labels/case_0.nii.gz"
    image = nibabel.load(path)
    data, affine = change(np.asarray(image.dataobj), image.affine)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    assert labelled(tmp_path / "store", tmp_path / "scans") == 1
    error = capsys.readouterr().err
    assert "FAILED case_0" in error and message in error and "case_1" not in error
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["case_1"]


def test_a_scan_in_metres_and_on_another_scale_is_stored_in_mm_and_hu_and_its_labels_must_lie_on_it(tmp_path, capsys):
    hu, labels, spacing_mm = phantom(0, 100)
    affine = np.diag([*(np.array(spacing_mm[::-1]) / 1000), 1])
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    nibabel.save(nibabel.Nifti1Image((hu + np.int16(1024)).T, affine), tmp_path / "images/a_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels.T, affine), tmp_path / "labels/a.nii.gz")
    assert labelled(tmp_path / "store", tmp_path) == 0
    case, said = read_case(tmp_path / "store", "a"), capsys.readouterr().err
    assert "a: a field of view of " in said and "values from" in said
    assert case.spacing_mm == pytest.approx(spacing_mm)
    assert np.array_equal(read_pixels(tmp_path / "store", case)[0], hu)
    nibabel.save(nibabel.Nifti1Image(labels.T, affine + shift(0.004)), tmp_path / "labels/a.nii.gz")
    assert labelled(tmp_path / "other", tmp_path) == 1


def test_organs_that_should_not_be_there_are_named(tmp_path, scans, capsys):
    assert labelled(tmp_path, scans, "--annotated", "1-11,13") == 1
    assert "holds 12, not among the annotated organs" in capsys.readouterr().err


def test_dicom_series_are_stored_and_damaged_files_named(tmp_path, scans, capsys):
    images = tmp_path / "scans" / "images"
    images.mkdir(parents=True)
    (images / "cut_0000.nii.gz").write_bytes((scans / "images/case_1_0000.nii.gz").read_bytes()[:-50])
    Series(hu=smooth_hu((3, 64, 64))).write(images / "good")
    (images / "bad").mkdir()
    (images / "bad" / "cut.dcm").write_bytes(bytes(128) + b"DICM\2")
    assert run(tmp_path / "store", tmp_path / "scans") == 1
    assert [case.name for case in read_cases(tmp_path / "store")] == ["good"]
    said = capsys.readouterr().err
    assert "FAILED bad: " in said and "FAILED cut: " in said


def test_it_resumes_appends_and_renews(tmp_path, scans, capsys):
    assert labelled(tmp_path, scans, "--cases", "*_0") == 0
    before = (tmp_path / "case_0/case.json").stat().st_mtime_ns
    assert labelled(tmp_path, scans) == 0
    assert "1 prepared, 1 were there already, 0 failed" in capsys.readouterr().out
    assert (tmp_path / "case_0/case.json").stat().st_mtime_ns == before
    assert labelled(tmp_path, scans, "--shrink", "2") == 0  # other settings: made anew
    assert "2 prepared, 0 were there already" in capsys.readouterr().out
    assert read_case(tmp_path, "case_0").shape[1] == 24
    assert run(tmp_path, scans, "--suffix", "_raw") == 0  # the same patients, without labels
    cases = read_cases(tmp_path)
    assert [(c.name, c.patient, bool(c.annotated)) for c in cases[:2]] == [
        ("case_0", "case_0", True), ("case_0_raw", "case_0", False),
    ]  # fmt: skip


def test_a_label_map_that_was_corrected_is_taken(tmp_path, scans, capsys):
    shutil.copytree(scans, tmp_path / "scans")
    store, corrected = tmp_path / "store", tmp_path / "scans" / "labels" / "case_0.nii.gz"
    assert labelled(store, tmp_path / "scans") == 0
    before = nibabel.load(corrected)
    labels = np.where(np.asarray(before.dataobj) == 1, 0, np.asarray(before.dataobj)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, before.affine), corrected)
    assert labelled(store, tmp_path / "scans") == 0
    assert "1 prepared, 1 were there already" in capsys.readouterr().out
    has_liver = [bool(np.array(read_case(store, f"case_{k}").organ_pixels)[:, 1].any()) for k in range(2)]
    assert has_liver == [False, True]


def test_another_image_of_the_same_name_is_refused(tmp_path, scans, capsys):
    assert run(tmp_path / "store", scans) == 0
    write(tmp_path / "other", "case_0", *phantom(7, 48))
    assert run(tmp_path / "store", tmp_path / "other") == 1
    assert "case_0: the store has another image of that name" in capsys.readouterr().err


def test_wrong_use_is_exit_status_2(tmp_path, scans, capsys, monkeypatch):
    assert run(tmp_path, scans, "--cases", "nothing*") == 2
    assert run(tmp_path, tmp_path) == 2
    shutil.copytree(scans, tmp_path / "scans")
    (tmp_path / "scans/labels/case_1.nii.gz").unlink()
    assert labelled(tmp_path / "store", tmp_path / "scans") == 2
    assert "case_1" in capsys.readouterr().err
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    assert run(tmp_path / "store", scans) == 2
    assert "too full" in capsys.readouterr().err
    assert not any((tmp_path / "store").glob("case*"))


def test_hand_worked_statistics_of_a_saturated_scan():
    # Half air (clipped to -100), half cut off at 275; as if the cut half were 275 + e with mean e 180 and e^2 62800.
    hu = np.array([[[-1000, 275]]], np.int16)
    mean_hu, std_hu = unsaturated_statistics(hu, 275)
    assert mean_hu == pytest.approx((-100 + 275 + 180) / 2)
    square = (100**2 + 275**2 + 2 * 275 * 180 + 62800) / 2
    assert std_hu == pytest.approx(np.sqrt(square - mean_hu**2))
    assert unsaturated_statistics(hu, None) == clipped_statistics(hu)


def test_shrink_by_hand():
    hu = np.array([[[0, 10, 5], [20, 31, 5], [9, 9, 9]]], np.int16)
    labels = np.array([[[1, 2, 0], [2, 3, 0], [0, 0, 0]]], np.uint8)
    small, votes = shrink(hu, labels, 2)
    assert small.tolist() == [[[15]]] and votes.tolist() == [[[2]]] and small.dtype == np.int16


def test_spacing_outside_the_range_is_resampled(tmp_path, scans):
    assert labelled(tmp_path, scans, "--cases", "case_0", "--spacing-mm", "2,4") == 0  # 8.33 mm in the file
    case = read_cases(tmp_path)[0]
    assert tuple(case.shape) == (40, 100, 100) and tuple(case.spacing_mm) == (5.0, 4.0, 4.0)
    assert (case.mean_hu, case.std_hu) == clipped_statistics(phantom(0, 48)[0])  # of the scan as it is
    volume_ml = [
        (labels == 1).sum() * np.prod(mm)
        for labels, mm in ((read_pixels(tmp_path, case)[1], case.spacing_mm), phantom(0, 48)[1:])
    ]
    assert volume_ml[0] == pytest.approx(volume_ml[1], rel=0.02)


def test_a_missing_duodenum_hides_near_the_pancreas():
    hu = np.full((1, 1, 101), 40, np.int16)
    hu[0, 0, 60], hu[0, 0, 61] = -80, 400  # fat, bone
    labels = np.zeros(hu.shape, np.uint8)
    labels[0, 0, 50], labels[0, 0, 40] = 4, 1
    marked = mark_uncertain(hu, labels, (5.0, 1.0, 1.0), tuple(c for c in range(1, 14) if c != 12))
    expected = np.zeros(101, np.uint8)
    expected[16:85] = UNCERTAIN  # nearer than 35 mm; every second pixel is measured
    expected[[50, 40, 60, 61]] = 4, 1, 0, 0
    assert (marked[0, 0] != expected).sum() <= 2 and set(np.flatnonzero(marked[0, 0] != expected)) <= {15, 85}
    labels[0, 0, 50] = 0
    assert not (mark_uncertain(hu, labels, (5.0, 1.0, 1.0), tuple(c for c in range(1, 14) if c != 12)) == 255).any()


def test_other_missing_organs_hide_in_all_soft_tissue():
    hu = np.array([[[-1000, -51, -49, 40, 249, 251]]], np.int16)
    labels = np.array([[[0, 0, 0, 3, 0, 0]]], np.uint8)
    marked = mark_uncertain(hu, labels, (5.0, 1.0, 1.0), (1, 3))
    assert marked.tolist() == [[[0, 0, 255, 3, 255, 0]]]
    assert np.array_equal(mark_uncertain(hu, labels, (5.0, 1.0, 1.0), tuple(range(1, 14))), labels)


def test_phantoms_have_their_organs_on_the_right_side():
    hu, labels, spacing_mm = phantom(3, 64)
    x = {organ.label: np.nonzero(labels == organ.label)[2].mean() for organ in ORGANS}
    assert x[2] > 32 > x[13] and x[1] > 32 > x[3]  # right kidney and liver right, left kidney and spleen left
    assert hu[labels == 1].mean() == pytest.approx(110, abs=40) and spacing_mm == (5.0, 6.25, 6.25)
    assert not np.array_equal(labels, phantom(4, 64)[1])


def test_a_physicists_phantoms_are_negative_cases(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["phantom", str(tmp_path), "--quality", "--cases", "2", "--size", "64"])
    training.phantom.main()
    assert labelled(tmp_path / "store", tmp_path, "--annotated", "1-13") == 0
    first, second = read_cases(tmp_path / "store")
    assert [case.name for case in (first, second)] == ["quality_phantom_0000", "quality_phantom_0001"]
    assert first.negative and second.negative and first.mean_hu != second.mean_hu
    hu, labels = read_pixels(tmp_path / "store", first)
    assert np.array_equal(hu, quality_phantom(0, 64)[0]) and not labels.any()
    body = hu[:, 32, 32]
    assert (hu[:, 0] < -900).all() and (body > -300).any()  # a body in air
