"""What the monitor records, on a clock that the test advances; nothing that goes wrong in it reaches the run."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from app.flare_figures import cpu_percent
from app.monitor import COLUMNS, ResourceMonitor
from app.process_tree import ProcessTree
from tests.fake_clock import FakeClock, numbers, read, run

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20


# What is recorded


def test_a_row_at_the_start_at_each_interval_and_at_the_end(tmp_path):
    rows, summary = run(tmp_path / "m.csv", 1.0, 0.25)
    assert tuple(rows[0]) == COLUMNS
    assert numbers(rows, "time_s") == [0, 0.25, 0.5, 0.75, 1.0, 1.01]
    expected = {"duration_s": 1.01, "interval_s": 0.25, "samples": 6, "missed_samples": 0, "late_samples": 0}
    assert summary.items() >= expected.items()


def test_memory_of_this_process_and_of_the_host(tmp_path):
    _, summary = run(tmp_path / "m.csv", device="cpu")
    own_rss_mib = psutil.Process().memory_info().rss / MIB
    assert own_rss_mib / 2 < summary["peak_rss_mib"] < own_rss_mib * 2
    assert 0 < summary["peak_host_ram_used_mib"] < psutil.virtual_memory().total / MIB


def test_cpu_column_and_area(tmp_path, monkeypatch):
    seconds = [(0, 0, 0), (0.2, 0.3, 0.4), (0.2, 0.3, 0.9), (1.0, 0.4, 0.9), (1.1, 0.5, 1.0), (1.1, 0.5, 1.2)]
    times = [SimpleNamespace(user=user, system=system, idle=idle) for user, system, idle in seconds]
    monkeypatch.setattr(psutil, "cpu_times", iter(times).__next__)
    rows, summary = run(tmp_path / "m.csv")
    used = [cpu_percent(before, now) for before, now in pairwise(times)]
    assert rows[0]["cpu_percent"] == rows[0]["process_cpu_percent"] == ""  # no difference yet
    assert numbers(rows, "cpu_percent") == pytest.approx(used, abs=1e-3)
    assert summary["auc_cpu_percent_s"] == pytest.approx(0.25 * sum(used[:-1]) + 0.01 * used[-1], abs=1e-2)


def test_own_cpu_is_that_of_this_process(tmp_path):
    clock, start_s = FakeClock(), time.process_time()
    with ResourceMonitor(tmp_path / "m.csv", 1.0, clock=clock):
        clock.advance(0)
        before_s = time.process_time()
        while (spent_s := time.process_time() - before_s) < 0.1:
            pass
        clock.advance(1.0)
        most_s = time.process_time() - start_s
    assert 100 * spent_s - 0.1 <= numbers(read(tmp_path / "m.csv"), "process_cpu_percent")[0] <= 100 * most_s + 0.1


def test_children_count_for_cpu_and_ram():
    clock = FakeClock()
    tree = ProcessTree(clock.now_s)
    burn = "x = b'1' * (100 << 20)\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        tree.read()
        before_s = psutil.Process(child.pid).cpu_times().user
        while psutil.Process(child.pid).cpu_times().user < before_s + 0.05:
            pass
        clock.spend(1e6)  # the share of this process itself is 0 of so long a time; children are looked for again
        percent, rss_bytes = tree.read()
        child.kill()
    assert percent > 0 and rss_bytes > psutil.Process().memory_info().rss + 100 * MIB


# Stages


def test_stage_column(tmp_path):
    clock, reading, read_on = FakeClock(), threading.Event(), threading.Event()
    with ResourceMonitor(tmp_path / "m.csv", 0.25, clock=clock) as monitor:

        def read_ahead():
            with monitor.stage("read", "b"):
                reading.set()
                read_on.wait(30)

        clock.advance(0)
        reader = threading.Thread(target=read_ahead)
        reader.start()
        reading.wait(30)
        clock.advance(0.25)
        with monitor.stage("segment", "a"):
            clock.advance(0.25)
            with monitor.stage("postprocess", "a"):
                clock.advance(0.25)
            with monitor.stage("read", "b"):
                clock.advance(0.25)
            clock.advance(0.25)
        with monitor.stage("wait"):
            clock.advance(0.25)
        read_on.set()
        reader.join()
        with suppress(ValueError), monitor.stage("write", 'a,"b"\nc \udcff ä'):  # any name, even not UTF-8
            clock.advance(0.25)
            raise ValueError
    assert [(row["stage"], row["case"]) for row in read(tmp_path / "m.csv")] == [
        ("", ""), ("read", "b"), ("segment+read", "a+b"), ("postprocess+read", "a+b"),
        ("read", "b"),  # both threads read: each name once
        ("segment+read", "a+b"), ("wait+read", "b"), ("write", 'a,"b"\nc \udcff ä'), ("", ""),
    ]  # fmt: skip
    assert monitor.summary()["error"] is None


# Nothing that goes wrong reaches the run


@pytest.mark.parametrize(
    ("name", "error"),
    [("missing/m.csv", "FileNotFoundError"), ("earlier.csv", "FileExistsError"), ("full", "No space")],
)
def test_a_file_that_cannot_be_written_ends_the_writing_only(tmp_path, monkeypatch, capfd, name, error):
    (tmp_path / "earlier.csv").write_text("earlier")
    if name == "full":
        opened = Path.open
        monkeypatch.setattr(Path, "open", lambda path, mode, *rest, **more: opened("/dev/full", "w", *rest, **more))
    clock = FakeClock()
    with ResourceMonitor(tmp_path / name, clock=clock) as monitor:
        clock.advance(2.0)
    monkeypatch.undo()
    summary = monitor.summary()
    assert error in summary["error"] and summary["samples"] == 22 and summary["auc_cpu_percent_s"] > 0
    assert "/dev/full" not in [file.path for file in psutil.Process().open_files()]
    assert capfd.readouterr() == ("", "") and (tmp_path / "earlier.csv").read_text() == "earlier"


@pytest.mark.parametrize(("probe", "column"), [("cpu_times", "cpu_percent"), ("virtual_memory", "host_ram_used_mib")])
def test_a_system_figure_that_cannot_be_read_is_an_empty_cell(tmp_path, monkeypatch, probe, column):
    def denied():
        raise PermissionError("/proc")

    monkeypatch.setattr(psutil, probe, denied)
    rows, summary = run(tmp_path / "m.csv")
    assert not numbers(rows, column) and summary["error"] is None and summary["peak_rss_mib"] > 0


KILLED = """
import os, signal, sys
from app.monitor import ResourceMonitor
from tests.fake_clock import FakeClock
clock = FakeClock()
with ResourceMonitor(sys.argv[1], 0.25, clock=clock) as monitor, monitor.stage("segment", "case"):
    clock.advance(1.75)
    assert not {name.partition(".")[0] for name in sys.modules} & {"torch", "numpy"}
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_whole_rows_of_all_but_the_last_second_and_torch_is_never_imported(tmp_path):
    path = tmp_path / "m.csv"
    assert subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT).returncode == -signal.SIGKILL
    assert path.read_bytes().endswith(b"\r\n")
    rows = read(path)
    assert all(None not in row and None not in row.values() for row in rows)  # as many cells as columns
    assert numbers(rows, "time_s") == [0, 0.25, 0.5, 0.75, 1.0] and rows[-1]["case"] == "case"
