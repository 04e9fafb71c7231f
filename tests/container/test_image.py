"""The image, built and run by a real Docker engine as the organizers and a careful hospital run it.

Skipped where no engine answers. FLARE_IMAGE names an image that is built already.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from app.__main__ import main
from app.options import WEIGHTS
from evaluation.efficiency import __main__ as efficiency
from tests.container.sbom import bill_of_materials
from tests.dicom_series import Series
from tests.test_supply_chain import pins

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "tcga_lihc_a3kf_art_0000.nii.gz"
MASK = "tcga_lihc_a3kf_art.nii.gz"


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(["docker", *arguments], check=check, capture_output=True, text=True)


def engine_answers() -> bool:
    return shutil.which("docker") is not None and docker("info", check=False).returncode == 0


pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine"),
    pytest.mark.skipif(not WEIGHTS.exists(), reason="no shipped weights"),
]


@pytest.fixture(scope="session")
def image() -> str:
    """Built from the files of a clone alone."""
    # A run that was killed leaves its container, and the organizers' line names it.
    subprocess.run(["docker", "rm", "-f", "team"], capture_output=True)
    if "FLARE_IMAGE" in os.environ:
        return os.environ["FLARE_IMAGE"]
    subprocess.run(["docker", "build", "--quiet", "-t", "team", str(ROOT)], check=True)
    return "team"


@pytest.fixture(scope="session")
def bare_mask(tmp_path_factory) -> np.ndarray:
    outputs = tmp_path_factory.mktemp("bare")
    assert main(["--inputs", str(EXAMPLE), "--outputs", str(outputs), "--device", "cpu", "--quiet"]) == 0
    return np.asarray(nib.load(outputs / MASK).dataobj)


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Inputs with one case, as the organizers copy it, and outputs that any user may write to."""
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    inputs.mkdir()
    outputs.mkdir()
    outputs.chmod(0o777)
    shutil.copy(EXAMPLE, inputs)
    return inputs, outputs


