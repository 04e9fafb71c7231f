"""A clock that a test advances, so that every sample comes when the test says; and runs of the monitor on it."""

import csv
import threading
from pathlib import Path

from app.monitor import ResourceMonitor
from app.sampler import Clock

TIMEOUT_S = 30  # of a test that would hang


class FakeClock(Clock):
    """Its time passes by `advance`, and by a hundredth of a second when the sampler is stopped."""

    def __init__(self):
        self._time_s, self._stopped = 0.0, False
        self._deadline_s: float | None = None  # for which the sampler waits; None while it is at work
        self._changed = threading.Condition()

    def now_s(self) -> float:
        return self._time_s

    def wait_until(self, time_s: float) -> bool:
        with self._changed:
            self._deadline_s = time_s
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._time_s >= time_s, TIMEOUT_S)
            self._deadline_s = None
            return self._stopped

    def stop(self) -> None:
        with self._changed:
            self._time_s += 0.01
            self._stopped = True
            self._changed.notify_all()

    def advance(self, seconds: float) -> None:
        """From one deadline to the next, each sample being taken before time goes on. Called outside samples."""
        with self._changed:
            end_s = self._time_s + seconds
            while True:
                assert self._changed.wait_for(lambda: self._deadline_s is not None, TIMEOUT_S), "the sampler has ended"
                if self._deadline_s > end_s:
                    break
                self._time_s = max(self._time_s, self._deadline_s)
                self._deadline_s = None
                self._changed.notify_all()
            self._time_s = max(self._time_s, end_s)

    def spend(self, seconds: float) -> None:
        """Time that a sample takes. Called in the sample."""
        self._time_s += seconds


def run(path: Path, seconds: float = 1.0, interval_s: float = 0.25, **options) -> tuple[list[dict], dict]:
    """(rows, summary) of a run of so many seconds: a row at each multiple of the interval, and one at the end."""
    clock = FakeClock()
    with ResourceMonitor(path, interval_s, clock=clock, **options) as monitor:
        clock.advance(seconds)
    return read(path), monitor.summary()


def read(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def numbers(rows: list[dict], column: str) -> list[float]:
    return [float(row[column]) for row in rows if row[column]]
