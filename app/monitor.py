"""What a run costs: device memory, CPU and RAM every 0.1 s, into a CSV file and a summary.

The figures are those of the FLARE22 organizers' evaluation script and of the paper's section 4.3, taken from inside the
run. The monitor starts before torch is imported, so it never imports torch itself, and it never creates a CUDA context.
"""

import csv
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from app.flare_figures import cpu_percent, lasting_maximum
from app.gpu_memory import GpuMemory, or_none, torch_usage
from app.process_tree import ProcessTree
from app.sampler import Clock, Sampler

COLUMNS = (
    "time_s",  # since the monitor was entered
    "gpu_used_mib",  # whole device, total - free: what the organizers see
    "torch_allocated_mib",  # tensors of this process
    "torch_reserved_mib",  # all that torch's allocator holds: tensors, and freed memory that it keeps
    "cpu_percent",  # whole host, 0..100, by the organizers' formula
    "process_cpu_percent",  # this process and its children, 100 is one core
    "rss_mib",  # this process and its children; pages that they share count for each
    "host_ram_used_mib",  # whole host, psutil's virtual_memory().used
    "stage",  # "segment", or with read-ahead "segment+read", see `ResourceMonitor.stage`
    "case",
)
FLUSH_INTERVAL_S = 1.0  # a SIGKILL loses at most the rows of this time


