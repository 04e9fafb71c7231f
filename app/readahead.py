"""Read the next case while this one is segmented, and the first while torch is imported."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ReadAhead:
    """One result ahead of the loop that takes them, and never more: two volumes in memory at most.

    The first reading starts at once. Use as a context manager; leaving it drops what was not begun.

    Args:
        items: What to read.
        read: Runs in a thread; what it raises is raised by the item's `result()`.
    """

    def __init__(self, items: list[Item], read: Callable[[Item], Result]):
        self._items, self._read = items, read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._next = self._submit(0)

    def _submit(self, index: int) -> Future[Result] | None:
        return self._thread.submit(self._read, self._items[index]) if index < len(self._items) else None

    def __iter__(self) -> Iterator[tuple[Item, Future[Result]]]:
        for index, item in enumerate(self._items):
            current, self._next = self._next, self._submit(index + 1)  # one thread: begun when this one is whole
            yield item, current

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._thread.shutdown(wait=False, cancel_futures=True)
