"""What a run costs: device memory, CPU and RAM every 0.1 s, into a CSV file and a summary.

The figures are those of the FLARE22 organizers' evaluation script (Efficiency.py and load_json.py)
and of the paper's section 4.3, taken from inside the run. The monitor starts before torch is
imported, so it never imports torch itself, and it never creates a CUDA context.
"""

import csv
import os
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import psutil

COLUMNS = (
    "time_s",  # since the monitor was entered
    "gpu_used_mib",  # whole device, total - free: what the organizers see
    "torch_allocated_mib",  # tensors of this process
    "torch_reserved_mib",  # the same and what torch's allocator keeps
    "cpu_percent",  # whole host, 0..100, see `flare_cpu_percent`
    "process_cpu_percent",  # this process and its children, 100 is one core
    "rss_mib",  # this process and its children; pages that they share count for each
    "host_ram_used_mib",  # whole host, psutil's virtual_memory().used
    "stage",  # "segment", or with read-ahead "segment+read", see `ResourceMonitor.stage`
    "case",
)
FLUSH_INTERVAL_S = 1.0  # a SIGKILL loses at most the rows of this time
STOP_TIMEOUT_S = 2.0  # a driver call that hangs must not hold up the end of the run


def flare_cpu_percent(before, now) -> float:
    """CPU use of the host between two `psutil.cpu_times()`, in percent, by the organizers' formula.

    100 - 100 * idle / (user + system + idle + 0.1), each the difference in CPU seconds, summed over
    all cores. The 0.1 s keeps the quotient defined when nothing was counted; it also lifts the
    figure: an idle host of N cores, sampled every 0.1 s, reads about 100 / (N + 1) %, not 0.
    """
    user, system, idle = (getattr(now, name) - getattr(before, name) for name in ("user", "system", "idle"))
    return 100 - 100 * idle / (user + system + idle + 0.1)


