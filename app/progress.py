"""What a person sees of a run: a bar on a terminal, dated lines elsewhere, warnings alone with --quiet.

tqdm would do the bar; it is not among the image's packages, and this is all that is needed of it.
"""

import logging
import shutil
import sys
import time

log = logging.getLogger("app")


class Progress:
    """Cases and slices done, as one line that is rewritten in place, with the warnings above it.

    Args:
        total_cases: Cases in the run.
        quiet: Show nothing but warnings and errors.
    """

    def __init__(self, total_cases: int, quiet: bool):
        self.total_cases, self.case_number, self.case_name = total_cases, 0, ""
        self.start_s = time.monotonic()
        self.bar = sys.stderr.isatty() and not quiet
        handler = _ClearingHandler(self)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        root = logging.getLogger()
        root.handlers[:] = [handler]
        root.setLevel(logging.WARNING if quiet else logging.INFO)

    def start(self, case_name: str) -> None:
        self.case_number += 1
        self.case_name = case_name
        if self.bar:
            self.slices(0, 0)

    def slices(self, done: int, total: int) -> None:
        """Redraw the bar: slices done of the current case."""
        if not self.bar:
            return
        width = 24
        share = done / total if total else 0.0
        filled = round(width * share)
        elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - self.start_s))
        slices = f"slice {done}/{total}" if total else "reading"
        line = (
            f"[{self.case_number}/{self.total_cases}] {'#' * filled}{'.' * (width - filled)} "
            f"{slices}  {elapsed}  {self.case_name}"
        )
        columns = shutil.get_terminal_size().columns
        sys.stderr.write("\r\033[K" + line[: columns - 1])
        sys.stderr.flush()

    def clear(self) -> None:
        if self.bar:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


class _ClearingHandler(logging.StreamHandler):
    """Log lines to stderr that do not collide with the bar."""

    def __init__(self, progress: Progress):
        super().__init__(sys.stderr)
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self.progress.clear()
        super().emit(record)
