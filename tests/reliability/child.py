"""A try in a process of its own, which may crash, hang, or set limits that end with it."""

import os
import signal
from collections.abc import Callable


def outcome_of(work: Callable[[], str]) -> tuple[str | None, str]:
    """Fork, and do the work there.

    Args:
        work: Gives "outcome", or "lost: why".

    Returns:
        (outcome, "") or (None, why it was lost); a signal that ends the process is a loss too.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.write(writing, work().encode("utf-8", "replace"))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None, f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    kind, _, detail = said.partition(": ")
    return (None, detail) if kind == "lost" else (kind, "")
