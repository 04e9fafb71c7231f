"""The organizers' efficiency run on your own desk: `python -m evaluation.efficiency IMAGE INPUTS OUTPUTS`.

One case at a time: a single file in a fresh inputs folder, their `docker container run` line, and memory and
CPU use of the whole machine every 0.1 s. Formulas, file names and columns are those of their scripts
(JunMa11/FLARE, FLARE22/Evaluation), so that their load_json.py reads what is written here. What the machine
uses when idle is measured first: the organizers do not subtract it, but it tells which figures are ours.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from app.cases import Case, case_name, find_cases
from app.errors import UsageError
from evaluation import paper
from evaluation.output import say, write_csv, write_text

INTERVAL_S = 0.1
IDLE_S = 5.0
BUSY_PERCENT = 10  # of the CPU, beyond idling: more is another program at work
LASTING_SHARE = 0.02  # "GPU_Mem" is the largest value seen in more than this share of the samples
COLUMNS = ("Name", "Time", "GPU_Mem", "AUC_GPU_Time", "CPU_Utilization", "AUC_CPU_Time", "RAM", "AUC_RAM_Time")
FOLDER = "efficiency"  # in the outputs folder: what measuring writes, apart from what is measured

SOME_FAILED, WRONG_USE = 1, 2


class Samples(NamedTuple):
    """What the machine used, one value per interval.

    Attributes:
        gpu_mib: Total - free of the whole card; empty without one.
        cpu_percent: (user, system, idle), see `cpu_shares`.
        ram_mib: psutil's virtual_memory().used of the whole host.
    """

    gpu_mib: list[float]
    cpu_percent: list[tuple[float, float, float]]
    ram_mib: list[float]

    @property
    def cpu_used_percent(self) -> list[float]:
        """100 - idle, their CPU utilisation; equals `app.monitor.flare_cpu_percent`."""
        return [100 - idle for _, _, idle in self.cpu_percent]


def cpu_shares(before, now) -> tuple[float, float, float]:
    """Of the host's CPU time between two `psutil.cpu_times()`: user, system and idle, in percent.

    The organizers divide by user + system + idle + 0.1 s: nice, iowait, interrupts and steal count nowhere, and
    an idle host does not read 0, the less so the fewer cores it has.
    """
    deltas = [getattr(now, name) - getattr(before, name) for name in ("user", "system", "idle")]
    return tuple(100 * delta / (sum(deltas) + 0.1) for delta in deltas)


class Gpu:
    """Used memory of one card, by NVML; its number is nvidia-smi's and Docker's. Closed by `close`."""

    def __init__(self, number: int):
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        self.used_mib()

    def used_mib(self) -> float:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return (memory.total - memory.free) / 2**20

    def close(self) -> None:
        self._nvml.nvmlShutdown()


def open_gpu(number: int) -> Gpu | None:
    """The card, or None where there is none (or no driver)."""
    try:
        return Gpu(number)
    except Exception:  # NVML's own errors, or its library is missing
        return None


class Sampler:
    """Samples from entry to exit in a thread of its own; deadlines are multiples of the interval: no drift.

    Attributes:
        samples: Complete after exit.
        fault: Why it ended too early, e.g. by a fault of NVML: what it saw is not the whole. None if all is well.
    """

    def __init__(self, gpu: Gpu | None):
        self.samples = Samples([], [], [])
        self._gpu = gpu
        self._stop = threading.Event()
        self.fault: str | None = None
        self._thread = threading.Thread(target=self._run, name="efficiency-sampler", daemon=True)

    def __enter__(self) -> "Sampler":
        self._start_s, self._cpu_times = time.perf_counter(), psutil.cpu_times()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        if not self.fault and not self.samples.ram_mib:  # shorter than an interval
            self._sample()

    def complete(self) -> Samples:
        """The samples; raises OSError if they are not of the whole time."""
        if self.fault:
            raise OSError(self.fault)
        return self.samples

    def _run(self) -> None:
        tick = 1  # the first CPU figure needs an interval behind it
        while not self._stop.wait(self._start_s + tick * INTERVAL_S - time.perf_counter()):
            try:
                self._sample()
            except Exception as error:
                self.fault = f"GPU, CPU and RAM could no longer be sampled: {error}"
                return
            tick = max(tick + 1, int((time.perf_counter() - self._start_s) / INTERVAL_S))

    def _sample(self) -> None:
        before, self._cpu_times = self._cpu_times, psutil.cpu_times()
        if self._gpu:
            self.samples.gpu_mib.append(self._gpu.used_mib())
        self.samples.cpu_percent.append(cpu_shares(before, self._cpu_times))
        self.samples.ram_mib.append(psutil.virtual_memory().used / 2**20)


class Idle(NamedTuple):
    """Means over some seconds in which nothing was run; gpu_mib is None without a card."""

    gpu_mib: float | None
    cpu_percent: float
    ram_mib: float


def measure_idle(gpu: Gpu | None, seconds: float) -> Idle:
    """Raises OSError if the sampling fails."""
    with Sampler(gpu) as sampler:
        time.sleep(seconds)
    samples = sampler.complete()
    return Idle(
        statistics.fmean(samples.gpu_mib) if samples.gpu_mib else None,
        statistics.fmean(samples.cpu_used_percent),
        statistics.fmean(samples.ram_mib),
    )


class Figures(NamedTuple):
    """The organizers' figures of one case, in the order and units of their columns (MB are MiB)."""

    seconds: float
    gpu_mib: float | None  # None without a GPU
    auc_gpu_mib_s: float | None
    cpu_percent: float  # largest
    auc_cpu_percent_s: float
    ram_mib: float  # largest
    auc_ram_mib_s: float


