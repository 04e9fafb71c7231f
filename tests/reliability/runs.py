"""Small cases, and runs of the program on them in processes of their own."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from app.runjson import RunContent, read_record
from tests.dicom_series import Series
from tests.scans import save_ct, save_weights, smooth_hu

CASES = 5

# Runs are forked from a process that has imported torch: what is tried lies in their work, not in three seconds of
# importing. Each one is a process with a program, signals, memory and files of its own.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["app.pipeline"])


def make_cases(folder: Path, count: int = CASES, dicom: int = 0) -> tuple[Path, Path]:
    """Inputs case0 to caseN, and random weights whose masks are rich in edges: slow to write, easy to tell apart.

    Args:
        folder: Where they go.
        count: How many.
        dicom: How many of them are DICOM series; the others are NIfTI.
    """
    for number in range(count):
        hu = smooth_hu((10, 64, 64), seed=number)
        if number < dicom:
            Series(hu=hu, number=number).write(folder / "inputs" / f"case{number}")
        else:
            save_ct(folder / "inputs" / f"case{number}_0000.nii.gz", hu)
    return folder / "inputs", save_weights(folder / "weights.pt")


def start(
    inputs: Path,
    outputs: Path,
    weights: Path | None = None,
    *more: str,
    said: Path | None = None,
    user: int | None = None,
) -> BaseProcess:
    """A run of `python -m app` that has begun.

    Args:
        inputs, outputs: For --inputs and --outputs.
        weights: For --weights, or the shipped ones.
        more: Further arguments.
        said: File for what it says, or OUTPUTS.log.
        user: The user it runs as, or ours.
    """
    arguments = ["--inputs", str(inputs), "--outputs", str(outputs), "--device", "cpu", *more]
    arguments += ["--weights", str(weights)] if weights else []
    process = _CONTEXT.Process(target=_program, args=(arguments, said or said_by(outputs), user))
    process.start()
    return process


def said_by(outputs: Path) -> Path:
    """What a run with these outputs said."""
    return outputs.with_name(f"{outputs.name}.log")


def _program(arguments: list[str], said: Path, user: int | None) -> None:
    os.chdir(said.parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell started in the background
    with said.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    sys.argv = ["app", *arguments]
    runpy.run_module("app", run_name="__main__", alter_sys=True)


def wait_until(process: BaseProcess, condition: Callable[[], bool]) -> None:
    """Until the condition holds, or the run has ended."""
    while not condition() and process.is_alive():
        time.sleep(0.0005)


def finish(process: BaseProcess, timeout_s: float = 120) -> int | None:
    """Its exit status, negative for a signal; None if it had to be killed because it did not end."""
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def masks(outputs: Path) -> dict[str, bytes]:
    """Name and bytes of all that a pattern could take for a mask, at any depth."""
    return {path.name: path.read_bytes() for path in outputs.rglob("*.nii*") if path.is_file()}


def temporaries(outputs: Path) -> list[str]:
    """Whatever is hidden or unfinished, at any depth."""
    return [str(path.relative_to(outputs)) for path in outputs.rglob(".*")]


def wrong_masks(outputs: Path, right: dict[str, bytes]) -> list[str]:
    return [f"{name} is not what it should be" for name, data in masks(outputs).items() if right.get(name) != data]


def last_record(outputs: Path) -> RunContent:
    """run.json of the last run; one without cases where it was stopped before it wrote any."""
    folder = max((outputs / "logs").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    path = folder / "run.json"
    return read_record(path) if path.exists() else {"exit_status": None, "cases": []}


def statuses(outputs: Path) -> dict[str, str]:
    return {case["name"]: case["status"] for case in last_record(outputs)["cases"]}


def resumed(inputs: Path, outputs: Path, weights: Path, right: dict[str, bytes], done: set[str]) -> list[str]:
    """What is wrong after a run with --resume on what a stopped one left.

    Args:
        right: Bytes of every mask.
        done: Cases that the stopped run had recorded as done: those and no others are to be skipped.
    """
    status = finish(start(inputs, outputs, weights, "--resume"))
    problems = [] if status == 0 else [f"resumed, it ended with {status}"]
    problems += wrong_masks(outputs, right)
    problems += [f"{name} survives the next run" for name in temporaries(outputs)]
    problems += [f"{name} is missing" for name in right.keys() - masks(outputs).keys()]
    skipped = {name for name, status in statuses(outputs).items() if status == "skipped"}
    problems += [f"skipped {sorted(skipped)}, not {sorted(done)}"] if skipped != done else []
    return problems
