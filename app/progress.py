"""What a person sees of a run: a bar on a terminal, dated lines elsewhere, warnings alone with --quiet.

tqdm would do the bar; it is not among the image's packages, and this is all that is needed of it.
"""

import logging
import os
import sys
import time

BAR_WIDTH = 24


class Progress:
    """Cases and slices done, as one line that is rewritten in place, with the warnings above it.

    Args:
        total_cases: Cases in the run.
        quiet: Show nothing but warnings and errors.
    """

    def __init__(self, total_cases: int, quiet: bool) -> None:
        self.total_cases, self.case_number, self.case_name = total_cases, 0, ""
        self.start_s = time.monotonic()
        self.bar = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not quiet
        handler = _ClearingHandler(self)
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        root = logging.getLogger()
        root.handlers[:] = [handler]
        root.setLevel(logging.WARNING if quiet else logging.INFO)

    def reading(self) -> None:
        """Nothing to show of the next case until it is read (before the first one, the network is loaded too)."""
        if self.case_number < self.total_cases:
            self._draw(self.case_number + 1, 0.0, "reading")

    def start(self, case_name: str) -> None:
        """The next case begins."""
        self.case_number += 1
        self.case_name = one_line(case_name)

    def slices(self, done: int, total: int) -> None:
        """Slices done of the current case."""
        self._draw(self.case_number, done / total, f"slice {done}/{total}", self.case_name)

    def _draw(self, case_number: int, share: float, *words: str) -> None:
        if not self.bar:
            return
        filled = round(BAR_WIDTH * share)
        seconds = int(time.monotonic() - self.start_s)
        elapsed = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        line = "  ".join([f"[{case_number}/{self.total_cases}] {bar}", elapsed, *words])
        self._show(line)

    def clear(self) -> None:
        """Take the bar away, so that what is written next begins a line."""
        if self.bar:
            self._show("")

    def _show(self, line: str) -> None:
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # some terminals say 0
            sys.stderr.write("\r\033[K" + line[: columns - 1])
            sys.stderr.flush()
        except OSError:  # the terminal is gone, its user logged out: the run goes on
            self.bar = False


def one_line(text: str) -> str:
    """Text with line breaks and control characters written out: file names may hold them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


class _ClearingHandler(logging.StreamHandler):  # type: ignore[type-arg]  # Python 3.10 takes no argument here
    """Log lines to stderr that do not collide with the bar."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(sys.stderr)
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self.progress.clear()
        super().emit(record)