def figures_of(seconds: float, samples: Samples) -> Figures:
    """Areas are 0.1 s times the sum of the samples, as theirs."""
    cpu_percent = samples.cpu_used_percent
    return Figures(
        seconds,
        lasting_maximum(samples.gpu_mib) if samples.gpu_mib else None,
        INTERVAL_S * sum(samples.gpu_mib) if samples.gpu_mib else None,
        max(cpu_percent),
        INTERVAL_S * sum(cpu_percent),
        max(samples.ram_mib),
        INTERVAL_S * sum(samples.ram_mib),
    )


def lasting_maximum(values: Sequence[float]) -> float:
    """Largest value seen in more than 2 % of the samples; where no value is (theirs stops there), the largest."""
    counts = Counter(values)
    return max((value for value, count in counts.items() if count > LASTING_SHARE * len(values)), default=max(values))


def above_idle(figures: Figures, samples: Samples, idle: Idle) -> Figures:
    """The same figures with what the idle machine uses taken off every sample (its CPU, GPU and RAM means)."""
    count = len(samples.ram_mib)
    gpu_idle = idle.gpu_mib or 0
    return Figures(
        figures.seconds,
        None if figures.gpu_mib is None else figures.gpu_mib - gpu_idle,
        None if figures.auc_gpu_mib_s is None else figures.auc_gpu_mib_s - INTERVAL_S * count * gpu_idle,
        figures.cpu_percent - idle.cpu_percent,
        figures.auc_cpu_percent_s - INTERVAL_S * count * idle.cpu_percent,
        figures.ram_mib - idle.ram_mib,
        figures.auc_ram_mib_s - INTERVAL_S * count * idle.ram_mib,
    )


