"""Read the next case while this one is segmented, and the first while torch is imported."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ReadAhead(Generic[Item, Result]):
    """One result ahead of the loop that takes them, and never more: two volumes in memory at most.

    The first reading starts at once. Use as a context manager; leaving it drops what was not begun.

    Args:
        items: What to read.
        read: Runs in a thread; what it raises is raised by the item's `result()`.
    """

    def __init__(self, items: list[Item], read: Callable[[Item], Result]) -> None:
        self._items, self._read = items, read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._readings: list[Future[Result]] = []  # those that are not taken yet: one at most
        self._begin(0)

    def _begin(self, index: int) -> None:
        if index < len(self._items):
            self._readings.append(self._thread.submit(self._read, self._items[index]))

    def __iter__(self) -> Iterator[tuple[Item, Future[Result]]]:
        for index, item in enumerate(self._items):
            reading = self._readings.pop()
            self._begin(index + 1)  # there is one thread: it begins when this reading has ended
            yield item, reading

    def __enter__(self) -> "ReadAhead[Item, Result]":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
