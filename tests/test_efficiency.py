"""The organizers' run: a fake program and a fake docker are measured; figures are worked out again from the JSON."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from PIL import Image

from app.cases import find_cases
from app.monitor import flare_cpu_percent
from evaluation import efficiency
from evaluation.efficiency import (
    COLUMNS,
    Figures,
    Idle,
    Sampler,
    Samples,
    above_idle,
    command_subject,
    cpu_shares,
    figures_of,
    main,
    measure_case,
    measure_idle,
)
from tests.dicom_series import Series
from tests.scans import save_ct, smooth_hu

CpuTimes = namedtuple("CpuTimes", "user nice system idle iowait")

# Segments nothing: one file in, one mask out, a third of a second of work; a scan named bad fails.
PROGRAM = """
import json, pathlib, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
(scan,) = pathlib.Path(options["--inputs"]).iterdir()
outputs = pathlib.Path(options["--outputs"])
end = time.perf_counter() + 0.35
while time.perf_counter() < end:
    pass
print("working on", ascii(scan.name))
if "bad" in scan.name:
    print("ERROR the scan is damaged")
    print("0 done, 1 failed")
    sys.exit(1)
if "lost" not in scan.name:
    (outputs / scan.name.replace("_0000", "")).write_bytes(scan.read_bytes())
run = outputs / "logs" / scan.name
run.mkdir(parents=True)
(run / "run.json").write_text(json.dumps({"monitor": {"duration_s": 0.25}}))
"""

# `docker` as far as it is needed: knows the image team:latest, and runs PROGRAM on the mounted folders.
DOCKER = """#!{python}
import json, subprocess, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments[:2] == ["image", "inspect"]:
    if arguments[2] != "team:latest":
        sys.exit("Error: No such image: " + arguments[2])
elif arguments[:2] == ["container", "run"]:
    mounts = dict(reversed(a.split(":")) for b, a in zip(arguments, arguments[1:]) if b == "-v")
    folders = ["--inputs", mounts["/workspace/inputs/"], "--outputs", mounts["/workspace/outputs/"]]
    sys.exit(subprocess.call([{python!r}, {program!r}, *folders]))
"""


class FakeGpu:
    """Used memory that rises by 400 MiB a reading, to 1000."""

    def __init__(self):
        self.readings, self.closed = 0, False

    def used_mib(self):
        self.readings += 1
        return min(400.0 * self.readings, 1000.0)

    def close(self):
        self.closed = True


@pytest.fixture
def scans(tmp_path):
    for name in ("a_0000.nii.gz", "b_0000.nii.gz"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"a scan")
    (tmp_path / "in" / "._a_0000.nii.gz").write_bytes(b"\0\5\x16\7")  # macOS puts such beside files (AppleDouble)
    return tmp_path / "in"


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def docker_calls(tmp_path, program, monkeypatch):
    """A fake docker in PATH; returns a function that gives the calls so far."""
    folder, log = tmp_path / "bin", tmp_path / "docker.log"
    folder.mkdir()
    script = folder / "docker"
    script.write_text(DOCKER.format(python=sys.executable, log=str(log), program=str(program)))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(efficiency, "open_gpu", lambda number: None)


def measure(program, *arguments):
    return main(["--command", f"{sys.executable} {program}", "--idle-s", "0.2", *map(str, arguments)])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def organizers_row(js):
    """Their load_json.py's figures of one JSON, in its own words."""
    interval, memory, ram = 0.1, js["gpu_memory"], js["RAM_list"]
    used = [100 - shares[2] for shares in js["cpu_list"]]
    row = {
        "Time": round(js["time"], 2),
        "CPU_Utilization": round(max(used), 2),
        "AUC_CPU_Time": round(sum(used) * interval, 2),
        "RAM": round(max(ram), 2),
        "AUC_RAM_Time": round(sum(ram) * interval),
    }
    if memory:
        row["GPU_Mem"] = round(max(value for value in set(memory) if memory.count(value) > 0.02 * len(memory)))
        row["AUC_GPU_Time"] = round(sum(memory) * interval)
    return row