class ResourceMonitor:
    """Samples in a daemon thread from entry to exit: at the start, at each interval, at the end.

    What cannot be read (no GPU, no driver, a driver that fails midway) is an empty cell. Nothing that
    goes wrong in here reaches the run: the first failure is `error` in the summary.

    Args:
        csv_path: File to write, in an existing folder; one that is there is not overwritten (`error`).
        interval_s: Time between samples. Deadlines are multiples of it since the start: no drift.
        device: "auto" or "cuda" (the first card that CUDA sees), "cuda:1", "cpu" (no GPU columns), or
            a torch.device. The card is guessed from CUDA_VISIBLE_DEVICES until torch has opened one:
            then its UUID decides, and if the guess was wrong the summary forgets the other card.

    Raises:
        ValueError: `interval_s` is not positive.
    """

    def __init__(self, csv_path: Path | str, interval_s: float = 0.1, device="auto"):
        if not interval_s > 0:
            raise ValueError(f"interval_s must be positive, got {interval_s}")
        self.csv_path, self.interval_s = Path(csv_path), interval_s
        self.error: str | None = None
        kind, _, index = str(device).partition(":")
        self._gpu = None if kind == "cpu" else _Gpu(int(index or 0))
        self._tree = _ProcessTree()
        self._cpu_times = None
        self._marks: dict[object, tuple[int, str, str]] = {}  # running stages in order of entry: thread, name, case
        self._peak: dict[str, float] = {}  # per column, as are the areas under the curve
        self._auc: dict[str, float] = {}
        self._gpu_mib_counts: Counter[float] = Counter()
        self._samples = self._missed = self._late = 0
        self._time_s = self._cpu_s = 0.0
        self._file = None
        self._flush_due_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resource-monitor", daemon=True)

    def __enter__(self):
        self._start_s = time.perf_counter()
        self._owner = threading.get_ident()
        self._attempt(self._thread.start)  # fails where no more threads are allowed
        return self

    def __exit__(self, *exception):
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                self.error = self.error or f"sampling hung at {self._time_s:.1f} s"

    @contextmanager
    def stage(self, name: str, case: str = ""):
        """Mark what the calling thread does in the body.

        Of each thread the innermost stage is shown; several threads are joined by "+", first the one
        that entered the monitor, then the others in order of start. The cases likewise, each once.
        """
        key = object()
        self._marks[key] = (threading.get_ident(), name, case)
        try:
            yield
        finally:
            del self._marks[key]

    def summary(self) -> dict[str, float | int | str | None]:
        """The run so far, ready for JSON; None where there was nothing to read.

        auc_gpu_mib_s and auc_cpu_percent_s are the organizers' 0.1 * sum(samples) ("AUC GPU" and "AUC
        CPU" of the paper's section 4.3) with the real time since the sample before in place of 0.1;
        time without a reading adds nothing. flare_gpu_mem_mib is the organizers' "GPU_Mem": the largest
        value seen in more than 2 % of the samples; where none is, the maximum, as from FLARE23 on.
        torch's peaks are those of its allocator, between samples too; all others are of samples.
        late_samples came more than half an interval after their deadline; missed_samples never did.
        """
        counts = self._gpu_mib_counts.copy()
        lasting = [mib for mib, count in counts.items() if count > 0.02 * counts.total()]
        peak, auc = self._peak, self._auc
        return {
            "duration_s": round(self._time_s, 3),
            "interval_s": self.interval_s,
            "samples": self._samples,
            "missed_samples": self._missed,
            "late_samples": self._late,
            "peak_gpu_mib": peak.get("gpu_used_mib"),
            "flare_gpu_mem_mib": max(lasting, default=peak.get("gpu_used_mib")),
            "auc_gpu_mib_s": auc.get("gpu_used_mib"),
            "auc_cpu_percent_s": auc.get("cpu_percent"),
            "peak_torch_allocated_mib": peak.get("torch_allocated_mib"),
            "peak_torch_reserved_mib": peak.get("torch_reserved_mib"),
            "peak_rss_mib": peak.get("rss_mib"),
            "peak_host_ram_used_mib": peak.get("host_ram_used_mib"),
            "monitor_cpu_s": round(self._cpu_s, 4),
            "error": self.error,
        }

    def _run(self):
        self._attempt(self._open)
        self._attempt(self._loop)
        self._attempt(lambda: self._file and self._file.close())
        if self._gpu:
            self._gpu.close()

    def _loop(self):
        tick = 0
        while not self._stop.wait(self._start_s + tick * self.interval_s - time.perf_counter()):
            self._sample()
            self._late += self._time_s > (tick + 0.5) * self.interval_s
            next_tick = int((time.perf_counter() - self._start_s) / self.interval_s) + 1
            self._missed += next_tick - tick - 1
            tick = next_tick
        self._sample()

    def _sample(self):
        before_s, self._time_s = self._time_s, time.perf_counter() - self._start_s
        row = dict.fromkeys(COLUMNS) | {"time_s": round(self._time_s, 3)}
        cpu_before, self._cpu_times = self._cpu_times, _quiet(psutil.cpu_times)
        row["host_ram_used_mib"] = _mib(_quiet(lambda: psutil.virtual_memory().used))
        process_cpu_percent, rss_bytes = _quiet(self._tree.read) or (None, None)
        row["rss_mib"] = _mib(rss_bytes)
        if self._samples:  # CPU use is the difference from the sample before
            row["cpu_percent"] = _quiet(lambda: round(flare_cpu_percent(cpu_before, self._cpu_times), 3))
            row["process_cpu_percent"] = process_cpu_percent
        if self._gpu:
            if _quiet(self._gpu.follow_torch):  # what was sampled so far was another card
                self._gpu_mib_counts.clear()
                self._peak.pop("gpu_used_mib", None)
                self._auc.pop("gpu_used_mib", None)
            row["gpu_used_mib"] = _mib(_quiet(self._gpu.used_bytes))
            for column, usage in (_quiet(self._gpu.torch_usage) or {}).items():
                row[column] = _mib(usage["current"])
                self._peak[column] = max(_mib(usage["peak"]), self._peak.get(column, 0))
        for column, value in row.items():
            if value is not None:
                self._peak[column] = max(value, self._peak.get(column, 0))
                self._auc[column] = self._auc.get(column, 0) + value * (self._time_s - before_s)
        if row["gpu_used_mib"] is not None:
            self._gpu_mib_counts[row["gpu_used_mib"]] += 1
        running = {mark[0]: mark for mark in list(self._marks.values())}  # the innermost of each thread
        marks = sorted(running.values(), key=lambda mark: mark[0] != self._owner)
        row["stage"] = "+".join(dict.fromkeys(name for _, name, _ in marks))
        row["case"] = "+".join(dict.fromkeys(case for _, _, case in marks if case))
        self._samples += 1
        if self.error is None:
            self._attempt(self._write, row)
        self._cpu_s = time.thread_time()

    def _open(self):
        # The buffer holds more than a second of rows: only whole ones reach the file.
        self._file = self.csv_path.open("x", 2**20, encoding="utf-8", errors="surrogateescape", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS)
        self._csv.writeheader()

    def _write(self, row: dict):
        self._csv.writerow(row)
        if time.perf_counter() >= self._flush_due_s:
            self._file.flush()
            self._flush_due_s = time.perf_counter() + FLUSH_INTERVAL_S

    def _attempt(self, action, *arguments):
        try:
            action(*arguments)
        except Exception as error:
            self.error = self.error or f"{type(error).__name__}: {error}"


