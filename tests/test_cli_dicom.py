"""DICOM folders through the whole program: masks, records, resuming, and nobody's name in what is written."""

import gzip
import json

import nibabel as nib
import numpy as np
import pydicom

from tests.dicom_series import Series
from tests.scans import save_ct, smooth_hu


def record(outputs) -> dict:
    """Of the newest run."""
    return json.loads(max(outputs.glob("logs/*/run.json"), key=lambda path: path.stat().st_mtime_ns).read_text())


def test_a_study_and_an_image_side_by_side(tmp_path, run_app):
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    series = Series(hu=smooth_hu((3, 48, 64)), number=4)
    files = series.write(inputs / "study")
    Series(number=5, tags={"Modality": "MR"}).write(inputs / "study")
    image = Series(hu=smooth_hu((3, 48, 64), seed=1), spacing_mm=(5, 0.75, 0.75))
    save_ct(inputs / "image_0000.nii.gz", image.hu)
    outcome = run_app("--inputs", inputs, "--outputs", outputs, "--preview")
    assert outcome.status == 0, outcome.stderr
    assert f"{inputs}; passed over, no slices of an axial CT: 5 MR" in outcome.stderr
    assert sorted(path.name for path in outputs.glob("*.nii.gz")) == ["image.nii.gz", "study.nii.gz"]
    assert sorted(path.name for path in outputs.rglob("*.png")) == ["image.png", "study.png"]

    mask = nib.load(outputs / "study.nii.gz")
    corner = pydicom.dcmread(files[0])  # the first slice's first pixel: the last row from below
    x, y, z = map(float, corner.ImagePositionPatient)
    np.testing.assert_allclose(mask.affine @ [0, mask.shape[1] - 1, 0, 1], [-x, -y, z, 1], atol=1e-4)
    assert np.array_equal(np.linalg.norm(mask.affine[:3, :3], axis=0).round(4), [0.75, 0.8, 5])

    case = next(case for case in record(outputs)["cases"] if case["name"] == "study")
    assert (case["input"], case["series_number"]) == (str(inputs / "study"), 4)

    written = b"".join(path.read_bytes() for path in outputs.rglob("*") if path.is_file())
    written += gzip.decompress((outputs / "study.nii.gz").read_bytes()) + outcome.stderr.encode()
    for told in (corner.PatientName.family_name, corner.PatientID, corner.SeriesInstanceUID, corner.StudyInstanceUID):
        assert told.encode() not in written


def test_resume_knows_a_series_by_its_bytes(tmp_path, run_app):
    folder, outputs = tmp_path / "in" / "ct", tmp_path / "out"
    files = Series(hu=smooth_hu((3, 48, 64))).write(folder)

    def status():
        assert run_app("--inputs", tmp_path / "in", "--outputs", outputs, "--resume").status == 0
        return [case["status"] for case in record(outputs)["cases"]]

    assert status() == ["done"]
    files[0].rename(folder / "renamed.dcm")
    assert status() == ["skipped"]
    image = pydicom.dcmread(files[1])
    image.PixelData = image.pixel_array[::-1].tobytes()
    image.save_as(files[1])
    assert status() == ["done"]