# Running one case


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
    clean_up: Callable[[], None] = lambda: None


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
        UsageError: The program does not exist.
    """
    words = shlex.split(command)
    if not words or shutil.which(words[0]) is None:
        raise UsageError(f"--command: no program {words[0] if words else command!r}")
    environment = dict(os.environ)
    if gpu_number is not None:  # the card that is sampled, in its own numbering
        environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu_number)}
    return Subject(
        "command",
        lambda inputs, outputs: [*words, "--inputs", str(inputs), "--outputs", str(outputs)],
        environment,
    )


class Measurement(NamedTuple):
    """One case. `error` is one line, None if its mask was written and the status was 0."""

    stem: str  # of the input file: their Name is `<stem>.nii.gz`
    figures: Figures
    samples: Samples
    program_s: float | None  # of these seconds, those that the program's own record covers
    error: str | None


def measure_case(case: Case, outputs: Path, subject: Subject, gpu: Gpu | None) -> Measurement:
    """Run one case alone; what it prints goes to `<stem>.log`."""
    at_top = case.series is None and case_name(case.input) == case.name
    stem = case.input.name.removesuffix(".gz").rsplit(".", 1)[0] if at_top else case.name
    mask_before, records_before = _state(case.mask), set(outputs.glob("logs/[!.]*/run.json"))
    log = outputs / FOLDER / f"{stem}.log"
    with tempfile.TemporaryDirectory(prefix="flare22-inputs-") as folder, log.open("w", encoding="utf-8") as output:
        inputs = Path(folder)
        inputs.chmod(0o755)  # the container may run as another user
        _copy_alone(case, inputs)
        command = subject.command(inputs, outputs)
        with Sampler(gpu) as sampler:
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
    elif sampler.fault:
        error = sampler.fault
    program_s = _program_seconds(set(outputs.glob("logs/[!.]*/run.json")) - records_before)
    return Measurement(stem, figures_of(seconds, sampler.samples), sampler.samples, program_s, error)


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


def _program_seconds(records: set[Path]) -> float | None:
    """How long the run took by its own record: the rest is container, interpreter and the end of both."""
    try:
        (record,) = records
        return float(json.loads(record.read_text())["monitor"]["duration_s"])
    except (ValueError, KeyError, TypeError, OSError):
        return None  # not our program


def _complaint(text: str) -> str:
    """The first line that speaks of an error, or the last line."""
    lines = text.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line.lower()), lines[-1]).strip()


# What is written


def write_case(folder: Path, measurement: Measurement, idle: Idle) -> None:
    """`<stem>.json` and three curves. The first four keys are theirs."""
    samples = measurement.samples
    content = {
        "gpu_memory": samples.gpu_mib,
        "cpu_list": samples.cpu_percent,
        "RAM_list": samples.ram_mib,
        "time": measurement.figures.seconds,
        "program_s": measurement.program_s,
        "idle": idle._asdict(),
        "error": measurement.error,
    }
    write_text(folder / f"{measurement.stem}.json", json.dumps(content, indent=1) + "\n")
    for name, label, values, idle_value in (
        ("GPU", "GPU memory (MB)", samples.gpu_mib, idle.gpu_mib),
        ("CPU", "CPU utilisation (%)", samples.cpu_used_percent, idle.cpu_percent),
        ("RAM", "RAM (MB)", samples.ram_mib, idle.ram_mib),
    ):
        _plot(folder / f"{measurement.stem}_{name}-Time.png", label, values, idle_value)


def _plot(path: Path, label: str, values: Sequence[float], idle: float | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([INTERVAL_S * (k + 1) for k in range(len(values))], values, color="#0b5c8a", label="run")
    if idle is None:
        axes.text(0.5, 0.5, "no GPU", transform=axes.transAxes, ha="center", va="center")
    else:
        axes.axhline(idle, color="#888888", linewidth=1, linestyle="--", label="idle machine")
        axes.legend(frameon=False)
    axes.set(xlabel="Time (s)", ylabel=label, xlim=(0, None), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def write_table(path: Path, measurements: Sequence[Measurement]) -> None:
    """Their columns and rounding, sorted by name; a case that failed has empty cells, as have the GPU's without one."""
    digits = (2, 0, 0, 2, 2, 2, 0)
    rows: list[Sequence] = [COLUMNS]
    for measurement in sorted(measurements):
        cells = [
            "" if value is None or measurement.error else round(float(value), places)
            for value, places in zip(measurement.figures, digits, strict=True)
        ]
        rows.append([f"{measurement.stem}.nii.gz", *cells])
    write_csv(path, rows)


def format_table(measurements: Sequence[Measurement], idle: Idle) -> list[str]:
    """Lines for the terminal: each case and the mean, as the organizers see it and above the idle machine."""
    done = [measurement for measurement in measurements if not measurement.error]
    heads = ("s", "GPU MB", "AUC GPU", "CPU %", "AUC CPU", "RAM MB", "AUC RAM")
    width = max([len(m.stem) for m in done] + [24])
    lines = [f"{'':<{width}}  {'in program':>10}  " + "  ".join(f"{head:>9}" for head in heads)]

    def add(name: str, figures: Figures, program_s: float | None = None) -> None:
        cells = [
            "-" if value is None else f"{value:.2f}" if k == 0 else f"{value:.0f}" for k, value in enumerate(figures)
        ]
        inside = "" if program_s is None else f"{program_s:.2f}"
        lines.append(f"{name:<{width}}  {inside:>10}  " + "  ".join(f"{cell:>9}" for cell in cells))

    for measurement in done:
        add(measurement.stem, measurement.figures, measurement.program_s)
        add("  without the idle machine", above_idle(measurement.figures, measurement.samples, idle))
    if len(done) > 1:
        net = [above_idle(measurement.figures, measurement.samples, idle) for measurement in done]
        add("mean", _mean([measurement.figures for measurement in done]))
        add("  without the idle machine", _mean(net))
    published = Figures(
        paper.SECONDS_PER_CASE, paper.MAX_GPU_MB, paper.AUC_GPU_MB_S, None, paper.AUC_CPU_PERCENT_S, None, None
    )
    add("the paper (mean)", published)
    return lines


