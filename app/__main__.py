"""The program: find the cases, open the record and the monitor, run, turn what happened into an exit status."""

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from app.cases import find_cases, shard
from app.errors import UsageError
from app.maskfile import remove_stale_temporaries
from app.monitor import ResourceMonitor
from app.options import parse
from app.progress import Progress, one_line
from app.record import RunRecord
from app.run import SOME_FAILED, WRONG_USE, run

INTERRUPTED, TERMINATED = 130, 143

log = logging.getLogger("app")


class Terminated(SystemExit):
    """SIGTERM, as an exception, so that every `finally` on the way out runs."""


def _on_sigterm(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the clean-up of the first
    raise Terminated(TERMINATED)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        notes: list[str] = []
        cases = shard(find_cases(options.inputs, options.outputs, notes.append), options.shard)
        record = _open_record(options.outputs)
    except UsageError as error:
        with contextlib.suppress(OSError):
            print(f"error: {one_line(str(error))}", file=sys.stderr)
        return WRONG_USE
    progress = Progress(len(cases), options.quiet)
    for line in notes:
        log.info("%s", line)
    remove_stale_temporaries(options.outputs)
    status = None
    # With --device cpu the monitor leaves the GPU alone.
    monitor = ResourceMonitor(record.folder / "monitor.csv", options.monitor_interval_s, options.device)
    try:
        with monitor:
            status = run(cases, options, monitor, progress, record)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Terminated:
        status = TERMINATED
    finally:
        # The run is over: a signal that comes now must not spoil the record.
        handlers = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
        progress.clear()
        record.content.update({"exit_status": status, "monitor": monitor.summary()})
        if not record.write():
            status = status or SOME_FAILED
    for number, handler in handlers:
        signal.signal(number, handler)
    if status in (INTERRUPTED, TERMINATED):
        log.error("stopped by %s", "Ctrl-C" if status == INTERRUPTED else "SIGTERM")
    return status


def _open_record(outputs: Path) -> RunRecord:
    try:
        return RunRecord(outputs)
    except OSError as error:
        raise UsageError(f"cannot write to the outputs folder {outputs}: {error.strerror}") from None


if __name__ == "__main__":
    if sys.stderr is None:  # closed; its number would be the next file's
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    exit_status = main()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(exit_status)  # every file is closed; torch's clean-up, or a CT that is being read, would only take time
