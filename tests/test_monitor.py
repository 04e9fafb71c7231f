"""The organizers' formulas are written again here, in their own shape, as oracles for the recorded samples."""

import csv
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml  # imported here, so that its import does not count as the monitor's cost
import pytest

from app import monitor as monitor_module
from app.monitor import COLUMNS, ResourceMonitor, flare_cpu_percent

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20


class FakeNvml:
    """Cards by index: uuid -> list of MIG uuids. `used` is called for each reading, with the handle's uuid."""

    def __init__(self, cards=None, used=lambda uuid: 1000 * MIB):
        self.cards = cards or {"GPU-aaaa-0": []}
        self.used = used
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        return list(self.cards)[index]

    def nvmlDeviceGetUUID(self, handle):
        return handle

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return 7 if self.cards[handle] else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):
        return self.cards[handle][index]

    def nvmlDeviceGetMemoryInfo(self, handle):
        used = self.used(handle)
        return SimpleNamespace(total=80000 * MIB, free=80000 * MIB - used, used=-1)


class FakeCuda:
    """torch.cuda once a card is open, and before."""

    def __init__(self, uuid="aaaa-0", initialized=True):
        self.uuid, self.initialized = uuid, initialized
        self.opened_by_monitor = False

    def is_initialized(self):
        return self.initialized

    def get_device_properties(self, index):
        self.opened_by_monitor |= not self.initialized
        return SimpleNamespace(uuid=self.uuid)

    def memory_stats_as_nested_dict(self, index):
        self.opened_by_monitor |= not self.initialized
        return {
            "allocated_bytes": {"all": {"current": 100 * MIB, "peak": 300 * MIB}},
            "reserved_bytes": {"all": {"current": 200 * MIB, "peak": 400 * MIB}},
        }


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def run(path, seconds=0.0, interval_s=0.01, **options) -> tuple[list[dict], dict]:
    """(rows, summary) of a run that sleeps."""
    with ResourceMonitor(path, interval_s, **options) as monitor:
        time.sleep(seconds)
    return read(path), monitor.summary()


def read(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def numbers(rows, column) -> list[float]:
    return [float(row[column]) for row in rows if row[column]]


def monitor_threads() -> int:
    return sum(thread.name == "resource-monitor" for thread in threading.enumerate())


# --- what is recorded -----------------------------------------------------------------------------


def test_even_the_shortest_run_has_a_first_and_a_last_sample(tmp_path):
    rows, summary = run(tmp_path / "m.csv", interval_s=10.0)
    assert tuple(rows[0]) == COLUMNS
    assert summary["samples"] == len(rows) >= 1
    rows, summary = run(tmp_path / "n.csv", 0.2, interval_s=10.0)
    assert len(rows) == 2 and summary["missed_samples"] == 0
    assert float(rows[0]["time_s"]) < 0.1 and float(rows[1]["time_s"]) >= 0.2


def test_the_summary_is_json_and_says_nothing_about_an_absent_gpu(tmp_path, nvml):
    _, summary = run(tmp_path / "m.csv", 0.1, device="cpu")
    assert json.loads(json.dumps(summary)) == summary
    assert summary["error"] is None
    assert [key for key, value in summary.items() if value is None] == [
        "peak_gpu_mib",
        "flare_gpu_mem_mib",
        "auc_gpu_mib_s",
        "peak_torch_allocated_mib",
        "peak_torch_reserved_mib",
        "error",
    ]
    own_rss_mib = psutil.Process().memory_info().rss / MIB
    assert own_rss_mib / 2 < summary["peak_rss_mib"] < own_rss_mib * 2
    assert 0 < summary["peak_host_ram_used_mib"] < psutil.virtual_memory().total / MIB


@pytest.fixture
def busy_child():
    burn = "x = b'1' * (100 << 20)\nprint(flush=True)\nwhile True: pass"
    child = subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE)
    child.stdout.readline()
    yield psutil.Process(child.pid)
    child.kill()
    child.communicate()


def test_children_count_for_cpu_and_ram(tmp_path, busy_child):
    before_s, start_s = sum(busy_child.cpu_times()[:2]), time.perf_counter()
    rows, _ = run(tmp_path / "m.csv", 1.0, interval_s=0.1)
    expected = 100 * (sum(busy_child.cpu_times()[:2]) - before_s) / (time.perf_counter() - start_s)
    assert expected > 5
    assert statistics.mean(numbers(rows[:-1], "process_cpu_percent")) == pytest.approx(expected, rel=0.5)
    assert numbers(rows, "rss_mib")[-1] > psutil.Process().memory_info().rss / MIB + 100