class _ProcessTree:
    """CPU and RAM of this process and its children."""

    def __init__(self):
        self.process = psutil.Process()
        self.children: list[psutil.Process] = []
        self._scan_due_s = self._time_s = self._cpu_s = 0.0

    def read(self) -> tuple[float, int]:
        """(CPU percent since the last call, 100 being one core; RSS in bytes).

        Looking for children reads the whole process table: once a second, or as seldom as it takes to
        stay under 0.2 % of a core.
        """
        if time.perf_counter() >= self._scan_due_s:
            before_s = time.thread_time()
            known = {child: child for child in self.children}  # they remember their CPU time
            found = _quiet(lambda: self.process.children(recursive=True)) or ()
            self.children = [known.get(child, child) for child in found]
            self._scan_due_s = time.perf_counter() + max(1.0, 500 * (time.thread_time() - before_s))
        time_before_s, self._time_s = self._time_s, time.perf_counter()
        cpu_before_s, self._cpu_s = self._cpu_s, time.process_time()  # finer and cheaper than psutil's
        percent = 100 * (self._cpu_s - cpu_before_s) / (self._time_s - time_before_s)
        rss_bytes = self.process.memory_info().rss
        for child in self.children:
            percent += _quiet(child.cpu_percent) or 0  # nothing of a child that has ended
            rss_bytes += _quiet(lambda child=child: child.memory_info().rss) or 0
        return round(percent, 1), rss_bytes


class _Gpu:
    """Memory of one card, or MIG instance, and of torch on it. Every method but `close` may raise.

    Args:
        index: Number of the card among those that CUDA shows this process.
    """

    def __init__(self, index: int):
        self.index = index
        self._nvml = None  # the module; False where it or the driver is missing
        self._handle = None
        self._settled = False  # no guess any more

    def used_bytes(self) -> int | None:
        if self._nvml is None:
            self._nvml = False
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handle = _quiet(self._guess)
        if self._handle is None:
            return None
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return memory.total - memory.free

    def torch_usage(self) -> dict[str, dict[str, int]] | None:
        """Per column "current" and "peak" bytes, once torch has opened a card: asking before would open it."""
        cuda = sys.modules.get("torch.cuda")
        if cuda is None or not cuda.is_initialized():
            return None
        stats = cuda.memory_stats_as_nested_dict(self.index)
        return {f"torch_{kind}_mib": stats[f"{kind}_bytes"]["all"] for kind in ("allocated", "reserved")}

    def follow_torch(self) -> bool:
        """Take the card that torch has opened, once there is one. True if it is not the one guessed."""
        cuda = sys.modules.get("torch.cuda")
        if self._settled or not self._nvml or cuda is None or not cuda.is_initialized():
            return False
        self._settled = True
        uuid = cuda.get_device_properties(self.index).uuid
        guess, self._handle = self._handle, self._find(f"MIG-{uuid}") or self._find(f"GPU-{uuid}") or self._handle
        return guess is not None and self._uuid(guess) != self._uuid(self._handle)

    def close(self):
        if self._nvml:
            _quiet(self._nvml.nvmlShutdown)

    def _guess(self):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        entry = str(self.index) if visible is None else visible.split(",")[self.index].strip()
        if entry.startswith(("GPU-", "MIG-")):  # CUDA takes the first digits of a UUID too
            self._settled = entry.startswith("MIG-")  # torch may name the whole card
            return self._find(entry)
        number = int(entry)  # "" and -1 hide every card
        return self._instances(self._nvml.nvmlDeviceGetHandleByIndex(number))[0] if number >= 0 else None

    def _find(self, uuid: str):
        for number in range(self._nvml.nvmlDeviceGetCount()):
            card = _quiet(self._nvml.nvmlDeviceGetHandleByIndex, number)
            for handle in self._instances(card) if card else ():
                if self._uuid(handle).startswith(uuid) or self._uuid(card).startswith(uuid):
                    return handle
        return None

    def _instances(self, card) -> list:
        """The MIG instances of a card, of which CUDA uses the first it may; the card itself if undivided."""
        numbers = range(_quiet(self._nvml.nvmlDeviceGetMaxMigDeviceCount, card) or 0)
        instances = (_quiet(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, number) for number in numbers)
        return [instance for instance in instances if instance] or [card]

    def _uuid(self, handle) -> str:
        return _quiet(self._nvml.nvmlDeviceGetUUID, handle) or ""


def _quiet(read, *arguments):
    """A reading, or None where it cannot be had."""
    try:
        return read(*arguments)
    except Exception:
        return None


def _mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / 2**20, 3)
