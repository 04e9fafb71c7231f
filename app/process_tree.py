"""CPU and RAM of this process and its children."""

import math
import time
from collections.abc import Callable
from contextlib import suppress

import psutil


class ProcessTree:
    """CPU and RAM of this process and its children, reading by reading.

    Args:
        now_s: The time, in seconds since any moment.
    """

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._now_s = now_s
        self._process = psutil.Process()
        self._children: list[psutil.Process] = []
        self._scan_due_s = now_s()
        self._time_s, self._cpu_s = -math.inf, 0.0

    def read(self) -> tuple[float, int]:
        """(CPU percent since the reading before, 100 being one core, 0 at the first; resident memory in bytes).

        Looking for children reads the whole process table: this is done once a second, or as seldom as it takes to
        stay under 0.2 % of a core.
        """
        if self._now_s() >= self._scan_due_s:
            before_s = time.thread_time()
            known = {child: child for child in self._children}  # psutil's objects remember their CPU time
            with suppress(psutil.Error, OSError):
                self._children = [known.get(child, child) for child in self._process.children(recursive=True)]
            self._scan_due_s = self._now_s() + max(1.0, 500 * (time.thread_time() - before_s))
        time_before_s, self._time_s = self._time_s, self._now_s()
        cpu_before_s, self._cpu_s = self._cpu_s, time.process_time()  # finer and cheaper than psutil's
        percent = 100 * (self._cpu_s - cpu_before_s) / (self._time_s - time_before_s)
        rss_bytes = self._process.memory_info().rss
        for child in self._children:
            with suppress(psutil.Error, OSError):  # it may have ended
                percent += child.cpu_percent()
                rss_bytes += child.memory_info().rss
        return round(percent, 1), rss_bytes