def test_a_new_look_for_children_keeps_their_cpu_time(busy_child):
    tree = monitor_module._ProcessTree()
    tree.read()
    time.sleep(0.4)
    tree._scan_due_s = 0.0
    assert tree.read()[0] > 5


def test_own_cpu_is_that_of_this_process(tmp_path):
    with ResourceMonitor(tmp_path / "m.csv", 0.1) as monitor:
        before_s, start_s = time.process_time(), time.perf_counter()
        # Not for a fixed time: the loop holds the interpreter lock, and a busy machine lets the sampler wait long.
        while monitor.summary()["samples"] < 8 and time.perf_counter() - start_s < 30:
            pass
        expected = 100 * (time.process_time() - before_s) / (time.perf_counter() - start_s)
    measured = statistics.mean(numbers(read(tmp_path / "m.csv")[:-1], "process_cpu_percent"))
    assert measured == pytest.approx(expected, rel=0.3)


# --- the organizers' formulas ---------------------------------------------------------------------


def test_cpu_percent_by_hand():
    times = SimpleNamespace
    zero = times(user=0.0, system=0.0, idle=0.0)
    assert flare_cpu_percent(zero, times(user=0.0, system=0.0, idle=0.4)) == pytest.approx(20)  # 4 idle cores, 0.1 s
    assert flare_cpu_percent(zero, times(user=0.3, system=0.1, idle=0.0)) == 100
    assert flare_cpu_percent(zero, times(user=0.2, system=0.3, idle=0.4)) == pytest.approx(60)
    assert flare_cpu_percent(zero, zero) == 100


def test_cpu_column_and_area_match_the_organizers(tmp_path, monkeypatch):
    seen = []

    def recorded():
        seen.append(psutil_cpu_times())
        return seen[-1]

    psutil_cpu_times = psutil.cpu_times
    monkeypatch.setattr(psutil, "cpu_times", recorded)
    rows, summary = run(tmp_path / "m.csv", 1.0, interval_s=0.1)
    before, used = None, []
    for now in ([t.user, t.system, t.idle] for t in seen):
        if before:
            delta = [now[i] - before[i] for i in range(3)]
            total = sum(delta)
            cpu_usage = [(100.0 * dt) / (total + 0.1) for dt in delta]
            used.append(100 - cpu_usage[2])
        before = now
    assert rows[0]["cpu_percent"] == rows[0]["process_cpu_percent"] == ""  # no difference yet
    assert numbers(rows, "cpu_percent") == pytest.approx(used, abs=1e-3)
    times = numbers(rows, "time_s")
    area = sum(value * (times[i + 1] - times[i]) for i, value in enumerate(used))
    assert summary["auc_cpu_percent_s"] == pytest.approx(area, rel=0.02)
    # The last sample comes with the monitor's end, a moment after the one before; the organizers have none like it.
    even = summary["auc_cpu_percent_s"] - used[-1] * (times[-1] - times[-2])
    mean_interval_s = times[-2] / len(used[:-1])  # the organizers': 0.1
    assert even == pytest.approx(mean_interval_s * sum(used[:-1]), rel=0.2)


def test_gpu_figures_match_the_organizers(tmp_path, nvml):
    script = [500] * 30 + [9000] + [1917] * 20 + [1500] * 10_000  # the spike is one of at least 60 samples
    values = iter(script)
    nvml.used = lambda uuid: next(values) * MIB
    with ResourceMonitor(tmp_path / "m.csv", 0.01) as monitor:
        while monitor.summary()["samples"] < 80:
            time.sleep(0.01)
    rows, summary = read(tmp_path / "m.csv"), monitor.summary()
    mem = numbers(rows, "gpu_used_mib")
    assert len(mem) == len(rows) >= 80 and mem == script[: len(mem)]
    count_list = [value for value in set(mem) if mem.count(value) > 0.02 * len(mem)]
    assert summary["flare_gpu_mem_mib"] == max(count_list) == 1917
    assert summary["peak_gpu_mib"] == 9000
    times = numbers(rows, "time_s")
    area = sum(value * (now - before) for value, before, now in zip(mem[1:], times, times[1:], strict=False))
    assert summary["auc_gpu_mib_s"] == pytest.approx(area, rel=0.02)
    assert summary["auc_gpu_mib_s"] == pytest.approx(times[-1] / len(mem) * sum(mem), rel=0.2)


