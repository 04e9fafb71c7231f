"""The command line: what is done, said and left behind when all goes well, and when nothing does."""

import contextlib
import csv
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from app import __version__
from app.__main__ import main
from app.ct import read_ct
from app.options import WEIGHTS, parse
from app.record import RunRecord
from app.weights import Weights
from tests.scans import mask_array, save_ct, save_weights, smooth_hu

ROOT = Path(__file__).resolve().parents[1]
QUALITY = re.compile(r": (look|implausible): ")
DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING|ERROR) ")


@pytest.fixture
def folders(tmp_path):
    """(inputs with cases a, b and c; outputs, not there yet)."""
    for seed, name in enumerate("abc"):
        save_ct(tmp_path / "in" / f"{name}_0000.nii.gz", smooth_hu(seed=seed))
    return tmp_path / "in", tmp_path / "out"


def records(outputs):
    """Every run.json, oldest first."""
    return [json.loads(path.read_text()) for path in sorted(outputs.glob("logs/*/run.json"), key=os.path.getmtime)]


def statuses(record):
    return {case["name"]: case["status"] for case in record["cases"]}


def messages(stderr):
    """What is said, but for the masks' quality: a random network's are never ok."""
    lines = stderr.splitlines()
    assert all(DATED.match(line) for line in lines), stderr
    return [DATED.sub("", line) for line in lines if not QUALITY.search(line)]


def masks(outputs):
    """Names of all that may be taken for a mask, at any depth; nothing else that is hidden or half-written."""
    files = [path for path in outputs.rglob("*") if path.is_file()]
    assert {path.name for path in files if path.parent == outputs} == {path.name for path in outputs.glob("*.nii.gz")}
    assert not [path for path in files if "part" in path.name]
    found = [path for path in files if ".nii" in path.name]
    assert all(path.parent == outputs for path in found)
    return sorted(path.name for path in found)