def check_outputs(outputs: Path, expected: np.ndarray) -> None:
    """The mask has the input's geometry and the bare run's labels; the logs are whole; nothing else is there."""
    mask, ct = nib.load(outputs / MASK), nib.load(EXAMPLE)
    labels = np.asarray(mask.dataobj)
    assert labels.dtype == np.uint8 and mask.shape == ct.shape
    for field in ("dim", "pixdim", "qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(mask.header[field], ct.header[field]), field
    assert np.array_equal(mask.affine, ct.affine)
    assert (labels == expected).mean() >= 0.999
    assert len(np.unique(labels)) > 8

    assert sorted(path.name for path in outputs.iterdir()) == ["logs", MASK]
    (run,) = (outputs / "logs").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["exit_status"] == 0 and [case["status"] for case in record["cases"]] == ["done"]
    rows = (run / "monitor.csv").read_text().splitlines()
    assert len(rows) > 10 and rows[0].startswith("time_s,")


def run_image(image: str, tmp_path: Path, *options: str, command: tuple[str, ...] = ()) -> tuple[Path, str]:
    inputs, outputs = folders(tmp_path)
    mounts = ("-v", f"{inputs}:/workspace/inputs/", "-v", f"{outputs}:/workspace/outputs/")
    result = docker("run", "--rm", *options, *mounts, f"{image}:latest", *command, check=False)
    assert result.returncode == 0, result.stderr
    return outputs, result.stderr


def test_organizers_line(image, bare_mask, tmp_path):
    line = ("/bin/bash", "-c", "sh predict.sh")
    outputs, _ = run_image(image, tmp_path, "--gpus", "device=1", "--name", "team", command=line)
    check_outputs(outputs, bare_mask)
    # Measured, in this test too: there cannot be two containers of one name at a time.
    (tmp_path / "measured").mkdir()
    inputs, outputs = folders(tmp_path / "measured")
    assert efficiency.main([image, str(inputs), str(outputs), "--idle-s", "0.2"]) == 0
    assert (outputs / MASK).exists() and (outputs / "efficiency" / f"{image}_Efficiency.csv").exists()


def test_organizers_line_with_a_dicom_folder(image, bare_mask, tmp_path):
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    outputs.mkdir()
    ct = nib.load(EXAMPLE)  # its axes run left, back and up, as those of DICOM do
    hu = np.asarray(ct.dataobj).T.astype(np.int16)
    spacing_mm = tuple(float(mm) for mm in reversed(ct.header.get_zooms()))
    Series(hu=np.ascontiguousarray(hu), spacing_mm=spacing_mm).write(inputs / "patient" / "ct")
    mounts = ("-v", f"{inputs}:/workspace/inputs/", "-v", f"{outputs}:/workspace/outputs/")
    docker("run", "--rm", "--gpus", "device=1", *mounts, f"{image}:latest", "/bin/bash", "-c", "sh predict.sh")
    mask = nib.load(outputs / "patient_ct.nii.gz")
    labels = np.asarray(mask.dataobj)[:, ::-1]  # rows run up in the file, down in DICOM
    assert (labels == bare_mask).mean() >= 0.999
    np.testing.assert_allclose(mask.header.get_zooms(), ct.header.get_zooms(), rtol=1e-5)


def test_locked_down_without_gpu(image, bare_mask, tmp_path):
    options = "--network none --read-only --user 1000:1000 --cap-drop ALL --security-opt no-new-privileges -m 4G"
    outputs, _ = run_image(image, tmp_path, *options.split())
    check_outputs(outputs, bare_mask)


def test_empty_named_volume_is_explained(image):
    volume = "flare-test-empty"
    try:
        result = docker("run", "--rm", "-v", f"{volume}:/workspace/inputs", f"{image}:latest", check=False)
    finally:
        docker("volume", "rm", "-f", volume)
    assert result.returncode == 2
    assert "empty named volume" in result.stderr and "Traceback" not in result.stderr


def test_image_holds_only_the_program(image):
    listing = docker("run", "--rm", "--entrypoint", "find", f"{image}:latest", "/workspace", "-type", "f").stdout
    top = {Path(path).relative_to("/workspace").parts[0] for path in listing.split()}
    assert top == {"app", "weights", "predict.sh"}


def test_bill_of_materials_is_the_lock_and_debian(image):
    """Every package of the lock is in the image, and no other: pip and setuptools are gone."""
    document = bill_of_materials(image)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    assert document["metadata"]["component"]["version"].startswith("sha256:")
    found = {"pypi": {}, "deb": {}}
    for part in document["components"]:
        package = PackageURL.from_string(part["purl"])
        found[package.type][package.name] = part["version"]
    lock = pins(found["pypi"]["torch"])
    assert found["pypi"] == {name: version for name, version in lock.items() if name != "setuptools"}
    assert {"libc6", "python3.11", "bash"} <= set(found["deb"])


def test_stop_leaves_no_half_mask(image, tmp_path):
    inputs, outputs = folders(tmp_path)
    mounts = ("-v", f"{inputs}:/workspace/inputs/", "-v", f"{outputs}:/workspace/outputs/")
    identity = docker("run", "-d", *mounts, f"{image}:latest").stdout.strip()
    try:
        for _ in range(200):  # until the network runs
            stages = "".join(path.read_text() for path in outputs.glob("logs/*/monitor.csv"))
            if "segment," in stages:
                break
            subprocess.run(["sleep", "0.1"], check=True)
        docker("stop", "--time", "30", identity)
        status = docker("inspect", "-f", "{{.State.ExitCode}}", identity).stdout.strip()
    finally:
        docker("rm", "-f", identity)
    assert status == "143"
    assert [path.name for path in outputs.iterdir()] == ["logs"]


def test_saved_and_loaded_archive_runs(image, bare_mask, tmp_path):
    """What is handed in: `docker save team | gzip`, loaded again by its name."""
    archive = tmp_path / "team.tar.gz"
    subprocess.run(f"docker save {image} | gzip -1 > {archive}", shell=True, check=True)
    docker("rmi", "-f", image)
    assert f"{image}:latest" in docker("load", "-i", str(archive)).stdout
    archive.unlink()
    outputs, _ = run_image(image, tmp_path, command=("/bin/bash", "-c", "sh predict.sh"))
    check_outputs(outputs, bare_mask)