def _mean(rows: Sequence[Figures]) -> Figures:
    return Figures(*(None if None in column else statistics.fmean(column) for column in zip(*rows, strict=True)))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.efficiency",
        description=__doc__.split("\n")[0],
        epilog="Exit status: 0 all cases done; 1 some case failed; 2 wrong use. Keep the machine otherwise idle.",
    )
    add = parser.add_argument
    add("image", metavar="IMAGE", nargs="?", help="image NAME (:latest) or its archive NAME.tar.gz; not with --command")
    add("inputs", type=Path, metavar="INPUTS", help="folder of CT files, or one file")
    add("outputs", type=Path, metavar="OUTPUTS", help=f"folder for masks; the measurements go to {FOLDER}/ in it")
    add("--command", metavar="CMD", help='a bare command instead, e.g. "python -m app"; --inputs, --outputs are added')
    add("--gpu", type=int, default=0, metavar="N", help="number of the card, nvidia-smi's (default: %(default)s)")
    add("--idle-s", type=float, default=IDLE_S, metavar="S", help="how long to watch the idle machine (default: 5)")
    arguments = parser.parse_intermixed_args(argv)
    if (arguments.image is None) == (arguments.command is None):
        parser.error("give either IMAGE or --command, then INPUTS and OUTPUTS")
    if not arguments.idle_s > 0:
        parser.error(f"--idle-s must be positive, got {arguments.idle_s:g}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if a case failed, 2 if nothing could be run."""
    arguments = parse_arguments(argv)
    outputs = arguments.outputs.resolve()
    folder = outputs / FOLDER
    gpu = open_gpu(arguments.gpu)
    number = arguments.gpu if gpu else None
    try:
        cases = find_cases([arguments.inputs], outputs)
        if arguments.image is not None:
            subject = image_subject(arguments.image, number)
        else:
            subject = command_subject(arguments.command, number)
        folder.mkdir(parents=True, exist_ok=True)
        idle = measure_idle(gpu, arguments.idle_s)
    except (UsageError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return WRONG_USE
    say(
        f"idle machine: {'no GPU' if idle.gpu_mib is None else f'GPU {idle.gpu_mib:.0f} MB'}, "
        f"CPU {idle.cpu_percent:.1f} %, RAM {idle.ram_mib:.0f} MB"
    )
    floor_percent = 100 / (psutil.cpu_count() + 1)  # what `cpu_shares` makes of no use at all
    if idle.cpu_percent > floor_percent + BUSY_PERCENT:
        say(
            f"warning: this machine is not idle (doing nothing reads {floor_percent:.1f} %): "
            "time and CPU figures are not to be relied on",
            sys.stderr,
        )
    measurements = []
    for case in cases:
        measurement = measure_case(case, outputs, subject, gpu)
        measurements.append(measurement)
        write_case(folder, measurement, idle)
        write_table(folder / f"{subject.team}_Efficiency.csv", measurements)
        if measurement.error:
            say(f"error: {case.name}: {measurement.error}", sys.stderr)
        else:
            say(f"{case.name}: {measurement.figures.seconds:.2f} s")
    if gpu:
        gpu.close()
    failed = [measurement.stem for measurement in measurements if measurement.error]
    if len(failed) < len(measurements):
        for line in ["", *format_table(measurements, idle)]:
            say(line)
    say("")
    say(f"measurements in {folder}")
    if failed:
        say(f"error: failed: {', '.join(failed)}", sys.stderr)
    return SOME_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
