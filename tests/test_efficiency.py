"""The organizers' run: a fake program and a fake docker are measured; figures are worked out again from the JSON."""

import io
import json
import os
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from app.cases import find_cases
from evaluation.efficiency.__main__ import main
from evaluation.efficiency.case import command_subject, measure_case
from evaluation.efficiency.figures import Figures, Idle, Recording, Samples, above_idle, figures_of, measure_idle
from evaluation.efficiency.files import COLUMNS
from tests.dicom_series import Series
from tests.fake_clock import FakeClock, read
from tests.scans import smooth_hu

ROOT = Path(__file__).resolve().parents[1]
ODD = "肝\udcc9"  # letters that a terminal may lack, and a byte that is no text

# Segments nothing: one CT in, one mask out, a quarter of a second of work; a scan named bad fails. As `docker` it knows
# the image team:latest and segments the mounted folders.
PROGRAM = """#!{python}
import json, pathlib, sys, time
sys.path.insert(0, {root!r})
from app.cases import find_cases
arguments = sys.argv[1:]
with open(__file__ + ".log", "a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments[0] == "load" or arguments == ["image", "inspect", "team:latest"]:
    sys.exit()
if arguments[0] == "image":
    sys.exit("Error: No such image: " + arguments[2])
folders = [a.split(":")[0] for b, a in zip(arguments, arguments[1:]) if b in ("-v", "--inputs", "--outputs")]
inputs, outputs = map(pathlib.Path, folders)
(case,) = find_cases([inputs], outputs)
time.sleep(0.25)
print("working on", ascii(case.name))
if "bad" in case.name:
    print("ERROR the scan is damaged")
    print("0 done, 1 failed")
    sys.exit(1)
if "lost" not in case.name:
    case.mask.write_bytes(b"a mask")
run = outputs / "logs" / ("run of " + case.name)
run.mkdir(parents=True)
(run / "run.json").write_text(json.dumps({{"cases": [], "monitor": {{"duration_s": 0.25}}}}))
"""


@pytest.fixture
def scans(tmp_path):
    (tmp_path / "in").mkdir()
    for name in (
        "a_0000.nii.gz",
        f"{ODD}_0000.nii.gz",
        "._a_0000.nii.gz",
    ):  # the last as macOS makes them (AppleDouble)
        (tmp_path / "in" / name).write_bytes(b"\0\5\x16\7")
    return tmp_path / "in"


@pytest.fixture
def program(tmp_path, monkeypatch):
    """In PATH as `docker`."""
    path = tmp_path / "bin" / "docker"
    path.parent.mkdir()
    path.write_text(PROGRAM.format(python=sys.executable, root=str(ROOT)))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    return path


def docker_calls(program):
    return [json.loads(line) for line in program.with_name("docker.log").read_text().splitlines()]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # its import fails


def measure(program, *arguments):
    return main(["--command", str(program), "--idle-s", "0.15", *map(str, arguments)])


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


# Figures


def test_areas_and_idle_worked_by_hand():
    samples = Samples([1000.0, 2000.0, 2000.0], [(0, 0, 80.0), (0, 0, 20.0), (0, 0, 50.0)], [500.0, 700.0, 600.0])
    figures = figures_of(0.3, samples)
    assert figures == pytest.approx(Figures(0.3, 2000, 500, 80, 15, 700, 180))
    net = above_idle(0.3, samples, Idle(gpu_mib=400, cpu_percent=10, ram_mib=450))
    assert net == pytest.approx(Figures(0.3, 1600, 500 - 120, 70, 15 - 3, 250, 180 - 135))


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 1), (0.96, 9)])
def test_a_sample_every_tenth_of_a_second_and_one_of_a_shorter_run(seconds, count):
    clock = FakeClock()
    with Recording(Mock(used_mib=lambda: 400.0), clock) as recording:
        clock.advance(seconds)
    assert [len(values) for values in recording.complete()] == [count] * 3


@pytest.mark.parametrize("before", [0, 2])
def test_a_card_that_is_lost_is_an_error_of_its_case(tmp_path, scans, program, before):
    subject = command_subject(str(program), None)
    lost = RuntimeError("GPU is lost")
    gpu = Mock(used_mib=Mock(side_effect=[400.0] * before + [lost] * 2))
    (tmp_path / "out" / "efficiency").mkdir(parents=True)
    case = find_cases([scans], tmp_path / "out")[0]
    measured = measure_case(case, tmp_path / "out", subject, gpu)
    assert measured.error == "GPU, CPU and RAM could no longer be sampled: RuntimeError: GPU is lost"
    assert len(measured.samples.ram_mib) == before
    with pytest.raises(OSError, match="GPU is lost"):
        measure_idle(Mock(used_mib=Mock(side_effect=lost)), 0.01)


# Runs


