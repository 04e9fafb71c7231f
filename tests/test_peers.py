"""Peers: stand-ins for their programs, which do what they should or fail; and the table."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from benchmarks import peers
from evaluation.tables.__main__ import make
from tests.scans import save_ct, smooth_hu
from tests.test_tables import cells

PLAN = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
sys.path.append(sys.argv[2])
for kind in ("raw", "preprocessed", "results"):
    os.environ[f"nnUNet_{kind}"] = str(folder / kind)
    (folder / kind / "Dataset007_Pancreas").mkdir(parents=True)
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
import peer_models
def write(kind, name, **content):
    (folder / kind / "Dataset007_Pancreas" / name).write_text(json.dumps(content))
write("raw", "dataset.json", channel_names={"0": "CT"},
      labels={"background": 0, **{f"organ {k}": k for k in range(1, 14)}}, numTraining=281, file_ending=".nii.gz",
      overwrite_image_reader_writer="SimpleITKIO",
      dataset={"a": {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}})
write("preprocessed", "dataset_fingerprint.json", spacings=[[2.5, 0.8, 0.8]] * 281,
      shapes_after_crop=[[96, 512, 512]] * 281,
      median_relative_size_after_cropping=1.0, foreground_intensity_properties_per_channel={"0": {}})
planner = ExperimentPlanner(7)
planner.plan_experiment()
written = json.loads((folder / "preprocessed" / "Dataset007_Pancreas" / "nnUNetPlans.json").read_text())
print(json.dumps([written["configurations"]["3d_fullres"], peer_models.configuration(peer_models.PANCREAS)]))
"""
FACTS = {
    "packages": {"Stand-in": "1.2"},
    "classes": 7,
    "networks": 2,
    "spacing_mm": [3, 2, 1],
    "patch_vox": [32, 48, 64],
}
COPY = """
ct = nibabel.load(scan)
mask = numpy.arange(numpy.prod(ct.shape), dtype=numpy.uint8).reshape(ct.shape) % 5
nibabel.save(nibabel.Nifti1Image(mask, ct.affine), outputs + "/deep.nii.gz")
"""
PROGRAMS = {
    "works": COPY,
    "fails": "sys.exit('no memory left')",
    "writes nothing": "pass",
    "writes two": COPY + "shutil.copy(outputs + '/deep.nii.gz', outputs + '/second.nii.gz')",
    "turns": COPY.replace("ct.affine)", "ct.affine @ numpy.diag([-1, 1, 1, 1]))"),
    "shrinks": COPY.replace("(mask,", "(mask[:-1],"),
    "damages": "open(outputs + '/mask.nii.gz', 'wb').write(b'no gzip')",
}


@pytest.fixture
def scan(tmp_path):
    return save_ct(tmp_path / "ct.nii.gz", smooth_hu((3, 64, 64)))


def script(path, code):
    path.write_text(f"#!{sys.executable}\nimport os, shutil, sys, nibabel, numpy\n{code}\n")
    path.chmod(0o755)


MODELS = """
_, model, folder = sys.argv[1:]
os.mkdir(folder)
print("noise")
if model == "absent":
    print("X is not installed", file=sys.stderr)
    sys.exit(3)
if model == "broken":
    raise ValueError("no such layer")
"""


@pytest.fixture
def python(tmp_path, monkeypatch):
    """An environment whose Python "makes" a model, and whose programs are PROGRAMS; each is a peer."""
    folder = tmp_path / "environment"
    folder.mkdir()
    script(folder / "python", f"{MODELS}print({json.dumps(FACTS)!r})")
    for name, code in PROGRAMS.items():
        script(folder / name, f"scan, outputs = sys.argv[1:]\nassert os.path.isdir(os.environ['MODEL'])\n{code}")
    models = {name: "model" for name in PROGRAMS} | {"absent": "absent", "broken": "broken"}
    made = {
        name: peers.Peer(f"The {name}", model, (name, "{scan}", "{outputs}"), ("MODEL={model}",))
        for name, model in models.items()
    }
    monkeypatch.setattr(peers, "PEERS", made)
    return folder / "python"


def run(python, scan, weights_path, tmp_path, *names, runs=1):
    output = tmp_path / "results" / "benchmark_peers.json"
    options = ["--threads", "1", "--runs", runs, "--scan", scan, "--weights", weights_path, "--python", python]
    status = peers.main(list(map(str, [*options, "-o", output, "--peers", *names])))
    return status, json.loads(output.read_text())


