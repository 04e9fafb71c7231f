"""Which card is watched and what is seen of it. A stand-in for NVML has several cards, fails, hangs or is missing."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pynvml
import pytest

from app import sampler
from app.gpu_memory import GpuMemory, torch_usage
from app.monitor import ResourceMonitor
from tests.fake_clock import FakeClock, numbers, read, run

pytestmark = pytest.mark.fault_nvml

MIB = 2**20
CARDS = {"GPU-aaaa-0": [], "GPU-bbbb-1": [], "GPU-cccc-2": ["MIG-dddd-3", "MIG-eeee-4"]}
USED_MIB = {"GPU-aaaa-0": 10, "GPU-bbbb-1": 20, "GPU-cccc-2": 30, "MIG-dddd-3": 40, "MIG-eeee-4": 50}


@pytest.fixture(autouse=True)
def nvml(monkeypatch):
    """A stand-in for NVML, whose handles are UUIDs. `used_mib` is called with the UUID."""
    fake = SimpleNamespace(
        used_mib=USED_MIB.__getitem__,
        nvmlInit=Mock(),
        nvmlShutdown=Mock(),
        nvmlDeviceGetCount=lambda: len(CARDS),
        nvmlDeviceGetHandleByIndex=lambda index: list(CARDS)[index],
        nvmlDeviceGetUUID=str,
        nvmlDeviceGetMaxMigDeviceCount=lambda card: 7 if CARDS[card] else 0,
        nvmlDeviceGetMigDeviceHandleByIndex=lambda card, index: CARDS[card][index],
        nvmlDeviceGetMemoryInfo=lambda uuid: SimpleNamespace(total=2**40, free=2**40 - fake.used_mib(uuid) * MIB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda of a program that has not opened a card: asking for one would open it."""

    def stats(index):
        assert fake.open
        mib = {"allocated_bytes": (100, 300), "reserved_bytes": (200, 400)}
        return {name: {"all": {"current": now * MIB, "peak": peak * MIB}} for name, (now, peak) in mib.items()}

    fake = SimpleNamespace(open=False, uuid="aaaa-0", memory_stats_as_nested_dict=stats)
    fake.is_initialized = lambda: fake.open
    fake.get_device_properties = lambda index: fake.open and SimpleNamespace(uuid=fake.uuid)
    monkeypatch.setitem(sys.modules, "torch.cuda", fake)
    return fake


@pytest.mark.parametrize(
    ("visible", "expected_mib"),
    [
        (None, 10), ("1,0", 20), (" 1 ", 20), ("2", 40),  # divided: the first instance
        ("GPU-bbbb-1", 20), ("GPU-b", 20), ("MIG-eeee-4", 50), ("MIG-e,MIG-d", 50),
        *dict.fromkeys(("3", "GPU-ffff", "", "-1", "nonsense")).items(),  # no such card
    ],
)  # fmt: skip
def test_card_before_torch_has_one(cuda, monkeypatch, visible, expected_mib):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu = GpuMemory()
    assert not gpu.follow_torch() and torch_usage() == {}
    assert gpu.used_mib() == expected_mib


@pytest.mark.parametrize(
    ("visible", "uuid", "expected_mib", "another"),
    [
        ("0", "aaaa-0", 10, False),
        ("0", "bbbb-1", 20, True),  # torch's order is not NVML's
        ("0", "eeee-4", 50, True),  # torch names the instance
        ("0", "cccc-2", 40, True),  # torch names the card
        ("MIG-eeee-4", "cccc-2", 50, False),  # the user has named the instance
        ("0", "unknown", 10, False),  # nothing better than the guess
        ("-1", "bbbb-1", 20, False),  # nothing was sampled before
    ],
)
def test_card_is_the_one_torch_has_opened(cuda, monkeypatch, visible, uuid, expected_mib, another):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu = GpuMemory()
    cuda.open, cuda.uuid = True, uuid
    assert gpu.follow_torch() == another
    assert gpu.used_mib() == expected_mib
    assert not gpu.follow_torch()