def test_gpu_mem_is_the_maximum_where_no_value_lasts(tmp_path, nvml):
    values = iter(range(1000, 100_000))  # each once, among more than 50
    nvml.used = lambda uuid: next(values) * MIB
    with ResourceMonitor(tmp_path / "m.csv", 0.005) as monitor:
        while monitor.summary()["samples"] <= 60:
            time.sleep(0.01)
    rows, summary = read(tmp_path / "m.csv"), monitor.summary()
    assert summary["flare_gpu_mem_mib"] == summary["peak_gpu_mib"] == max(numbers(rows, "gpu_used_mib"))


# --- which card -----------------------------------------------------------------------------------

CARDS = {"GPU-aaaa-0": [], "GPU-bbbb-1": [], "GPU-cccc-2": ["MIG-dddd-3", "MIG-eeee-4"]}
USED_MIB = {"GPU-aaaa-0": 10, "GPU-bbbb-1": 20, "GPU-cccc-2": 30, "MIG-dddd-3": 40, "MIG-eeee-4": 50}


@pytest.fixture
def three_cards(nvml):
    nvml.cards = CARDS
    nvml.used = lambda uuid: USED_MIB[uuid] * MIB
    return nvml


@pytest.mark.parametrize(
    ("visible", "device", "expected_mib"),
    [
        (None, "auto", 10),
        (None, "cuda", 10),
        (None, "cuda:1", 20),
        (None, "cuda:2", 40),  # divided: the first instance
        (None, "cuda:3", None),  # no such card
        ("1,0", "auto", 20),
        ("1,0", "cuda:1", 10),
        (" 1 ", "auto", 20),
        ("GPU-bbbb-1", "auto", 20),
        ("GPU-b", "auto", 20),
        ("MIG-eeee-4", "auto", 50),
        ("MIG-e,MIG-d", "cuda:1", 40),
        ("GPU-ffff", "auto", None),
        ("", "auto", None),
        ("-1", "auto", None),
        ("nonsense", "auto", None),
        (None, "cpu", None),
    ],
)
@pytest.mark.fault_nvml
def test_card_before_torch_has_one(tmp_path, three_cards, monkeypatch, visible, device, expected_mib):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cuda = FakeCuda(initialized=False)
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    _, summary = run(tmp_path / "m.csv", device=device)
    assert not cuda.opened_by_monitor
    assert summary["peak_gpu_mib"] == expected_mib
    assert summary["error"] is None and summary["peak_torch_allocated_mib"] is None


@pytest.mark.parametrize(
    ("visible", "uuid", "expected_mib"),
    [
        (None, "bbbb-1", 20),  # torch's order is not NVML's
        (None, "eeee-4", 50),  # torch names the instance
        (None, "cccc-2", 40),  # torch names the card
        ("MIG-eeee-4", "cccc-2", 50),  # the user has named the instance
        (None, "unknown", 10),  # nothing better than the guess
        ("-1", "bbbb-1", 20),
    ],
)
@pytest.mark.fault_nvml
def test_card_is_the_one_torch_has_opened(tmp_path, three_cards, monkeypatch, visible, uuid, expected_mib):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cuda = FakeCuda(uuid, initialized=False)
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    with ResourceMonitor(tmp_path / "m.csv", 0.01) as monitor:
        time.sleep(0.1)
        cuda.initialized = True
        time.sleep(0.2)
    summary = monitor.summary()
    assert summary["peak_gpu_mib"] == summary["flare_gpu_mem_mib"] == expected_mib
    assert numbers(read(tmp_path / "m.csv"), "gpu_used_mib")[-1] == expected_mib
    assert summary["peak_torch_allocated_mib"] == 300 and summary["peak_torch_reserved_mib"] == 400
    assert numbers(read(tmp_path / "m.csv"), "torch_allocated_mib")[-1] == 100