def test_peers_and_ours_in_turns_and_their_table(python, scan, weights_path, tmp_path, capsys):
    status, result = run(python, scan, weights_path, tmp_path, "works", "absent", runs=2)
    assert status == 0
    assert list(result["programs"]) == ["ours", "works"]
    assert [len(program["runs"]) for program in result["programs"].values()] == [2, 2]
    assert [entry["labels"] for entry in result["programs"]["works"]["runs"]] == [5, 5]
    assert result["missing"] == {"absent": "X is not installed"} and not result["failed"]
    assert result["shape_zyx"] == [3, 64, 64] and result["spacing_zyx_mm"] == [5, 0.75, 0.75]
    captured = capsys.readouterr()
    assert "left out: absent (X is not installed)" in captured.err
    assert [line.split()[0] for line in captured.out.splitlines()[:4]] == ["ours", "works", "ours", "works"]
    for name, wall_s in (("ours", (1, 3)), ("works", (20, 30))):
        for entry, seconds in zip(result["programs"][name]["runs"], wall_s, strict=True):
            entry.update(wall_s=seconds, cpu_s=2 * seconds, peak_rss_mib=500)
    (tmp_path / "benchmark_peers.json").write_text(json.dumps({**result, "machine_cpus": 64}))
    text = make("benchmark_peers", tmp_path)
    table = cells(text)
    assert table["ours"] == ["13", "the body in a slice", "the scan's", "2", "4", "500", ""]
    assert table["The works"] == ["7", "2 networks, 64x48x32", "1x2x3 mm", "25", "50", "500", "**12.5**"]
    for words in ("random weights", "ours ran in ", "1 missing: absent", "64x64x3 voxels of 0.75x0.75x5 mm",
                  "Stand-in 1.2", "each of the machine's 64", "Median of 2"):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(("name", "cause"), [
    ("fails", "no memory left"), ("writes nothing", "0 masks"), ("writes two", "2 masks"), ("turns", "grid"),
    ("shrinks", "grid"), ("damages", "cannot be read"),
])  # fmt: skip
def test_a_peer_without_a_mask_of_the_scan(python, scan, tmp_path, name, cause):
    with pytest.raises(peers.PeerFailed, match=cause):
        peers.run_peer(peers.PEERS[name], python, tmp_path, scan, tmp_path / "outputs", 1)


def test_failed_peers_are_named_and_the_others_measured(python, scan, weights_path, tmp_path, capsys):
    status, result = run(python, scan, weights_path, tmp_path, "fails", "broken", "works", runs=2)
    assert status == 1
    assert list(result["programs"]) == ["ours", "works"] and set(result["failed"]) == {"fails", "broken"}
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert sorted(line.split(": ")[1] for line in errors) == ["broken", "fails"]
    assert "no such layer" in result["failed"]["broken"] and "no memory left" in result["failed"]["fails"]
    assert "2 failed: " in make("benchmark_peers", tmp_path / "results")


def test_without_the_environment_ours_is_measured_alone(scan, weights_path, tmp_path, capsys):
    status, result = run(tmp_path / "absent" / "python", scan, weights_path, tmp_path, *peers.DEFAULT)
    assert status == 0
    assert list(result["programs"]) == ["ours"] and list(result["missing"]) == peers.DEFAULT
    assert "requirements-peers.txt" in capsys.readouterr().err


def test_damaged_voxels_or_weights_end_it(python, tmp_path, capsys, weights_path):
    ct = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((64, 64, 3), np.uint8), np.eye(4)), ct)
    ct.write_bytes(ct.read_bytes()[:-9])
    options = ["--python", str(python), "--peers", "works", "-o", str(tmp_path / "result.json"), "--threads", "1"]
    assert peers.main(["--scan", str(ct), "--weights", str(weights_path), *options]) == 1
    assert peers.main(["--scan", str(ct), "--weights", str(ct), *options]) == 1
    of_scan, of_weights = capsys.readouterr().err.splitlines()
    assert of_scan.startswith("error: ours: ") and of_weights.startswith("error: ours: ")
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(("name", "content", "cause"), [
    ("absent.nii.gz", None, "No such file"), ("ct.mha", b"", "not a .nii.gz"), ("ct.nii.gz", b"no gzip", "ct.nii.gz"),
])  # fmt: skip
def test_a_scan_that_cannot_be_used(tmp_path, capsys, name, content, cause):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert peers.main(["--scan", str(tmp_path / name), "-o", str(tmp_path / "result.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / name) in line and cause in line
    assert not (tmp_path / "result.json").exists()


@pytest.mark.skipif(not peers.PYTHON.exists(), reason="the peers are not installed")
def test_nnunets_plan_is_its_planners(tmp_path):
    """nnU-Net's own planner, from the medians of MSD Pancreas."""
    run = subprocess.run([peers.PYTHON, "-c", PLAN, tmp_path, peers.MODELS.parent], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    planned, ours = json.loads(run.stdout.splitlines()[-1])
    assert planned.pop("median_image_size_in_voxels") == [96, 512, 512]
    del ours["median_image_size_in_voxels"]  # tells only how it was planned
    assert ours == planned


def test_masks_of_rounded_affines_are_on_the_grid(tmp_path, scan):
    ct = nib.load(scan)
    affine = ct.affine + np.random.default_rng(0).uniform(-1e-4, 1e-4, (4, 4)) * [[1], [1], [1], [0]]
    (tmp_path / "out" / "case").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros(ct.shape, np.float32), affine), tmp_path / "out" / "case" / "mask.nii.gz")
    assert peers.mask_labels(tmp_path / "out", scan) == 1