def test_command_is_measured_case_by_case(tmp_path, scans, program, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    folder = tmp_path / "out" / "efficiency"
    assert measure(program, scans, tmp_path / "out") == 0
    rows = read(folder / "command_Efficiency.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [row["Name"] for row in rows] == ["a_0000.nii.gz", "肝\\udcc9_0000.nii.gz"]
    for row, name in zip(rows, ("a", ODD), strict=True):
        js = json.loads((folder / f"{name}_0000.json").read_text())
        assert (row["GPU_Mem"], row["AUC_GPU_Time"]) == ("", "")
        for column, value in organizers_row(js).items():
            assert float(row[column]) == pytest.approx(value), column
        assert js["time"] > 0.25 and len(js["RAM_list"]) == len(js["cpu_list"])
        assert (js["run"], js["program_s"], js["error"]) == (f"run of {name}", 0.25, None)
        for curve in ("GPU", "CPU", "RAM"):
            with Image.open(folder / f"{name}_0000_{curve}-Time.png") as picture:
                assert min(picture.size) > 100
    said = sys.stdout.buffer.getvalue().decode("ascii")
    for words in ("without the idle machine", "the paper", "20.34", "\n\\u809d\\udcc9: ", "\n\\u809d\\udcc9_0000 "):
        assert words in said


def test_dicom_and_folders_below_are_measured_one_by_one(tmp_path, program):
    for number in (1, 2):
        Series(hu=smooth_hu((3, 48, 64)), number=number).write(tmp_path / "in" / "study")
    (tmp_path / "in" / "below").mkdir()
    (tmp_path / "in" / "below" / "x_0000.nii.gz").write_bytes(b"a scan")
    assert measure(program, tmp_path / "in", tmp_path / "out") == 0
    rows = read(tmp_path / "out" / "efficiency" / "command_Efficiency.csv")
    assert [row["Name"] for row in rows] == ["below_x.nii.gz", "study_1.nii.gz", "study_2.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [row["Name"] for row in rows]


def test_docker_line_is_the_organizers(tmp_path, scans, program, monkeypatch):
    used_mib, nvml = iter([400, 800, *[1000] * 1000]), Mock()
    nvml.nvmlDeviceGetMemoryInfo = lambda card: Mock(total=2**36, free=2**36 - 2**20 * next(used_mib))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    outputs, archive = tmp_path / "out", tmp_path / "team.tar.gz"
    archive.write_bytes(b"")
    assert main([str(archive), "--gpu", "1", str(scans), "--idle-s", "0.15", str(outputs)]) == 0
    load, inspect, first, second = docker_calls(program)
    assert (load, inspect) == (["load", "-i", str(archive)], ["image", "inspect", "team:latest"])
    inputs = first[first.index("-v") + 1].removesuffix("/:/workspace/inputs/")
    assert first == [
        "container", "run", "--gpus=device=1", "--name", "team", "--rm", "-v", f"{inputs}/:/workspace/inputs/",
        "-v", f"{outputs}/:/workspace/outputs/", "team:latest", "/bin/bash", "-c", "sh predict.sh",
    ]  # fmt: skip
    assert not Path(inputs).exists() and second[7] != first[7]  # a folder for each case, taken away again
    nvml.nvmlDeviceGetHandleByIndex.assert_called_once_with(1)
    nvml.nvmlShutdown.assert_called_once_with()
    rows = read(outputs / "efficiency" / "team_Efficiency.csv")
    js = json.loads((outputs / "efficiency" / f"{ODD}_0000.json").read_text())
    assert float(rows[1]["GPU_Mem"]) == organizers_row(js)["GPU_Mem"] == 1000
    assert float(rows[1]["AUC_GPU_Time"]) == organizers_row(js)["AUC_GPU_Time"]


def test_without_gpu_docker_is_not_asked_for_one(tmp_path, scans, program):
    assert main(["team:latest", str(scans / "a_0000.nii.gz"), str(tmp_path / "out"), "--idle-s", "0.1"]) == 0
    assert not any("--gpus" in argument for argument in docker_calls(program)[1])


def test_failing_cases_are_named_and_the_others_go_on(tmp_path, scans, program, capsys):
    (scans / "a_0000.nii.gz").rename(scans / "bad_0000.nii.gz")
    (scans / "lost_0000.nii.gz").write_bytes(b"")
    folder = tmp_path / "out" / "efficiency"
    folder.mkdir(parents=True)
    (tmp_path / "out" / "lost.nii.gz").write_bytes(b"from before")  # an earlier run's mask is no success
    assert measure(program, scans, tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert "error: failed: bad, lost\n" in errors
    *failed, done = read(folder / "command_Efficiency.csv")
    messages = {"bad": "exit status 1: ERROR the scan is damaged", "lost": "exit status 0, but no mask"}
    for row, (name, message) in zip(failed, messages.items(), strict=True):
        assert f"error: {name}: {message}" in errors
        assert row == dict.fromkeys(COLUMNS, "") | {"Name": f"{name}_0000.nii.gz"}
        assert message in json.loads((folder / f"{name}_0000.json").read_text())["error"]
    assert float(done["Time"]) > 0.25


@pytest.mark.parametrize("name", ["a_0000.log", "a_0000.json", "a_0000_CPU-Time.png", "command_Efficiency.csv"])
def test_what_cannot_be_written_is_named_and_the_others_go_on(tmp_path, scans, program, capsys, name):
    folder = tmp_path / "out" / "efficiency"
    (folder / name).mkdir(parents=True)  # where a file should be
    assert measure(program, scans, tmp_path / "out") == 1
    said = capsys.readouterr()
    first = next(line for line in said.err.splitlines() if not line.startswith("warning: "))
    assert first.startswith("error: a: ") and first.endswith(f"Is a directory: '{folder / name}'")
    assert json.loads((folder / f"{ODD}_0000.json").read_text())["error"] is None and "_0000  " in said.out


# Wrong use


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("bin", ["other", "in", "out"], "No such image: other:latest"),
        ("nowhere", ["team", "in", "out"], "docker cannot be started"),
        ("bin", ["--command", "no-such-program-here", "in", "out"], "no program 'no-such-program-here'"),
        ("bin", ["team", "nowhere", "out"], "nowhere does not exist"),
        ("bin", ["--command", "python 'my app.py", "in", "out"], "No closing quotation"),
        ("bin", ["team", "in", "out", "--gpu", "1"], "--gpu 1: no such card, or no driver"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, scans, program, monkeypatch, capsys, path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / path))
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_image_and_command_exclude_each_other(scans, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["team", "--command", "x", str(scans), "out"])
    assert stop.value.code == 2 and "either IMAGE or --command" in capsys.readouterr().err
