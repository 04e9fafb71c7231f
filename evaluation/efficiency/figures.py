"""What the organizers sample while a case runs, and their figures of it.

Memory and CPU use of the whole machine, every 0.1 s. What the machine uses when idle is measured first: the organizers
do not subtract it, but it tells which part of the figures is the program's.
"""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import psutil

from app.flare_figures import cpu_shares, lasting_maximum
from app.gpu_memory import GpuMemory, or_none
from app.sampler import Clock, Sampler

INTERVAL_S = 0.1
IDLE_S = 5.0


class Samples(NamedTuple):
    """What the machine used, one value per interval.

    Attributes:
        gpu_mib: Total less free memory of the whole card; empty without one.
        cpu_percent: (user, system, idle), see `app.flare_figures.cpu_shares`.
        ram_mib: psutil's virtual_memory().used of the whole host.
    """

    gpu_mib: list[float]
    cpu_percent: list[tuple[float, float, float]]
    ram_mib: list[float]

    @property
    def cpu_used_percent(self) -> list[float]:
        """100 - idle, the organizers' CPU utilisation."""
        return [100 - idle for _, _, idle in self.cpu_percent]


class Idle(NamedTuple):
    """Means over some seconds in which nothing was run; gpu_mib is None without a card."""

    gpu_mib: float | None
    cpu_percent: float
    ram_mib: float


class Figures(NamedTuple):
    """The organizers' figures of one case, in the order and units of their columns (MB are MiB)."""

    seconds: float
    gpu_mib: float | None  # None without a GPU
    auc_gpu_mib_s: float | None
    cpu_percent: float | None  # largest
    auc_cpu_percent_s: float
    ram_mib: float | None  # largest
    auc_ram_mib_s: float | None


def open_gpu(number: int) -> GpuMemory | None:
    """The card of that number in nvidia-smi's order, or None where there is none (or no driver)."""
    gpu = or_none(GpuMemory, number)
    return gpu if gpu and or_none(gpu.used_mib) is not None else None


class Recording(Sampler):
    """Takes samples from entry to exit.

    Attributes:
        samples: Complete after exit, unless `fault` says why not.
    """

    def __init__(self, gpu: GpuMemory | None, clock: Clock | None = None):
        super().__init__(self._take, INTERVAL_S, self._end, clock)
        self.samples = Samples([], [], [])
        self._gpu, self._cpu_times = gpu, psutil.cpu_times()

    @property
    def fault(self) -> str | None:
        """Why the sampling ended too early, e.g. because NVML failed. None if all is well."""
        return self.error and f"GPU, CPU and RAM could no longer be sampled: {self.error}"

    def complete(self) -> Samples:
        """The samples; raises OSError if they are not of the whole time."""
        if self.fault:
            raise OSError(self.fault)
        return self.samples

    def _take(self, time_s: float) -> None:
        if time_s < INTERVAL_S / 2:  # the first CPU figure needs an interval behind it
            return
        before, self._cpu_times = self._cpu_times, psutil.cpu_times()
        if self._gpu and (used_mib := self._gpu.used_mib()) is not None:
            self.samples.gpu_mib.append(used_mib)
        self.samples.cpu_percent.append(cpu_shares(before, self._cpu_times))
        self.samples.ram_mib.append(psutil.virtual_memory().used / 2**20)

    def _end(self, time_s: float) -> None:
        if not self.samples.ram_mib:  # shorter than an interval
            self._take(INTERVAL_S)


def measure_idle(gpu: GpuMemory | None, seconds: float) -> Idle:
    """Raises OSError if the sampling fails."""
    with Recording(gpu) as recording:
        time.sleep(seconds)
    samples = recording.complete()
    return Idle(
        statistics.fmean(samples.gpu_mib) if samples.gpu_mib else None,
        statistics.fmean(samples.cpu_used_percent),
        statistics.fmean(samples.ram_mib),
    )


def figures_of(seconds: float, samples: Samples) -> Figures:
    """The organizers' figures; an area is 0.1 s times the sum of the samples. 0 where sampling failed at once."""
    cpu_percent = samples.cpu_used_percent
    return Figures(
        seconds,
        lasting_maximum(Counter(samples.gpu_mib)),
        INTERVAL_S * sum(samples.gpu_mib) if samples.gpu_mib else None,
        max(cpu_percent, default=0.0),
        INTERVAL_S * sum(cpu_percent),
        max(samples.ram_mib, default=0.0),
        INTERVAL_S * sum(samples.ram_mib),
    )


def above_idle(seconds: float, samples: Samples, idle: Idle) -> Figures:
    """The figures, after the idle machine's mean GPU memory, CPU use and RAM have been taken off every sample."""
    net = Samples(
        [mib - (idle.gpu_mib or 0.0) for mib in samples.gpu_mib],
        [(user, system, idling + idle.cpu_percent) for user, system, idling in samples.cpu_percent],
        [mib - idle.ram_mib for mib in samples.ram_mib],
    )
    return figures_of(seconds, net)


def mean(rows: Sequence[Figures]) -> Figures:
    """Of each column; None where one of its values is."""
    return Figures._make(None if None in column else statistics.fmean(column) for column in zip(*rows, strict=True))