@pytest.mark.fault_nvml
def test_the_wrong_guess_leaves_no_trace_in_the_summary(tmp_path, three_cards, monkeypatch):
    cuda = FakeCuda("aaaa-0", initialized=False)
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # 20 MiB, more than the right one
    with ResourceMonitor(tmp_path / "m.csv", 0.01) as monitor:
        time.sleep(0.1)
        cuda.initialized = True
        time.sleep(0.1)
    assert monitor.summary()["peak_gpu_mib"] == monitor.summary()["flare_gpu_mem_mib"] == 10
    assert monitor.summary()["auc_gpu_mib_s"] < 10 * 0.2


def test_torch_is_never_imported(tmp_path):
    code = "import sys; from app.monitor import ResourceMonitor as M\nwith M(sys.argv[1], 0.01): pass\n"
    code += "assert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy')]"
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "m.csv"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_torch_in_the_middle_of_its_import_is_no_error(tmp_path, nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.cuda", SimpleNamespace())
    _, summary = run(tmp_path / "m.csv", 0.05)
    assert summary["error"] is None and summary["peak_gpu_mib"] == 1000


# --- nothing that goes wrong reaches the run ------------------------------------------------------


def no_driver(nvml):
    def nvml_init():
        nvml.tries = getattr(nvml, "tries", 0) + 1
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    nvml.nvmlInit = nvml_init


def no_package(nvml):
    sys.modules["pynvml"] = None  # the import raises ImportError; the fixture restores it


def no_card(nvml):
    nvml.cards = {}
    nvml.nvmlDeviceGetHandleByIndex = None


@pytest.mark.parametrize("fault", [no_driver, no_package, no_card])
@pytest.mark.fault_nvml
def test_without_nvml_there_are_empty_cells_and_no_noise(tmp_path, nvml, fault, capfd, caplog, recwarn):
    fault(nvml)
    rows, summary = run(tmp_path / "m.csv", 0.1)
    assert {row["gpu_used_mib"] for row in rows} == {""}
    assert summary["peak_gpu_mib"] is None and summary["auc_gpu_mib_s"] is None and summary["error"] is None
    assert capfd.readouterr() == ("", "") and not caplog.records and not recwarn.list
    assert nvml.open == 0 and getattr(nvml, "tries", 1) == 1  # it is not tried again


@pytest.mark.fault_nvml
def test_nvml_failing_midway_leaves_a_gap(tmp_path, nvml, capfd, recwarn):
    calls = iter(range(100_000))

    def used(uuid):
        if 5 <= next(calls) < 10:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return 700 * MIB

    nvml.used = used
    rows, summary = run(tmp_path / "m.csv", 0.3)
    assert [row["gpu_used_mib"] for row in rows[:12]] == ["700.0"] * 5 + [""] * 5 + ["700.0"] * 2
    assert summary["error"] is None and summary["peak_gpu_mib"] == 700 and summary["samples"] == len(rows)
    assert capfd.readouterr() == ("", "") and not recwarn.list
    assert nvml.open == 0


@pytest.mark.fault_nvml
def test_a_driver_that_hangs_does_not_hold_up_the_end(tmp_path, nvml, monkeypatch):
    monkeypatch.setattr(monitor_module, "STOP_TIMEOUT_S", 0.2)
    release = threading.Event()
    nvml.used = lambda uuid: release.wait(10) and 0
    start_s = time.perf_counter()
    with ResourceMonitor(tmp_path / "m.csv", 0.01) as monitor:
        time.sleep(0.05)
    assert time.perf_counter() - start_s < 1
    assert "hung" in monitor.summary()["error"]
    release.set()
    monitor._thread.join(5)
    assert monitor_threads() == 0


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_it_always_stops(tmp_path, nvml, error):
    raised = None
    try:
        with ResourceMonitor(tmp_path / "m.csv", 0.01) as monitor, monitor.stage("segment", "case"):
            time.sleep(0.05)
            assert monitor_threads() == 1 and monitor._thread.daemon
            if error:
                raise error
    except BaseException as caught:
        raised = type(caught)
    assert raised is error  # neither swallowed nor changed
    assert monitor_threads() == 0 and nvml.open == 0
    assert str(tmp_path / "m.csv") not in [file.path for file in psutil.Process().open_files()]
    assert len(read(tmp_path / "m.csv")) == monitor.summary()["samples"]
    assert "segment" in [row["stage"] for row in read(tmp_path / "m.csv")]
    assert read(tmp_path / "m.csv")[-1]["stage"] == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_writing_only(tmp_path, monkeypatch, nvml, capfd):
    path_open, full = Path.open, Path("/dev/full")
    monkeypatch.setattr(Path, "open", lambda path, mode, *rest, **options: path_open(full, "w", *rest, **options))
    with ResourceMonitor(tmp_path / "m.csv", 0.01) as monitor:
        time.sleep(0.3)
    monkeypatch.undo()
    summary = monitor.summary()
    assert "No space left" in summary["error"]
    assert summary["samples"] > 10 and summary["auc_cpu_percent_s"] > 0
    assert monitor_threads() == 0 and "/dev/full" not in [file.path for file in psutil.Process().open_files()]
    assert capfd.readouterr() == ("", "")


def test_after_a_failure_nothing_more_is_written(tmp_path, monkeypatch):
    tried = []

    def write(monitor, row):
        tried.append(row)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ResourceMonitor, "_write", write)
    _, summary = run(tmp_path / "m.csv", 0.1)
    assert len(tried) == 1 and summary["samples"] > 1 and "No space left" in summary["error"]