class ResourceMonitor:
    """Samples in a daemon thread from entry to exit: at the start, at each interval, at the end.

    What cannot be read (no GPU, no driver, a driver that fails midway) is an empty cell. No failure of the monitor
    reaches the run: the first one is `error` in the summary.

    Args:
        csv_path: File to write, in an existing folder; one that is there is not overwritten (`error`).
        interval_s: Time between samples.
        device: "auto" or "cuda": the first card that CUDA sees; "cpu": no GPU columns. Once torch has opened a card,
            its UUID decides; if the guess until then was wrong, the summary forgets the other card.
        clock: Another clock than the machine's.

    Raises:
        ValueError: `interval_s` is not positive.
    """

    def __init__(self, csv_path: Path | str, interval_s: float = 0.1, device: str = "auto", clock: Clock | None = None):
        self.csv_path = Path(csv_path)
        self._write_error: str | None = None
        clock = clock or Clock()
        self._sampler = Sampler(self._sample, interval_s, self._end, clock, "resource-monitor")
        self._tree = ProcessTree(clock.now_s)
        self._watch_gpu = device != "cpu"
        self._gpu: GpuMemory | None = None
        self._cpu_times = None
        self._marks: dict[object, tuple[int, str, str]] = {}  # running stages in order of entry: thread, name, case
        self._peak: dict[str, float] = {}  # by column
        self._auc: dict[str, float] = {}  # area under the curve, by column
        self._gpu_mib_counts: Counter[float] = Counter()
        self._samples = 0
        self._time_s = self._cpu_s = 0.0
        self._file = None
        self._flush_due_s = 0.0

    def __enter__(self) -> "ResourceMonitor":
        self._owner = threading.get_ident()
        self._sampler.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._sampler.__exit__(*exception)

    @contextmanager
    def stage(self, name: str, case: str = "") -> Iterator[None]:
        """Mark what the calling thread does in the body.

        Of each thread the innermost stage is shown. Several threads are joined by "+": first the one that entered the
        monitor, then the others in order of start. Cases are joined likewise, each once.
        """
        key = object()
        self._marks[key] = (threading.get_ident(), name, case)
        try:
            yield
        finally:
            del self._marks[key]

    def summary(self) -> dict[str, float | int | str | None]:
        """The run so far, ready for JSON (`app.record.MonitorSummary`); None where there was nothing to read.

        auc_gpu_mib_s and auc_cpu_percent_s are the organizers' 0.1 * sum(samples) ("AUC GPU" and "AUC CPU" of the
        paper's section 4.3), with the real time since the sample before in place of 0.1; time without a reading adds
        nothing. torch's peaks are those of its allocator, between samples too; all other peaks are of samples.
        """
        peak, auc = self._peak, self._auc
        return {
            "duration_s": round(self._time_s, 3),
            "interval_s": self._sampler.interval_s,
            "samples": self._samples,
            "missed_samples": self._sampler.missed,
            "late_samples": self._sampler.late,
            "peak_gpu_mib": peak.get("gpu_used_mib"),
            "flare_gpu_mem_mib": lasting_maximum(self._gpu_mib_counts.copy()),
            "auc_gpu_mib_s": auc.get("gpu_used_mib"),
            "auc_cpu_percent_s": auc.get("cpu_percent"),
            "peak_torch_allocated_mib": peak.get("torch_allocated_mib"),
            "peak_torch_reserved_mib": peak.get("torch_reserved_mib"),
            "peak_rss_mib": peak.get("rss_mib"),
            "peak_host_ram_used_mib": peak.get("host_ram_used_mib"),
            "monitor_cpu_s": round(self._cpu_s, 4),
            "error": self._write_error or self._sampler.error,
        }

    def _sample(self, time_s: float) -> None:
        if not self._samples:
            self._attempt(self._open)
            self._gpu = or_none(GpuMemory) if self._watch_gpu else None
        since_last_s, self._time_s = time_s - self._time_s, time_s
        row = self._reading(time_s)
        for column, value in row.items():
            if value is not None:
                self._peak[column] = max(value, self._peak.get(column, 0))
                self._auc[column] = self._auc.get(column, 0) + value * since_last_s
        if row["gpu_used_mib"] is not None:
            self._gpu_mib_counts[row["gpu_used_mib"]] += 1
        self._samples += 1
        if self._write_error is None:
            self._attempt(self._add_row, row | self._running())
        self._cpu_s = time.thread_time()

    def _reading(self, time_s: float) -> dict[str, float | None]:
        """The figures of one row."""
        row = dict.fromkeys(COLUMNS[:-2]) | {"time_s": round(time_s, 3)}
        cpu_before, self._cpu_times = self._cpu_times, or_none(psutil.cpu_times)
        row["host_ram_used_mib"] = _mib(or_none(lambda: psutil.virtual_memory().used))
        process_cpu_percent, rss_bytes = or_none(self._tree.read) or (None, None)
        row["rss_mib"] = _mib(rss_bytes)
        if self._samples:  # CPU use is the difference from the sample before
            row["cpu_percent"] = or_none(lambda: round(cpu_percent(cpu_before, self._cpu_times), 3))
            row["process_cpu_percent"] = process_cpu_percent
        if self._gpu:
            if or_none(self._gpu.follow_torch):  # what was sampled so far was another card
                self._gpu_mib_counts.clear()
                self._peak.pop("gpu_used_mib", None)
                self._auc.pop("gpu_used_mib", None)
            row["gpu_used_mib"] = or_none(lambda: round(self._gpu.used_mib(), 3))
        if self._watch_gpu:
            for column, usage in (or_none(torch_usage) or {}).items():
                row[column] = _mib(usage["current"])
                self._peak[column] = max(_mib(usage["peak"]), self._peak.get(column, 0))
        return row

    def _running(self) -> dict[str, str]:
        """The cells of stage and case."""
        innermost = {mark[0]: mark for mark in list(self._marks.values())}  # by thread
        marks = sorted(innermost.values(), key=lambda mark: mark[0] != self._owner)
        stages, cases = (name for _, name, _ in marks), (case for _, _, case in marks if case)
        return {"stage": "+".join(dict.fromkeys(stages)), "case": "+".join(dict.fromkeys(cases))}

    def _open(self) -> None:
        # The buffer holds more than a second of rows: only whole ones reach the file.
        self._file = self.csv_path.open("x", 2**20, encoding="utf-8", errors="surrogateescape", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS)
        self._csv.writeheader()

    def _add_row(self, row: dict) -> None:
        self._csv.writerow(row)
        if self._time_s >= self._flush_due_s:
            self._file.flush()
            self._flush_due_s = self._time_s + FLUSH_INTERVAL_S

    def _end(self, time_s: float) -> None:
        self._sample(time_s)
        if self._file:
            self._attempt(self._file.close)
        if self._gpu:
            self._gpu.close()

    def _attempt(self, action, *arguments) -> None:
        try:
            action(*arguments)
        except Exception as error:
            self._write_error = self._write_error or f"{type(error).__name__}: {error}"


def _mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / 2**20, 3)
