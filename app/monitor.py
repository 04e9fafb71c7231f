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
from typing import Any, TextIO

import psutil

from app.flare_figures import cpu_percent, lasting_maximum
from app.gpu_memory import GpuMemory, or_none, torch_usage
from app.process_tree import ProcessTree
from app.sampler import Clock, Sampler

COLUMNS = (  # docs/formats.md says what is in them
    "time_s", "gpu_used_mib", "torch_allocated_mib", "torch_reserved_mib", "cpu_percent", "process_cpu_percent",
    "rss_mib", "host_ram_used_mib", "stage", "case",
)  # fmt: skip
FLUSH_INTERVAL_S = 1.0  # a SIGKILL loses at most the rows of this time


class ResourceMonitor(Sampler):
    """Samples in a daemon thread from entry to exit: at the start, at each interval, at the end.

    What cannot be read (no GPU, no driver, a driver that fails midway) is an empty cell. No failure of the monitor
    reaches the run: the first one is `error` in the summary.

    Args:
        csv_path: File to write, in an existing folder; one that is there is not overwritten (`error`).
        interval_s: Time between samples.
        device: "auto" or "cuda": the first card that CUDA sees; "cpu": no GPU columns. Once torch has opened a card,
            its UUID decides; if the guess until then was wrong, the summary forgets the other card.
        clock: Another clock than the machine's.
    """

    def __init__(
        self, csv_path: Path | str, interval_s: float = 0.1, device: str = "auto", clock: Clock | None = None
    ) -> None:
        clock = clock or Clock()
        super().__init__(self._take, interval_s, self._end, clock)
        self._csv_path = Path(csv_path)
        self._owner = threading.get_ident()
        self._tree = ProcessTree(clock.now_s)
        self._watch_gpu = device != "cpu"
        self._gpu: GpuMemory | None = None
        self._cpu_times: Any = None
        self._marks: dict[object, tuple[int, str, str]] = {}  # running stages in order of entry: thread, name, case
        self._peak: dict[str, float] = {}  # by column
        self._auc: dict[str, float] = {}  # area under the curve, by column
        self._gpu_mib_counts: Counter[float] = Counter()
        self._samples = 0
        self._duration_s = self._cpu_s = 0.0
        self._file: TextIO | None = None
        self._flush_due_s = 0.0

    @contextmanager
    def stage(self, name: str, case: str = "") -> Iterator[None]:
        """Mark what the calling thread does in the body.

        Of each thread the innermost stage is shown. Several threads are joined by "+": first the one that made the
        monitor, then the others in order of start. Cases are joined likewise, each once.
        """
        key = object()
        self._marks[key] = (threading.get_ident(), name, case)
        try:
            yield
        finally:
            del self._marks[key]

    def summary(self) -> dict[str, float | int | str | None]:
        """The run so far, as run.json has it; None where there was nothing to read.

        The areas under the curves are the organizers' 0.1 * sum(samples), with the real time since the sample before
        in place of 0.1; time without a reading adds nothing. torch's peaks are those of its allocator, between samples
        too; all other peaks are of samples.
        """
        peak, auc = self._peak, self._auc
        return {
            "duration_s": round(self._duration_s, 3),
            "interval_s": self.interval_s,
            "samples": self._samples,
            "missed_samples": self.missed,
            "late_samples": self.late,
            "peak_gpu_mib": peak.get("gpu_used_mib"),
            "flare_gpu_mem_mib": lasting_maximum(self._gpu_mib_counts.copy()),
            "auc_gpu_mib_s": auc.get("gpu_used_mib"),
            "auc_cpu_percent_s": auc.get("cpu_percent"),
            "peak_torch_allocated_mib": peak.get("torch_allocated_mib"),
            "peak_torch_reserved_mib": peak.get("torch_reserved_mib"),
            "peak_rss_mib": peak.get("rss_mib"),
            "peak_host_ram_used_mib": peak.get("host_ram_used_mib"),
            "monitor_cpu_s": round(self._cpu_s, 4),
            "error": self.error,
        }

    def _take(self, time_s: float) -> None:
        if not self._samples:
            self._attempt(self._open)
            self._gpu = or_none(GpuMemory) if self._watch_gpu else None
        since_last_s, self._duration_s = time_s - self._duration_s, time_s
        row = self._reading(time_s)
        for column, value in row.items():
            if value is not None:
                self._peak[column] = max(value, self._peak.get(column, 0))
                self._auc[column] = self._auc.get(column, 0) + value * since_last_s
        if row["gpu_used_mib"] is not None:
            self._gpu_mib_counts[row["gpu_used_mib"]] += 1
        self._samples += 1
        if self.error is None:
            self._attempt(lambda: self._add_row(row | self._running()))
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
            used_mib = or_none(self._gpu.used_mib)
            row["gpu_used_mib"] = None if used_mib is None else round(used_mib, 3)
        if self._watch_gpu:
            for column, usage in (or_none(torch_usage) or {}).items():
                row[column] = _mib(usage["current"])
                self._peak[column] = max(round(usage["peak"] / 2**20, 3), self._peak.get(column, 0))
        return row

    def _running(self) -> dict[str, str]:
        """The cells of stage and case."""
        innermost = {mark[0]: mark for mark in list(self._marks.values())}  # by thread
        marks = sorted(innermost.values(), key=lambda mark: mark[0] != self._owner)
        stages, cases = (name for _, name, _ in marks), (case for _, _, case in marks if case)
        return {"stage": "+".join(dict.fromkeys(stages)), "case": "+".join(dict.fromkeys(cases))}

    def _open(self) -> None:
        # The buffer holds more than a second of rows: only whole ones reach the file.
        self._file = self._csv_path.open("x", 2**20, encoding="utf-8", errors="surrogateescape", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS)
        self._csv.writeheader()

    def _add_row(self, row: dict[str, Any]) -> None:
        self._csv.writerow(row)
        if self._file and self._duration_s >= self._flush_due_s:
            self._file.flush()
            self._flush_due_s = self._duration_s + FLUSH_INTERVAL_S

    def _end(self, time_s: float) -> None:
        self._take(time_s)
        if self._file:
            self._attempt(self._file.close)
        if self._gpu:
            self._gpu.close()


def _mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / 2**20, 3)