# --- formulas ---


def test_cpu_shares_are_the_organizers_and_the_monitors():
    before, now = CpuTimes(10, 5, 20, 30, 7), CpuTimes(10.2, 9, 20.1, 30.1, 9)
    user, system, idle = cpu_shares(before, now)  # of 0.4 s counted, and their 0.1 s; nice and iowait count nowhere
    assert (user, system, idle) == (pytest.approx(40), pytest.approx(20), pytest.approx(20))
    assert 100 - idle == pytest.approx(flare_cpu_percent(before, now))


def test_gpu_memory_is_the_largest_that_lasted_more_than_two_percent():
    spike = [1500.0] * 97 + [1900.0] * 2 + [9000.0]
    assert figures_of(10, samples_of(gpu=spike)).gpu_mib == 1500  # 2 of 100 are not more than 2 %
    lasting = [1500.0] * 97 + [1900.0] * 3
    assert figures_of(10, samples_of(gpu=lasting)).gpu_mib == 1900
    assert figures_of(10, samples_of(gpu=[float(k) for k in range(100)])).gpu_mib == 99  # theirs stops here


def samples_of(gpu=(), cpu=(50.0,), ram=(4000.0,)):
    count = max(len(gpu), 1)
    return Samples(list(gpu), [(0, 0, 100 - value) for value in cpu] * count, list(ram) * count)


def test_areas_and_idle_worked_by_hand():
    samples = Samples([1000.0, 2000.0, 2000.0], [(0, 0, 80.0), (0, 0, 20.0), (0, 0, 50.0)], [500.0, 700.0, 600.0])
    figures = figures_of(0.3, samples)
    assert figures == pytest.approx(Figures(0.3, 2000, 500, 80, 15, 700, 180))
    net = above_idle(figures, samples, Idle(gpu_mib=400, cpu_percent=10, ram_mib=450))
    assert net == pytest.approx(Figures(0.3, 1600, 500 - 120, 70, 15 - 3, 250, 180 - 135))


def test_sampler_keeps_its_interval():
    with Sampler(FakeGpu()) as sampler:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1)"], check=True)
    counts = {len(values) for values in sampler.samples}
    assert len(counts) == 1
    assert 9 <= counts.pop() <= 25  # 10 a second; a busy machine starts Python slowly


class DyingGpu(FakeGpu):
    def used_mib(self):
        if self.readings == 2:
            raise RuntimeError("GPU is lost")
        return super().used_mib()


def test_a_card_that_is_lost_midway_is_an_error_of_its_case(tmp_path, scans, program):
    subject = command_subject(f"{sys.executable} {program}", None)
    gpu = DyingGpu()
    (tmp_path / "out" / "efficiency").mkdir(parents=True)
    case = find_cases([scans], tmp_path / "out")[0]
    measured = measure_case(case, tmp_path / "out", subject, gpu)
    assert measured.error == "GPU, CPU and RAM could no longer be sampled: GPU is lost"
    with pytest.raises(OSError, match="GPU is lost"):
        measure_idle(gpu, 0.3)


def test_a_run_shorter_than_an_interval_has_a_sample():
    with Sampler(None) as sampler:
        pass
    assert len(sampler.samples.ram_mib) == 1


# --- runs ---


