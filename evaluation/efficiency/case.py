"""One case, run as the organizers run it: a single file in a fresh inputs folder, and their `docker container run`."""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from app.cases import Case, case_name
from app.errors import UsageError
from app.gpu_memory import GpuMemory
from app.runjson import RecordError, read_record
from evaluation.efficiency.figures import Figures, Recording, Samples, figures_of

FOLDER = "efficiency"  # in the outputs folder: what measuring writes, apart from what is measured


class Subject(NamedTuple):
    """What is measured.

    Attributes:
        team: Names the CSV file.
        command: (inputs folder, outputs folder) -> the process to start.
        environment: For the process.
        clean_up: Called when the process did not end in order.
    """

    team: str
    command: Callable[[Path, Path], list[str]]
    environment: dict[str, str]
    clean_up: Callable[[], object] = lambda: None


def image_subject(image: str, gpu_number: int | None) -> Subject:
    """A Docker image, run by the organizers' line; `NAME` is taken as `NAME:latest`, an archive is loaded first.

    Raises:
        UsageError: There is no Docker engine or no such image.
    """
    if Path(image).is_file():  # <team>.tar.gz, as it is handed in
        _docker("load", "-i", image)
        image = Path(image).name.split(".")[0]
    team = image.rsplit("/", 1)[-1].split(":")[0]
    image = image if ":" in image.rsplit("/", 1)[-1] else f"{image}:latest"
    _docker("image", "inspect", image)
    gpus = [] if gpu_number is None else [f"--gpus=device={gpu_number}"]

    def command(inputs: Path, outputs: Path) -> list[str]:
        mounts = ["-v", f"{inputs}/:/workspace/inputs/", "-v", f"{outputs}/:/workspace/outputs/"]
        run = ["docker", "container", "run", *gpus, "--name", team, "--rm", *mounts]
        return [*run, image, "/bin/bash", "-c", "sh predict.sh"]

    return Subject(
        team, command, dict(os.environ), lambda: subprocess.run(["docker", "rm", "-f", team], capture_output=True)
    )


def _docker(*arguments: str) -> None:
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"docker cannot be started ({error.strerror}); --command measures without it") from None
    if done.returncode:
        raise UsageError(f"docker {' '.join(arguments)}: {_complaint(done.stderr)}")


def command_subject(command: str, gpu_number: int | None) -> Subject:
    """A command line, to which --inputs and --outputs are added.

    Raises:
        UsageError: The program does not exist, or a quote does not end.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--command {command!r}: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise UsageError(f"--command: no program {words[0] if words else command!r}")
    environment = dict(os.environ)
    if gpu_number is not None:  # the card that is sampled, in NVML's numbering
        environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu_number)}
    return Subject(
        "command",
        lambda inputs, outputs: [*words, "--inputs", str(inputs), "--outputs", str(outputs)],
        environment,
    )


class Measurement(NamedTuple):
    """One case.

    Attributes:
        stem: Of the input file: the organizers' Name is `<stem>.nii.gz`.
        figures, samples: Of the whole machine.
        run: Name of the log folder that the program wrote; None if it is not ours.
        program_s: Of the seconds, those that the program's own record covers: the rest is container, interpreter and
            the end of both. None if it is not ours.
        error: One line; None if the mask was written and the status was 0.
    """

    stem: str
    figures: Figures
    samples: Samples
    run: str | None
    program_s: float | None
    error: str | None


def measure_case(case: Case, outputs: Path, subject: Subject, gpu: GpuMemory | None) -> Measurement:
    """Run one case alone; what it prints goes to `<stem>.log`.

    Raises:
        OSError: The case cannot be copied, its log cannot be written, or the process cannot be started.
    """
    at_top = case.series is None and case_name(case.input) == case.name
    stem = case.input.name.removesuffix(".gz").rsplit(".", 1)[0] if at_top else case.name
    mask_before, records_before = _state(case.mask), _records(outputs)
    log = outputs / FOLDER / f"{stem}.log"
    with tempfile.TemporaryDirectory(prefix="flare22-inputs-") as folder, log.open("w", encoding="utf-8") as output:
        inputs = Path(folder)
        inputs.chmod(0o755)  # the container may run as another user
        _copy_alone(case, inputs)
        command = subject.command(inputs, outputs)
        with Recording(gpu) as recording:
            start_s = time.perf_counter()
            try:
                status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=subject.environment)
            except BaseException:
                subject.clean_up()
                raise
            seconds = time.perf_counter() - start_s
    error = None
    if status.returncode:
        error = f"exit status {status.returncode}: {_complaint(log.read_text(encoding='utf-8', errors='replace'))}"
    elif _state(case.mask) in (None, mask_before):
        error = f"exit status 0, but no mask {case.mask}"
    elif recording.fault:
        error = recording.fault
    run, program_s = _own_record(_records(outputs) - records_before)
    return Measurement(stem, figures_of(seconds, recording.samples), recording.samples, run, program_s, error)


def _copy_alone(case: Case, inputs: Path) -> None:
    """Copy a case's files into an empty folder, under names that make its mask's name there too."""
    if case.series:
        (inputs / case.name).mkdir()
        for number, path in enumerate(case.files):  # files of several folders may have one name
            shutil.copy(path, inputs / case.name / f"{number}_{path.name}")
    elif case_name(case.input) == case.name:
        shutil.copy(case.input, inputs)
    else:  # from a folder below
        shutil.copy(case.input, inputs / (case.name + case.input.name[len(case_name(case.input)) :]))


def _state(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file is written; None without one."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def _records(outputs: Path) -> set[Path]:
    return set(outputs.glob("logs/[!.]*/run.json"))


def _own_record(records: set[Path]) -> tuple[str | None, float | None]:
    """Name and seconds of the run by its own record."""
    try:
        (path,) = records
        return path.parent.name, float(read_record(path)["monitor"]["duration_s"])
    except (ValueError, KeyError, TypeError, RecordError):
        return None, None  # not our program


def _complaint(text: str) -> str:
    """The first line that speaks of an error, or the last line."""
    lines = text.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line.lower()), lines[-1]).strip()
