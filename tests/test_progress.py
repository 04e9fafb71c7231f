"""What a person sees: on a terminal (a real pseudo-terminal), in a log, and with --quiet."""

import fcntl
import logging
import os
import pty
import re
import struct
import termios
from types import SimpleNamespace

import pytest

from app import progress as module
from app.progress import BAR_WIDTH, Progress

DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING|ERROR) ")
REDRAW = "\r\033[K"
END = "\x1e"


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal as stderr; call it for what was written so far."""
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    set_columns(slave, 100)
    with open(slave, "w", buffering=1) as stderr:
        monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stderr))  # pytest sets the real one anew

        def written():
            stderr.write(END)  # what is written comes out at the other end when the kernel finds the time
            stderr.flush()
            text = ""
            while not text.endswith(END):
                text += os.read(master, 1 << 16).decode()
            return text.removesuffix(END).replace("\r\n", "\n")

        yield written
    os.close(master)


def halfway(progress):
    progress.reading()
    progress.start("a")
    progress.slices(1, 2)
    return progress


def set_columns(descriptor, columns):
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))


def test_the_bar(terminal):
    progress = Progress(12, quiet=False)
    progress.reading()
    progress.start("case_a")
    progress.slices(10, 40)
    progress.slices(40, 40)
    reading, quarter, whole = terminal().split(REDRAW)[1:]
    assert re.fullmatch(rf"\[1/12\] \.{{{BAR_WIDTH}}}  0:00:00  reading", reading)
    filled = BAR_WIDTH // 4
    assert re.fullmatch(rf"\[1/12\] #{{{filled}}}\.{{{BAR_WIDTH - filled}}}  0:00:00  slice 10/40  case_a", quarter)
    assert re.fullmatch(rf"\[1/12\] #{{{BAR_WIDTH}}}  0:00:00  slice 40/40  case_a", whole)
    progress.reading()
    assert terminal().startswith(f"{REDRAW}[2/12] .")


def test_after_the_last_case_nothing_is_read(terminal):
    progress = Progress(1, quiet=False)
    progress.start("a")
    progress.reading()
    assert terminal() == ""


def test_hours_run_on(terminal):
    progress = Progress(1, quiet=False)
    progress.start("a")
    progress.start_s -= 30 * 3600 + 61
    progress.slices(1, 2)
    assert "  30:01:01  " in terminal()


def test_log_lines_clear_the_bar_first(terminal):
    progress = halfway(Progress(1, quiet=False))
    logging.getLogger("app").warning("look")
    progress.slices(2, 2)
    progress.clear()
    _, bar, line, bar_again, cleared = terminal().split(REDRAW)[1:]
    assert "slice 1/2" in bar
    assert re.fullmatch(DATED.pattern + "look\n", line)
    assert "slice 2/2" in bar_again
    assert cleared == ""


@pytest.mark.parametrize("columns", [20, 40, 0])
def test_the_bar_never_wraps(terminal, columns):
    set_columns(module.sys.stderr.fileno(), columns)
    progress = Progress(1, quiet=False)
    progress.start("a very long name of a case, " * 5)
    progress.slices(1, 2)
    assert len(terminal()) - len(REDRAW) == (columns or 80) - 1


def test_a_dumb_terminal_gets_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    halfway(Progress(1, quiet=False))
    logging.getLogger("app").info("done")
    assert re.fullmatch(DATED.pattern + "done\n", terminal())


def test_quiet_on_a_terminal(terminal):
    progress = halfway(Progress(1, quiet=True))
    logging.getLogger("app").info("done")
    progress.clear()
    assert terminal() == ""
    logging.getLogger("app").warning("look")
    assert re.fullmatch(DATED.pattern + "look\n", terminal())


def test_a_terminal_that_goes_away_does_not_end_the_run(monkeypatch):
    """Its user logged out, and the run went on in the background."""
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    stderr = os.fdopen(slave, "w", buffering=1)
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stderr))
    monkeypatch.setattr(logging, "raiseExceptions", False)  # logging would tell stderr of its own failure
    progress = Progress(2, quiet=False)
    progress.reading()
    assert progress.bar
    os.close(master)
    progress.start("a")
    logging.getLogger("app").warning("look")
    progress.slices(1, 2)
    progress.clear()
    assert not progress.bar
    with pytest.raises(OSError, match="Input/output error"):  # nobody is there
        stderr.close()


def test_elsewhere_dated_lines_alone(capsys):
    progress = halfway(Progress(2, quiet=False))
    logging.getLogger("app.segment").info("one")
    logging.getLogger("app").error("two")
    progress.clear()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [DATED.sub("", line) for line in lines] == ["one", "two"]
    assert all(DATED.match(line) for line in lines)


def test_a_message_is_one_line_whatever_a_file_is_called(capsys):
    Progress(1, quiet=False)
    logging.getLogger("app").error("%s: damaged", "a\nb\033[31m\u2028\udcff\u00e9.nii.gz")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("a\\nb\\x1b[31m\\u2028\\udcff\u00e9.nii.gz: damaged")