def test_a_run(folders, run_app):
    inputs, outputs = folders
    outcome = run_app("--inputs", inputs, "--outputs", outputs)
    assert outcome.status == 0
    assert masks(outputs) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    for name in "abc":
        ct, mask = nib.load(inputs / f"{name}_0000.nii.gz"), nib.load(outputs / f"{name}.nii.gz")
        assert mask.shape == ct.shape
        assert np.array_equal(mask.affine, ct.affine)
        assert mask.get_data_dtype() == np.uint8
    (record,) = records(outputs)
    assert record["exit_status"] == 0
    assert statuses(record) == dict.fromkeys("abc", "done")
    assert all(case["seconds"]["read"] >= 0 for case in record["cases"])
    assert record["versions"]["torch"]
    assert record["monitor"]["samples"] >= 2
    (folder,) = (outputs / "logs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["monitor.csv", "run.json", "volumes.csv"]
    start, *cases, end = messages(outcome.stderr)
    assert re.fullmatch(r"on .+, (bfloat16|int8|float32), threads: \d+, weights [0-9a-f]{12}", start)
    assert [re.sub(r"[\d.]+ s$", "T s", line) for line in cases] == [f"{name}: 3 slices in T s" for name in "abc"]
    assert re.fullmatch(rf"3 done, 0 failed, 0 skipped in [\d.]+ s; masks in {outputs}, log in {folder}", end)


def test_quality_of_each_mask(folders, run_app):
    inputs, outputs = folders
    (inputs / "broken_0000.nii").touch()
    outcome = run_app("--inputs", inputs, "--outputs", outputs, "--quiet")
    assert outcome.status == 1  # the broken one's: quality changes no exit status
    (record,) = records(outputs)
    done = {case["name"]: case for case in record["cases"] if case["status"] == "done"}
    assert set(done) == set("abc")
    warned = [DATED.sub("", line) for line in outcome.stderr.splitlines() if QUALITY.search(line)]
    assert warned == [
        f"{case['input']}: implausible: {'; '.join(case['quality']['reasons'])}" for case in done.values()
    ]
    with next(outputs.glob("logs/*/volumes.csv")).open(newline="") as file:
        rows = [(row["case"], row["organ"], row["quality"]) for row in csv.DictReader(file)]
    assert rows == [(case, organ, "implausible") for case in "abc" for organ in done[case]["organs"]]


def test_shards(folders, run_app):
    inputs, outputs = folders
    assert run_app("--inputs", inputs, "--outputs", outputs, "--shard", "1/2").status == 0
    assert masks(outputs) == ["b.nii.gz"]
    assert run_app("--inputs", inputs, "--outputs", outputs, "--shard", "0/2").status == 0
    assert masks(outputs) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert "0 done, 0 failed" in run_app("--inputs", inputs, "--outputs", outputs, "--shard", "3/4").stderr


def test_defaults_are_those_of_the_readme():
    table = re.findall(r"^\| `--([a-z-]+).*?` \|\s*`?([^`|]*?)`?\s*\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    told = {name.replace("-", "_"): value for name, value in table if value}
    options = {name: str(value) for name, value in vars(parse([])).items() if name in told}
    assert options["weights"] == str(WEIGHTS)
    assert options | {"inputs": "/workspace/inputs", "weights": "the shipped ones"} == told
    assert parse([]).inputs == [Path("/workspace/inputs")] and len(told) == 7


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_the_exit_status_needs_no_stderr(folders, tmp_path, stderr):
    command = f'"{sys.executable}" -m app --device cpu --inputs "$1" --outputs "$2" --weights "$3" {stderr}'

    def status(*paths):
        given = ["sh", "-c", command, "sh", *map(str, paths)]
        return subprocess.run(given, cwd=ROOT, stdout=subprocess.DEVNULL).returncode

    weights = save_weights(tmp_path / "weights.pt")
    assert status(folders[0] / "nowhere", folders[1], weights) == 2
    assert status(folders[0] / "a_0000.nii.gz", folders[1], weights) == 0
    (monitor,) = folders[1].glob("logs/*/monitor.csv")
    assert monitor.read_text().startswith("time_s,") and "WARNING" not in monitor.read_text()


@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_help_and_version(asked, capfd):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([asked])
    out, err = capfd.readouterr()
    assert err == ""
    if asked == "--version":
        assert out == f"{__version__}\n"
        return
    assert "(default: /workspace/inputs)" in " ".join(out.split())
    assert "PosixPath" not in out
    assert "Exit status: 0 all done; 1 some case failed" in out


# Bad input


def bad_files(folder):
    """Name -> what its message must say"""
    whole = (folder / "a_0000.nii.gz").read_bytes()
    (folder / "cut_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[-6] ^= 1
    (folder / "flipped_0000.nii.gz").write_bytes(flipped)
    (folder / "empty_0000.nii.gz").touch()
    (folder / "text_0000.nii.gz").write_text("not a scan")
    (folder / "archive_0000.zip").write_bytes(b"PK")
    (folder / "link_0000.nii.gz").symlink_to("nowhere")
    (folder / "two\nlines_0000.nii.gz").touch()
    nib.save(nib.Nifti1Image(np.zeros((4, 4), np.int16), np.eye(4)), folder / "flat_0000.nii.gz")
    (folder / "pair_0000.mhd").touch()
    save_ct(folder / "wide_0000.nii", affine=np.diag([90.0, 90, 5, 1]))
    return {
        "cut": "truncated",
        "flipped": "damaged gzip stream",
        "empty": "an empty file",
        "text": "damaged gzip stream",
        "archive": "a zip archive: unpack it, and give the folder that comes out",
        "link": "a link to a file that is not there",
        "two\nlines": "an empty file",
        "flat": "2",
        "pair": "one part of an image in two files",
        "wide": "a field of view of 5.76e+03 x 5.76e+03 x 15 mm",
    }


def test_bad_files_among_good_ones(folders, run_app):
    inputs, outputs = folders
    causes = bad_files(inputs)
    outcome = run_app("--inputs", inputs, "--outputs", outputs)
    assert outcome.status == 1
    assert masks(outputs) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    (record,) = records(outputs)
    assert record["exit_status"] == 1
    assert statuses(record) == dict.fromkeys("abc", "done") | dict.fromkeys(causes, "failed")
    said = messages(outcome.stderr)  # every line dated: no traceback, no line of another program
    for case in record["cases"]:
        if case["status"] == "failed":
            assert causes[case["name"]] in case["error"]
            assert "\n" not in case["error"]
            about = [line for line in said if f"{case['name'].replace(chr(10), chr(92) + 'n')}_0000" in line]
            assert len(about) == 1, case["name"]
            assert causes[case["name"]] in about[0]
    assert re.match(r"3 done, 10 failed, 0 skipped", said[-1])


def test_quiet_gives_an_error_in_one_line_and_debug_a_traceback(folders, run_app):
    inputs, outputs = folders
    (inputs / "bad.nii").touch()
    outcome = run_app("--inputs", inputs / "bad.nii", "--outputs", outputs, "--quiet")
    error, summary = messages(outcome.stderr)
    assert error == f"'{inputs / 'bad.nii'}': an empty file"
    assert summary.startswith("0 done, 1 failed, 0 skipped")
    outcome = run_app("--inputs", inputs / "bad.nii", "--outputs", outputs, "--debug")
    assert outcome.status == 1
    assert "Traceback (most recent call last):" in outcome.stderr
    assert re.search(r"^app\.\w+\.InputError: .*an empty file$", outcome.stderr, re.MULTILINE)
    outcome = run_app("--inputs", inputs, "--outputs", outputs, "--weights", inputs / "none.pt", "--debug")
    assert outcome.status == 2
    assert "Traceback (most recent call last):" in outcome.stderr


def test_doubts_are_warnings(folders, run_app):
    inputs, outputs = folders
    ct = save_ct(inputs / "clipped.nii", smooth_hu().clip(-125, 275))
    outcome = run_app("--inputs", ct, "--outputs", outputs, "--quiet")
    assert outcome.status == 0
    (warning,) = messages(outcome.stderr)
    assert warning.startswith(f"{ct}: no air at -1000 HU (values from -125 to 275)")
    assert records(outputs)[0]["cases"][0]["warnings"] == [warning.removeprefix(f"{ct}: ")]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("some\nthing"), "ValueError: some"),
        (MemoryError(), "not enough memory"),
        (KeyError(), "KeyError: no reason given"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_whatever_happens_to_a_case_the_others_are_done(folders, run_app, monkeypatch, error, said):
    inputs, outputs = folders
    from app import pipeline

    segment_case = pipeline.segment_case

    def fails(case, *arguments):
        if case.name == "b":
            raise error
        return segment_case(case, *arguments)

    monkeypatch.setattr(pipeline, "segment_case", fails)
    outcome = run_app("--inputs", inputs, "--outputs", outputs)
    assert outcome.status == 1
    assert masks(outputs) == ["a.nii.gz", "c.nii.gz"]
    (message,) = (line for line in messages(outcome.stderr) if said in line)
    assert str(inputs / "b_0000.nii.gz") in message or isinstance(error, OSError)


def test_inputs_that_vanish_or_change_while_the_run_goes_on(folders, run_app, monkeypatch):
    inputs, outputs = folders

    def read_and_change(path):
        volume = read_ct(path)
        if path.name.startswith("a"):
            (inputs / "b_0000.nii.gz").unlink()
            save_ct(inputs / "c_0000.nii.gz", smooth_hu(seed=9))
        return volume

    monkeypatch.setattr("app.run.read_ct", read_and_change)
    outcome = run_app("--inputs", inputs, "--outputs", outputs)
    assert outcome.status == 1
    (record,) = records(outputs)
    assert statuses(record) == {"a": "done", "b": "failed", "c": "done"}
    assert "no such file" in record["cases"][1]["error"]


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shard", "4/4"], "--shard takes K/N with K = 0 .. N-1"),
        (["--inputs", "{tmp}/nothing"], "{tmp}/nothing does not exist"),
        (["--inputs", "{tmp}/empty"], "no CT in {tmp}/empty"),
        (["--inputs", "{tmp}/in", "{tmp}/twin"], "would both write a.nii.gz"),
        (["--outputs", "{tmp}/in/a_0000.nii.gz"], "cannot write to the outputs folder {tmp}/in/a_0000.nii.gz"),
        (["--outputs", "{tmp}/link"], "cannot write to the outputs folder {tmp}/link"),
        (["--weights", "{tmp}/none.pt"], "{tmp}/none.pt: cannot read the weights: No such file"),
        (["--weights", "{tmp}/in/a_0000.nii.gz"], "not a weights file of this program"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--gpu-budget-mib", "0"], "invalid positive int value: '0'"),
        (["--gpu-budget-mib", "1.5"], "invalid positive int value: '1.5'"),
        (["--monitor-interval-s", "-1"], "invalid positive float value: '-1'"),
        (["--monitor-interval-s", "nan"], "invalid positive float value: 'nan'"),
        (["--monitor-interval-s", "inf"], "invalid positive float value: 'inf'"),
        (["--inputs"], "expected at least one argument"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_use_is_said_and_nothing_is_done(folders, run_app, tmp_path, arguments, said):
    inputs, outputs = folders
    (tmp_path / "link").symlink_to("nowhere/at/all")
    (tmp_path / "empty").mkdir()
    save_ct(tmp_path / "twin" / "a.nii")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    for option, value in (("--inputs", inputs), ("--outputs", outputs)):
        given += [] if option in given else [option, value]
    outcome = run_app(*given)
    assert outcome.status == 2
    assert said.format(tmp=tmp_path) in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert sorted(tmp_path.rglob("*.nii.gz")) == [inputs / f"{name}_0000.nii.gz" for name in "abc"]


@pytest.mark.parametrize("asked", ["auto", "cuda"])
@pytest.mark.parametrize(
    "problem",
    [
        "the driver is too old",
        "the network does not fit the GPU's free memory",
        "the network does not run on it (GET was unable to find an engine)",
    ],
)
def test_a_card_that_cannot_be_used(folders, run_app, monkeypatch, asked, problem):
    """Where it was asked for that is wrong use, else a warning."""
    inputs, outputs = folders
    network = Weights.network

    def full(self, place, dtype):
        if place.type == "cuda" and "fit" in problem:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if place.type == "cuda":  # the probe ran, cuDNN does not
            branch = network(self, torch.device("cpu"), torch.float32)
            branch.quarter_logits = without_an_engine
            return branch
        return network(self, place, dtype)

    def without_an_engine(images):
        raise RuntimeError("GET was unable to find an engine\nmore lines")

    monkeypatch.setattr("app.device._cuda_problem", lambda: problem if "driver" in problem else None)
    monkeypatch.setattr("app.device._has_nvidia_card", lambda: True)
    limits = []
    monkeypatch.setattr("app.segment.limit_memory", lambda place, budget_mib: limits.append((place.type, budget_mib)))
    monkeypatch.setattr(Weights, "network", full)
    options = ("--device", asked, "--gpu-budget-mib", "1234", "--quiet")
    outcome = run_app("--inputs", inputs / "a_0000.nii.gz", "--outputs", outputs, *options)
    on_gpu, on_cpu = [("cuda", 1234)] * ("network" in problem), [("cpu", 1234)] * (asked == "auto")
    assert limits == on_gpu + on_cpu
    (message,), (record,) = messages(outcome.stderr), records(outputs)
    assert record["exit_status"] == outcome.status
    if asked == "cuda":
        assert (outcome.status, message, masks(outputs)) == (2, f"--device cuda: {problem}", [])
    else:
        assert (outcome.status, message) == (0, f"THE GPU IS NOT USED: {problem}. Going on, slower, on the CPU.")
        assert record["cases"][0]["device"] == "cpu" and record["dtype"] in ("bfloat16", "int8", "float32")


def test_threads_of_the_user_are_not_exceeded(folders, run_app):
    assert run_app("--inputs", folders[0] / "a_0000.nii.gz", "--outputs", folders[1]).status == 0
    assert records(folders[1])[0]["threads"] == torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


def test_a_containers_share_of_the_cpus_is_not_exceeded(folders, run_app, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr("app.startup.usable_cpus", lambda: 1)
    try:
        assert run_app("--inputs", folders[0] / "a_0000.nii.gz", "--outputs", folders[1]).status == 0
        assert records(folders[1])[0]["threads"] == 1
    finally:
        torch.set_num_threads(before)


# Going on where a run stopped


def test_resume_does_what_is_not_done(folders, run_app, tmp_path):
    inputs, outputs = folders

    def resume(*more):
        assert run_app("--inputs", inputs, "--outputs", outputs, "--resume", *more).status == 0
        return statuses(records(outputs)[-1])

    assert resume() == dict.fromkeys("abc", "done")
    times = {path: path.stat().st_mtime_ns for path in outputs.glob("*.nii.gz")}
    assert resume() == dict.fromkeys("abc", "skipped")
    assert times == {path: path.stat().st_mtime_ns for path in outputs.glob("*.nii.gz")}

    (outputs / "a.nii.gz").unlink()
    save_ct(inputs / "b_0000.nii.gz", smooth_hu(seed=7))  # another scan under the old name
    assert resume() == {"a": "done", "b": "done", "c": "skipped"}

    mask = outputs / "c.nii.gz"
    content = bytearray(mask.read_bytes())
    content[-1] ^= 1
    mask.write_bytes(content)
    assert resume() == {"a": "skipped", "b": "skipped", "c": "done"}
    assert mask.read_bytes() != content
    assert resume() == dict.fromkeys("abc", "skipped")

    assert resume("--weights", save_weights(tmp_path / "other.pt", seed=1)) == dict.fromkeys("abc", "done")
    assert resume() == dict.fromkeys("abc", "done")  # the masks are the other weights' now
    for path in outputs.glob("logs/*/run.json"):
        path.unlink()
    assert resume() == dict.fromkeys("abc", "done")  # nothing says what the masks were made from


def test_masks_are_replaced_atomically_and_only_by_masks(folders, run_app):
    inputs, outputs = folders
    outputs.mkdir()
    (inputs / "bad_0000.nii.gz").touch()
    for name in ("a.nii.gz", "bad.nii.gz", ".mask-0123456789abcdef.partial"):  # the last one is a killed run's
        (outputs / name).write_bytes(b"older")
    with (outputs / "a.nii.gz").open("rb") as held:
        assert run_app("--inputs", inputs, "--outputs", outputs).status == 1
        assert held.read() == b"older"  # a reader of the old one is not disturbed
    assert mask_array(outputs / "a.nii.gz").shape == (64, 64, 3)
    assert (outputs / "bad.nii.gz").read_bytes() == b"older"
    assert masks(outputs) == [f"{name}.nii.gz" for name in ("a", "b", "bad", "c")]
    assert [path.name for path in outputs.iterdir() if path.name.startswith(".")] == []


def test_every_slice_of_a_thin_scan_where_it_is_asked_for(tmp_path, run_app):
    """Slabs and looks else; and no mask of these is taken for one of every slice when a run goes on."""
    save_ct(tmp_path / "thin.nii.gz", smooth_hu((6, 64, 64)), np.diag([0.75, 0.75, 1.0, 1.0]))
    arguments = ("--inputs", tmp_path / "thin.nii.gz", "--outputs", tmp_path / "out")
    made = {}
    for options in ((), ("--every-slice", "--resume"), ("--every-slice", "--resume")):
        assert run_app(*arguments, *options).status == 0
        case = records(tmp_path / "out")[-1]["cases"][0]
        made[case["status"], case.get("slices_per_slab"), case.get("slabs_per_look")] = mask_array(
            tmp_path / "out" / "thin.nii.gz"
        )
    assert list(made) == [("done", 3, 8), ("done", 1, 1), ("skipped", None, None)]
    of_slabs, of_slices, _ = made.values()
    assert not np.array_equal(of_slabs, of_slices)


# Disks


def fill(disk):
    """Take all space of a small disk; returns the file that does."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024)):
            pass
    return disk / "filler"


def test_a_full_disk_under_the_logs_loses_no_mask(folders, run_app, small_disk):
    inputs, outputs = folders
    disk = small_disk(64)
    outputs.mkdir()
    (outputs / "logs").symlink_to(disk)
    fill(disk)
    outcome = run_app("--inputs", inputs, "--outputs", outputs, "--preview")
    assert outcome.status == 1
    assert sorted(path.name for path in outputs.glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert all(mask_array(path).shape == (64, 64, 3) for path in outputs.glob("*.nii.gz"))
    said = messages(outcome.stderr)
    assert len([line for line in said if "record of this run cannot be written: No space left on device" in line]) == 1
    assert said[-1].startswith("3 done, 0 failed")


# Signals, in a process of its own

HELD = """
import runpy, sys, threading, {module}
inner = {module}.{function}
def held(case, *more):
    if "case2" in str(case):
        sys.stderr.write("held\\n")  # at once, whatever another thread says
        threading.Event().wait()
    return inner(case, *more)
{module}.{function} = held
sys.argv = sys.argv[1:]
runpy.run_module("app", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def held(tmp_path, weights_path):
    """Inputs of four cases, and the command of a run that stops for ever in the given function at the third."""
    for number in range(4):
        save_ct(tmp_path / "in" / f"case{number}_0000.nii.gz", smooth_hu(seed=number))

    def command(module, function):
        script = HELD.format(module=module, function=function)
        arguments = ["app", "--inputs", tmp_path / "in", "--outputs", tmp_path / "out", "--device", "cpu"]
        return [sys.executable, "-c", script, *map(str, arguments), "--weights", str(weights_path)]

    return command


def assert_stopped_well(outputs, status):
    """Whole masks, a true record, a closed monitor. Returns the cases that are done."""
    whole = [path for path in outputs.glob("*.nii.gz") if mask_array(path).shape == (64, 64, 3)]
    assert masks(outputs) == sorted(path.name for path in whole)  # no half-written one, no temporary
    (record,) = records(outputs)
    assert record["exit_status"] == status
    recorded = {case["name"] for case in record["cases"] if case["status"] == "done"}
    assert recorded <= {path.name.removesuffix(".nii.gz") for path in whole} <= {"case0", "case1"}
    (monitored,) = outputs.glob("logs/*/monitor.csv")
    lines = monitored.read_text().splitlines()
    assert len(lines) == record["monitor"]["samples"] + 1 > 1  # closed, the last row whole
    assert lines[-1].count(",") == lines[0].count(",")
    return recorded


@pytest.mark.parametrize("place", [("app.pipeline", "segment_case"), ("app.ct", "read_ct")])
def test_sigterm_in_the_midst_and_resume(tmp_path, held, run_app, place):
    """A CT that is still being read is not waited for either."""
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    with subprocess.Popen(held(*place), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.stderr.readline() not in ("held\n", ""):
            pass
        process.send_signal(signal.SIGTERM)
        stderr = process.stderr.read()
    assert process.returncode == 143
    recorded = assert_stopped_well(outputs, 143)
    assert messages(stderr)[-1] == "stopped by SIGTERM"
    assert run_app("--inputs", inputs, "--outputs", outputs, "--resume").status == 0
    after = statuses(records(outputs)[-1])
    assert {name for name, status in after.items() if status == "skipped"} == recorded
    assert len(masks(outputs)) == 4


def test_ctrl_c_on_a_terminal(tmp_path, held):
    master, slave = pty.openpty()

    def at_the_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored by what a shell started in the background

    process = subprocess.Popen(
        held("app.pipeline", "segment_case"),
        cwd=ROOT,
        stdin=slave,
        stderr=slave,
        env=os.environ | {"TERM": "xterm"},
        start_new_session=True,
        preexec_fn=at_the_terminal,
    )
    os.close(slave)
    shown = b""
    while b"held" not in shown:
        shown += os.read(master, 1 << 16)
    os.write(master, b"\x03")
    with contextlib.suppress(OSError):  # the end: no one holds the other side any more
        while True:
            shown += os.read(master, 1 << 16)
    os.close(master)
    assert process.wait() == 130
    assert assert_stopped_well(tmp_path / "out", 130) == {"case0", "case1"}
    text = shown.decode()
    assert re.search(r"\r\x1b\[K\[1/4\] \.{24}  0:00:\d\d  reading", text)
    assert re.search(r"\r\x1b\[K\[2/4\] #+\.*  0:\d\d:\d\d  slice \d/3  case1", text)
    assert "Traceback" not in text
    assert DATED.sub("", text.replace("\r\n", "\n").rsplit("\r\x1b[K", 1)[1]).strip() == "stopped by Ctrl-C"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_very_end_changes_nothing(folders, run_app, monkeypatch, number):
    inputs, outputs = folders
    write = RunRecord.write

    def signalled(record):
        if record.content["exit_status"] is not None:
            os.kill(os.getpid(), number)
        return write(record)

    monkeypatch.setattr(RunRecord, "write", signalled)
    assert run_app("--inputs", inputs, "--outputs", outputs).status == 0
    assert records(outputs)[0]["exit_status"] == 0


def test_nor_does_one_that_comes_when_the_interpreter_goes_down(folders, weights_path):
    script = (
        "import atexit, os, runpy, signal, sys\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module('app', run_name='__main__', alter_sys=True)"
    )
    run = [sys.executable, "-c", script, "app", "--inputs", folders[0], "--outputs", folders[1], "--device", "cpu"]
    done = subprocess.run([*run, "--weights", weights_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert messages(done.stderr)[-1].startswith("3 done")