def test_the_wrong_guess_leaves_no_trace_in_the_summary(tmp_path, cuda, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # 20 MiB, more than the right one
    clock = FakeClock()
    with ResourceMonitor(tmp_path / "m.csv", 0.25, clock=clock) as monitor:
        clock.advance(1.0)
        cuda.open = True
        clock.advance(1.0)
    rows, summary = read(tmp_path / "m.csv"), monitor.summary()
    assert numbers(rows, "gpu_used_mib") == [20] * 5 + [10] * 5
    assert summary["peak_gpu_mib"] == summary["flare_gpu_mem_mib"] == 10
    assert summary["auc_gpu_mib_s"] == pytest.approx(10 * 1.01)
    assert numbers(rows, "torch_allocated_mib") == [100] * 5 and numbers(rows, "torch_reserved_mib") == [200] * 5
    assert (summary["peak_torch_allocated_mib"], summary["peak_torch_reserved_mib"]) == (300, 400)


def test_gpu_figures_match_the_organizers(tmp_path, nvml):
    script = [500] * 30 + [9000] + [1917] * 20 + [1500] * 30  # the spike is one of 81 samples
    nvml.used_mib = Mock(side_effect=script)
    rows, summary = run(tmp_path / "m.csv", seconds=79 * 0.25)
    assert numbers(rows, "gpu_used_mib") == script
    assert summary["flare_gpu_mem_mib"] == 1917 and summary["peak_gpu_mib"] == 9000
    # The organizers' interval times their samples: without the first, at 0 s, and the last, 0.01 s after another.
    assert summary["auc_gpu_mib_s"] == pytest.approx(0.25 * sum(script[1:-1]) + 0.01 * script[-1])


def test_no_gpu_columns_for_the_cpu(tmp_path):
    assert not numbers(run(tmp_path / "m.csv", device="cpu")[0], "gpu_used_mib")


def test_a_torch_in_the_middle_of_its_import_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.cuda", SimpleNamespace())
    _, summary = run(tmp_path / "m.csv")
    assert summary["error"] is None and summary["peak_gpu_mib"] == 10


@pytest.mark.parametrize("fault", ["no driver", "no package", "no card"])
def test_without_nvml_there_are_empty_cells_and_no_noise(tmp_path, nvml, fault, capfd, caplog, recwarn):
    if fault == "no package":
        sys.modules["pynvml"] = None  # its import fails; the fixture restores it
    else:
        fails = Mock(side_effect=pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
        setattr(nvml, {"no driver": "nvmlInit", "no card": "nvmlDeviceGetHandleByIndex"}[fault], fails)
    rows, summary = run(tmp_path / "m.csv")
    assert not numbers(rows, "gpu_used_mib")
    assert summary["peak_gpu_mib"] is None and summary["auc_gpu_mib_s"] is None and summary["error"] is None
    assert capfd.readouterr() == ("", "") and not caplog.records and not recwarn.list
    if fault == "no driver":
        nvml.nvmlInit.assert_called_once_with()  # it is not tried again


def test_nvml_failing_midway_leaves_a_gap(tmp_path, nvml):
    lost = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    nvml.used_mib = Mock(side_effect=[700, 700, lost, lost, 700, 700])
    rows, summary = run(tmp_path / "m.csv")
    assert [row["gpu_used_mib"] for row in rows] == ["700.0"] * 2 + [""] * 2 + ["700.0"] * 2
    assert summary["error"] is None and summary["peak_gpu_mib"] == 700
    nvml.nvmlShutdown.assert_called_once_with()


def test_a_driver_that_hangs_does_not_hold_up_the_end(tmp_path, nvml, monkeypatch):
    monkeypatch.setattr(sampler, "STOP_TIMEOUT_S", 0.05)
    hanging, release = threading.Event(), threading.Event()
    nvml.used_mib = lambda uuid: hanging.set() or release.wait(30)
    with ResourceMonitor(tmp_path / "m.csv") as monitor:
        assert hanging.wait(30)
    assert "hung" in monitor.summary()["error"]
    release.set()


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs a CUDA device")
def test_on_a_real_card(tmp_path, monkeypatch):
    import torch

    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    clock = FakeClock()
    with ResourceMonitor(tmp_path / "m.csv", clock=clock) as monitor:
        clock.advance(0.2)
        tensor = torch.zeros(512 * MIB // 4, device="cuda")
        clock.advance(0.2)
    memory, summary = numbers(read(tmp_path / "m.csv"), "gpu_used_mib"), monitor.summary()
    assert memory[-1] - memory[0] >= tensor.nbytes / MIB  # of the card that torch has opened
    assert summary["peak_torch_allocated_mib"] >= tensor.nbytes / MIB
    assert summary["peak_gpu_mib"] >= summary["peak_torch_reserved_mib"] >= summary["peak_torch_allocated_mib"]