def test_a_file_that_cannot_be_made_is_remembered(tmp_path):
    with ResourceMonitor(tmp_path / "missing" / "m.csv", 0.01) as monitor:
        time.sleep(0.05)
    assert "FileNotFoundError" in monitor.summary()["error"] and monitor.summary()["samples"] > 1


def test_an_earlier_log_is_not_overwritten(tmp_path):
    (tmp_path / "m.csv").write_text("earlier")
    with ResourceMonitor(tmp_path / "m.csv", 0.01) as monitor:
        pass
    assert "FileExistsError" in monitor.summary()["error"] and (tmp_path / "m.csv").read_text() == "earlier"


def test_no_thread_to_be_had(tmp_path, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with ResourceMonitor(tmp_path / "m.csv") as monitor:
        pass
    assert "can't start new thread" in monitor.summary()["error"] and monitor.summary()["samples"] == 0


@pytest.mark.parametrize("probe", ["cpu_times", "virtual_memory"])
def test_a_system_figure_that_cannot_be_read_is_an_empty_cell(tmp_path, monkeypatch, probe):
    def denied():
        raise PermissionError("/proc")

    monkeypatch.setattr(psutil, probe, denied)
    rows, summary = run(tmp_path / "m.csv", 0.05)
    column = {"cpu_times": "cpu_percent", "virtual_memory": "host_ram_used_mib"}[probe]
    assert {row[column] for row in rows} == {""} and summary["error"] is None and summary["peak_rss_mib"] > 0


@pytest.mark.parametrize("interval_s", [0, -1, float("nan")])
def test_interval_must_be_positive(tmp_path, interval_s):
    with pytest.raises(ValueError, match="interval_s"):
        ResourceMonitor(tmp_path / "m.csv", interval_s)


KILLED = """
import os, signal, sys, time
from app.monitor import ResourceMonitor
with ResourceMonitor(sys.argv[1], 0.005) as monitor, monitor.stage("segment", "case"):
    time.sleep(1.8)
    os._exit(3) if sys.argv[2] == "exit" else os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_whole_rows(tmp_path):
    paths = {how: tmp_path / f"{how}.csv" for how in ("exit", "kill")}
    runs = {how: subprocess.Popen([sys.executable, "-c", KILLED, path, how], cwd=ROOT) for how, path in paths.items()}
    assert {how: run.wait(20) for how, run in runs.items()} == {"exit": 3, "kill": -signal.SIGKILL}
    for path in paths.values():
        assert path.read_bytes().endswith(b"\r\n")
        rows = read(path)
        assert all(None not in row and None not in row.values() for row in rows)  # as many cells as columns
        assert float(rows[-1]["time_s"]) > 0.9 and rows[-1]["case"] == "case"
        assert len(rows) > 30


# --- stages ---------------------------------------------------------------------------------------


def wait_for_samples(monitor, count=2):
    """Until what is marked now has been sampled."""
    enough = monitor.summary()["samples"] + count
    while monitor.summary()["samples"] < enough:
        time.sleep(0.001)


def test_stage_column(tmp_path):
    reading, read_on = threading.Event(), threading.Event()

    with ResourceMonitor(tmp_path / "m.csv", 0.01) as monitor:

        def read_ahead():
            with monitor.stage("read", "b"):
                reading.set()
                read_on.wait(5)

        reader = threading.Thread(target=read_ahead)
        reader.start()
        reading.wait(5)
        wait_for_samples(monitor)
        with monitor.stage("segment", "a"):
            wait_for_samples(monitor)
            with monitor.stage("postprocess", "a"):
                wait_for_samples(monitor)
            with monitor.stage("read", "b"):
                wait_for_samples(monitor)
            wait_for_samples(monitor)
        with monitor.stage("wait"):
            wait_for_samples(monitor)
        read_on.set()
        reader.join()
        with pytest.raises(ValueError), monitor.stage("write", "a"):
            wait_for_samples(monitor)
            raise ValueError
        wait_for_samples(monitor)
    rows = read(tmp_path / "m.csv")
    assert {(row["stage"], row["case"]) for row in rows} == {
        ("read", "b"),  # also while the main thread reads too: each name once
        ("segment+read", "a+b"),
        ("postprocess+read", "a+b"),
        ("wait+read", "b"),
        ("write", "a"),
        ("", ""),
    }
    assert rows[-1]["stage"] == rows[-1]["case"] == ""


def test_any_case_name_fits_in_a_cell(tmp_path):
    name = 'a,"b"\nc \udcff ä'  # a file name that is not UTF-8 too
    with ResourceMonitor(tmp_path / "m.csv", 0.01) as monitor, monitor.stage("read", name):
        time.sleep(0.05)
    assert name in {row["case"] for row in read(tmp_path / "m.csv")} and monitor.summary()["error"] is None


# --- on time, and cheap ---------------------------------------------------------------------------


def test_no_drift_under_load(tmp_path, nvml):
    interval_s, seconds = 0.05, 3.0
    nvml.used = lambda uuid: time.sleep(0.02) or 0  # a sampler that sleeps 0.05 s after each would take 42
    with ResourceMonitor(tmp_path / "m.csv", interval_s) as monitor:
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            sum(range(100_000))  # holds the interpreter lock
            time.sleep(0.002)
    summary = monitor.summary()
    assert summary["samples"] + summary["missed_samples"] == pytest.approx(seconds / interval_s + 2, abs=1)
    assert 48 < summary["samples"] <= 62
    assert summary["samples"] == len(read(tmp_path / "m.csv"))


def test_missed_and_late_samples_are_counted(tmp_path, nvml):
    calls = iter(range(100_000))
    nvml.used = lambda uuid: time.sleep(0.35 if next(calls) == 2 else 0) or 0
    rows, summary = run(tmp_path / "m.csv", 1.02, interval_s=0.1)
    assert 3 <= summary["missed_samples"] <= 5  # at 0.3, 0.4 and 0.5 s
    assert summary["samples"] == len(rows)
    assert summary["samples"] + summary["missed_samples"] == pytest.approx(12, abs=1)  # 0, 0.1, ... 1.0 s and the exit
    assert numbers(rows, "time_s")[3] >= 0.55
    assert summary["late_samples"] <= 2


def test_a_late_sample_is_counted(tmp_path):
    switch_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(5.0)  # nobody else gets the interpreter while the loop below runs
    try:
        with ResourceMonitor(tmp_path / "m.csv", 0.4) as monitor:
            time.sleep(0.3)
            end_s = time.perf_counter() + 0.4
            while time.perf_counter() < end_s:
                pass
            time.sleep(0.05)
    finally:
        sys.setswitchinterval(switch_interval_s)
    assert monitor.summary()["late_samples"] == 1


def test_cost_below_one_percent_of_a_core(tmp_path, nvml):
    _, summary = run(tmp_path / "m.csv", 2.0, interval_s=0.1)
    cost_percent = 100 * summary["monitor_cpu_s"] / summary["duration_s"]
    assert 0 < cost_percent < 2  # about 0.5 measured; room for a slow or busy machine


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs a CUDA device")
def test_on_a_real_card(tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with ResourceMonitor(tmp_path / "m.csv", 0.02) as monitor:
        time.sleep(0.2)
        tensor = torch.zeros(512 * MIB // 4, device="cuda")
        time.sleep(0.3)
        sampled_uuid = pynvml.nvmlDeviceGetUUID(monitor._gpu._handle)
    summary = monitor.summary()
    assert str(torch.cuda.get_device_properties(0).uuid) in sampled_uuid
    assert summary["peak_torch_allocated_mib"] >= tensor.nbytes / MIB
    assert summary["peak_gpu_mib"] >= summary["peak_torch_reserved_mib"] >= summary["peak_torch_allocated_mib"]
