"""A thread that takes a sample at every multiple of an interval, without drift."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

S = TypeVar("S", bound="Sampler")

STOP_TIMEOUT_S = 2.0  # a driver call that hangs must not hold up the end of the run


class Clock:
    """The time, and a wait that `stop` ends from another thread."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def now_s(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def wait_until(self, time_s: float) -> bool:
        """True if `stop` was called, before that time or earlier."""
        return self._stop.wait(time_s - self.now_s())

    def stop(self) -> None:
        """End the wait."""
        self._stop.set()


class Sampler:
    """Takes samples from entry to exit in a daemon thread: at the start, then at each multiple of the interval.

    A deadline that passes while a sample is taken is left out.

    Args:
        sample: Takes a sample; gets the seconds since the start. An exception in it ends the sampling.
        interval_s: Time between samples.
        at_end: Called in the thread after the last sample, with the seconds since the start.
        clock: Another clock than the machine's.

    Attributes:
        missed: Deadlines that were left out.
        late: Samples that began more than half an interval after their deadline.
        error: What went wrong first, in one line, or None.
    """

    def __init__(
        self,
        sample: Callable[[float], None],
        interval_s: float,
        at_end: Callable[[float], None] = lambda time_s: None,
        clock: Clock | None = None,
    ) -> None:
        self.interval_s = interval_s
        self.missed = self.late = 0
        self.error: str | None = None
        self._sample, self._at_end = sample, at_end
        self._time_s = 0.0  # of the last sample
        self._clock = clock or Clock()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self: S) -> S:
        self._start_s = self._clock.now_s()
        self._attempt(self._thread.start)  # fails where no more threads are allowed
        return self

    def __exit__(self, *exception: object) -> None:
        self._clock.stop()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                self.error = self.error or f"sampling hung at {self._time_s:.1f} s"

    def _run(self) -> None:
        self._attempt(self._loop)
        self._attempt(lambda: self._at_end(self._clock.now_s() - self._start_s))

    def _loop(self) -> None:
        tick = 0
        while not self._clock.wait_until(self._start_s + tick * self.interval_s):
            self._time_s = self._clock.now_s() - self._start_s
            self._sample(self._time_s)
            self.late += self._time_s > (tick + 0.5) * self.interval_s
            passed = int((self._clock.now_s() - self._start_s) / self.interval_s)
            self.missed += max(0, passed - tick)
            tick = max(passed, tick) + 1

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  # no failure of the sampling reaches the run
            self.error = self.error or f"{type(error).__name__}: {error}"