def test_command_is_measured_case_by_case(tmp_path, scans, program, capsys):
    outputs = tmp_path / "out"
    assert measure(program, scans, outputs) == 0
    rows = rows_of(outputs / "efficiency" / "command_Efficiency.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [row["Name"] for row in rows] == ["a_0000.nii.gz", "b_0000.nii.gz"]
    for row in rows:
        js = json.loads((outputs / "efficiency" / row["Name"].replace(".nii.gz", ".json")).read_text())
        assert (row["GPU_Mem"], row["AUC_GPU_Time"]) == ("", "")
        for column, value in organizers_row(js).items():
            assert float(row[column]) == pytest.approx(value), column
        assert js["time"] > 0.35
        assert len(js["RAM_list"]) == len(js["cpu_list"]) == pytest.approx(js["time"] / 0.1, abs=3)
        assert js["program_s"] == 0.25 and js["error"] is None
        for curve in ("GPU", "CPU", "RAM"):
            stem = row["Name"].removesuffix(".nii.gz")
            with Image.open(outputs / "efficiency" / f"{stem}_{curve}-Time.png") as picture:
                assert min(picture.size) > 100
    assert (outputs / "a.nii.gz").read_bytes() == b"a scan"
    printed = capsys.readouterr().out
    assert "without the idle machine" in printed and "the paper" in printed and "20.34" in printed


def test_names_that_the_terminal_cannot_say(tmp_path, scans, program, monkeypatch):
    names = "肝_0000.nii.gz", os.fsdecode("肾bad_0000.nii.gz".encode("gbk"))
    for path, name in zip(sorted(scans.glob("[ab]*")), names, strict=True):
        path.rename(path.with_name(name))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert measure(program, scans, tmp_path / "out") == 1
    said = sys.stdout.buffer.getvalue().decode("ascii")
    assert "\n\\u809d: " in said and "\n\\u809d_0000 " in said
    table = (tmp_path / "out" / "efficiency" / "command_Efficiency.csv").read_text(encoding="utf-8")
    assert [line.partition(",")[0] for line in table.splitlines()[1:]] == [names[0], "\\udcc9\\udcf6bad_0000.nii.gz"]


def test_dicom_and_folders_below_are_measured_one_by_one(tmp_path, weights_path):
    Series(hu=smooth_hu((3, 48, 64))).write(tmp_path / "in" / "study")
    Series(hu=smooth_hu((3, 48, 64)), number=2).write(tmp_path / "in" / "study")
    save_ct(tmp_path / "in" / "below" / "x_0000.nii.gz")
    command = f"{sys.executable} -m app --device cpu --weights {weights_path}"
    assert main(["--command", command, "--idle-s", "0.2", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out" / "efficiency" / "command_Efficiency.csv")
    assert [row["Name"] for row in rows] == ["below_x.nii.gz", "study_1.nii.gz", "study_2.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [row["Name"] for row in rows]


def test_docker_line_is_the_organizers(tmp_path, scans, docker_calls, monkeypatch):
    outputs, gpu = tmp_path / "out", FakeGpu()
    monkeypatch.setattr(efficiency, "open_gpu", lambda number: gpu)
    assert main(["team", "--gpu", "1", str(scans), "--idle-s", "0.2", str(outputs)]) == 0
    inspect, first, second = docker_calls()
    assert inspect == ["image", "inspect", "team:latest"]
    inputs = first[first.index("-v") + 1].removesuffix("/:/workspace/inputs/")
    assert first == [
        "container", "run", "--gpus=device=1", "--name", "team", "--rm", "-v", f"{inputs}/:/workspace/inputs/",
        "-v", f"{outputs}/:/workspace/outputs/", "team:latest", "/bin/bash", "-c", "sh predict.sh",
    ]  # fmt: skip
    assert not Path(inputs).exists() and second[7] != first[7]  # a folder for each case, taken away again
    assert gpu.closed
    rows = rows_of(outputs / "efficiency" / "team_Efficiency.csv")
    js = json.loads((outputs / "efficiency" / "b_0000.json").read_text())
    assert float(rows[1]["GPU_Mem"]) == organizers_row(js)["GPU_Mem"] == 1000
    assert float(rows[1]["AUC_GPU_Time"]) == organizers_row(js)["AUC_GPU_Time"]


def test_without_gpu_docker_is_not_asked_for_one(tmp_path, scans, docker_calls):
    assert main(["team:latest", str(scans), str(tmp_path / "out"), "--idle-s", "0.1"]) == 0
    assert not any("--gpus" in argument for argument in docker_calls()[1])


def test_an_archive_is_loaded(tmp_path, scans, docker_calls):
    archive = tmp_path / "team.tar.gz"
    archive.write_bytes(b"")
    assert main([str(archive), str(scans), str(tmp_path / "out"), "--idle-s", "0.1"]) == 0
    assert docker_calls()[0] == ["load", "-i", str(archive)]


@pytest.mark.parametrize(
    ("name", "message"), [("bad", "exit status 1: ERROR the scan is damaged"), ("lost", "exit status 0, but no mask")]
)
def test_a_failing_case_is_named_and_the_others_go_on(tmp_path, scans, program, capsys, name, message):
    (scans / f"a{name}_0000.nii.gz").write_bytes(b"")
    outputs = tmp_path / "out"
    outputs.mkdir()
    assert measure(program, scans, outputs) == 1
    errors = capsys.readouterr().err
    assert f"error: a{name}: {message}" in errors and f"error: failed: a{name}_0000" in errors
    rows = {row.pop("Name"): row for row in rows_of(outputs / "efficiency" / "command_Efficiency.csv")}
    assert set(rows) == {"a_0000.nii.gz", "b_0000.nii.gz", f"a{name}_0000.nii.gz"}
    assert set(rows[f"a{name}_0000.nii.gz"].values()) == {""}
    assert float(rows["b_0000.nii.gz"]["Time"]) > 0.3
    assert message in json.loads((outputs / "efficiency" / f"a{name}_0000.json").read_text())["error"]


def test_a_mask_of_an_earlier_run_is_no_success(tmp_path, scans, program):
    outputs = tmp_path / "out"
    outputs.mkdir()
    (scans / "a_0000.nii.gz").rename(scans / "lost_0000.nii.gz")
    (outputs / "lost.nii.gz").write_bytes(b"from before")
    assert measure(program, scans / "lost_0000.nii.gz", outputs) == 1


# --- wrong use ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other", "in", "out"], "No such image: other:latest"),
        (["--command", "no-such-program-here", "in", "out"], "no program 'no-such-program-here'"),
        (["team", "nowhere", "out"], "nowhere does not exist"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, scans, docker_calls, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_without_docker(tmp_path, scans, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["team", str(scans), str(tmp_path / "out")]) == 2
    assert "docker cannot be started" in capsys.readouterr().err


def test_image_and_command_exclude_each_other(scans, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["team", "--command", "x", str(scans), "out"])
    assert stop.value.code == 2 and "either IMAGE or --command" in capsys.readouterr().err


# --- a real engine ---


def has_docker():
    return shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True).returncode


@pytest.mark.container
@pytest.mark.skipif(not has_docker(), reason="no Docker engine")
def test_a_real_container(tmp_path, scans):
    image = "flare22-efficiency-test"
    context = tmp_path / "context"
    context.mkdir()
    (context / "predict.sh").write_text('cp inputs/*_0000.nii.gz "outputs/$(ls inputs | sed s/_0000//)" && sleep 0.5\n')
    (context / "Dockerfile").write_text("FROM debian:bookworm-slim\nWORKDIR /workspace\nCOPY predict.sh .\n")
    if subprocess.run(["docker", "build", "-q", "-t", image, context], capture_output=True).returncode:
        pytest.skip("the base image is not to be had")
    outputs = tmp_path / "out"
    try:
        assert main([image, str(scans), str(outputs), "--idle-s", "0.2"]) == 0
    finally:
        subprocess.run(["docker", "rmi", "-f", image], capture_output=True)
    assert (outputs / "a.nii.gz").read_bytes() == b"a scan"
    assert [float(row["Time"]) > 0.5 for row in rows_of(outputs / "efficiency" / f"{image}_Efficiency.csv")] == [
        True
    ] * 2
