"""When samples are taken, on a clock that the test advances; and that the thread ends, whatever happens."""

import threading
from contextlib import nullcontext

import pytest

from app.sampler import Sampler
from tests.fake_clock import FakeClock


@pytest.mark.parametrize(
    ("slow_s", "times_s", "missed"),
    [(0.1, [0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5], 0), (0.9, [0, 0.25, 0.5, 1.5], 3)],
)
def test_samples_do_not_drift_and_deadlines_during_a_sample_are_missed(slow_s, times_s, missed):
    clock, sampled_s, ended_s = FakeClock(), [], []

    def sample(time_s):
        sampled_s.append(time_s)
        clock.spend(slow_s if time_s == 0.5 else 0.1)

    with Sampler(sample, 0.25, ended_s.append, clock) as sampler:
        clock.advance(1.5)
    assert sampled_s == times_s and len(ended_s) == 1
    assert (sampler.missed, sampler.late, sampler.error) == (missed, 0, None)


@pytest.mark.parametrize(("delay_s", "late"), [(0.12, 0), (0.13, 1)])
def test_a_sample_half_an_interval_after_its_deadline_is_late(delay_s, late):
    clock = FakeClock()
    with Sampler(lambda time_s: None, 0.25, clock=clock) as sampler:
        clock.advance(0.2)
        clock.spend(0.05 + delay_s)  # the machine was busy
        clock.advance(0)
    assert (sampler.late, sampler.missed) == (late, 0)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_it_always_stops(error):
    sampled, ended = threading.Event(), []
    with (
        pytest.raises(error) if error else nullcontext(),
        Sampler(lambda time_s: time_s > 0 and sampled.set(), 0.001, ended.append),
    ):
        assert sampled.wait(30)
        if error:
            raise error
    assert len(ended) == 1 and "sampler" not in [thread.name for thread in threading.enumerate()]


def test_a_fault_ends_the_sampling_and_is_kept():
    ended = threading.Event()
    with Sampler(lambda time_s: {}[1], 0.001, lambda time_s: ended.set()) as sampler:
        assert ended.wait(30)
    assert sampler.error == "KeyError: 1"


def test_no_thread_to_be_had(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with Sampler(lambda time_s: None, 0.1) as sampler:
        pass
    assert sampler.error == "RuntimeError: can't start new thread"
