"""One reading ahead, never two; errors where they belong."""

import gc
import threading
import time
import weakref

import pytest

from app.readahead import ReadAhead


class Big:
    """A result that can be watched."""

    def __init__(self, name):
        self.name = name


def test_no_items():
    with ReadAhead([], lambda item: item) as results:
        assert list(results) == []


def test_the_first_is_begun_before_anyone_asks():
    begun = threading.Event()
    with ReadAhead(["a"], lambda item: begun.set()):
        assert begun.wait(60)


def test_the_next_is_read_while_this_one_is_used():
    begun = {name: threading.Event() for name in "abc"}
    with ReadAhead(list("abc"), lambda name: begun[name].set()) as results:
        taken = iter(results)
        next(taken)
        assert begun["b"].wait(60)
        time.sleep(0.05)
        assert not begun["c"].is_set()  # never two ahead
        next(taken)
        assert begun["c"].wait(60)


def test_at_most_two_results_are_alive():
    alive, most = weakref.WeakSet(), []

    def read(name):
        gc.collect()
        most.append(len(alive) + 1)  # those that are, and this one
        big = Big(name)
        alive.add(big)
        return big

    with ReadAhead(list(range(6)), read) as results:
        for name, future in results:
            assert future.result().name == name
            time.sleep(0.02)
    assert len(most) == 6
    assert max(most) <= 2


def test_an_error_is_raised_by_its_own_result():
    def read(item):
        if item == 2:
            raise OSError("damaged")
        return item

    got = []
    with ReadAhead([1, 2, 3], read) as results:
        for item, future in results:
            try:
                got.append(future.result())
            except OSError as error:
                got.append((item, str(error)))
    assert got == [1, (2, "damaged"), 3]


def test_leaving_early_begins_nothing_new():
    read, finished, free = [], [], threading.Event()

    def wait(item):
        read.append(item)
        finished.append(free.wait(60))

    with pytest.raises(KeyboardInterrupt), ReadAhead([1, 2, 3], wait):
        raise KeyboardInterrupt
    assert not finished  # nor is the reading waited for
    free.set()
    time.sleep(0.05)
    assert read in ([], [1])
