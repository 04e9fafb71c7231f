"""Which device, how many slices: with the machine's answers put in its mouth."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from torch.cuda._utils import _get_device_index

from app import device as module
from app.device import (
    MAX_SLICES_PER_STEP,
    DeviceError,
    choose_device,
    compute_dtype,
    limit_memory,
    slices_per_step,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch, caplog):
    """Set what CUDA and the machine say."""
    caplog.set_level(logging.WARNING)

    def say(cuda_version="13.0", kernel=None, card=True):
        def zeros(*size, device):
            assert device == "cuda"
            if kernel:
                raise kernel
            return torch.ones(1)

        monkeypatch.setattr(torch.version, "cuda", cuda_version)
        fake = SimpleNamespace(zeros=zeros, version=torch.version, device=torch.device, __version__="2.13.0")
        monkeypatch.setattr(module, "torch", fake)
        monkeypatch.setattr(module, "_has_nvidia_card", lambda: card)

    return say


OLD_DRIVER = RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")


def test_auto_takes_a_card_that_works(machine, caplog):
    machine()
    assert choose_device("auto") == choose_device("cuda") == CUDA
    assert caplog.messages == []


def test_cpu_asks_no_card(machine, caplog):
    machine(kernel=AssertionError("asked"))
    assert choose_device("cpu") == CPU
    assert caplog.messages == []


@pytest.mark.parametrize("card", [True, False])
@pytest.mark.parametrize(
    ("cuda_version", "error", "cause"),
    [
        (
            "13.0",
            OLD_DRIVER,
            "torch 2.13.0 (CUDA 13.0) cannot use it: The NVIDIA driver on your system is too old (fou",
        ),
        ("13.0", RuntimeError(), "torch 2.13.0 (CUDA 13.0) cannot use it: RuntimeError"),
        (None, OLD_DRIVER, "this is a CPU build of torch"),
    ],
)
def test_a_card_that_does_not_work(machine, caplog, card, cuda_version, error, cause):
    """Where it was asked for that is an error, else a loud warning; without a card the CPU is no surprise."""
    machine(cuda_version, error, card)
    with pytest.raises(DeviceError, match=re.escape(f"--device cuda: {cause}")) as caught:
        choose_device("cuda")
    assert choose_device("auto") == CPU
    assert len(caplog.messages) == card
    assert all(message.startswith(f"THE GPU IS NOT USED: {cause}") for message in caplog.messages)
    assert not any("\n" in message for message in (*caplog.messages, str(caught.value)))


# Number format


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "capability", "dtype"),
    [
        (False, False, "DEFAULT", torch.float32),  # an ARM processor, an old one
        (False, False, "AVX2", torch.int8),
        (False, False, "AVX512", torch.int8),
        (True, False, "AVX512", torch.bfloat16),
        (False, True, "AVX512", torch.bfloat16),
        (True, True, "AVX512", torch.bfloat16),
    ],
)
def test_a_cpu_computes_in_what_it_is_fast_in(monkeypatch, avx512_bf16, amx, capability, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert compute_dtype(CPU) == dtype
    assert compute_dtype(CUDA) == torch.float16
    monkeypatch.setattr(torch.ops, "onednn", object())  # a torch that does not show it
    assert compute_dtype(CPU) == (torch.float32 if dtype == torch.int8 else dtype)


# Memory

SLICE_PX = 512 * 512


def test_slices_follow_from_the_budget():
    counts = [slices_per_step(CUDA, mib, SLICE_PX) for mib in range(0, 4096, 16)]
    assert counts == sorted(counts)
    assert counts[0] == 1  # tried all the same
    assert set(counts) == set(range(1, MAX_SLICES_PER_STEP["cuda"] + 1))


def test_the_budget_holds_context_and_step():
    for mib in range(800, 2048, 50):
        slices = slices_per_step(CUDA, mib, SLICE_PX)
        assert slices == 1 or module.CONTEXT_MIB + slices * SLICE_PX * module.STEP_BYTES_PER_PX / 2**20 <= mib


def test_larger_slices_are_fewer():
    assert slices_per_step(CUDA, 2048, SLICE_PX) == 8
    assert slices_per_step(CUDA, 2048, 16 * SLICE_PX) < 8
    assert slices_per_step(CUDA, 2048, 10**9) == 1
    assert slices_per_step(CPU, 1, SLICE_PX) == MAX_SLICES_PER_STEP["cpu"]  # whatever the budget


@pytest.mark.parametrize(("budget_mib", "allowed_mib"), [(2048, 2048 - 700), (100, 64), (10**6, 16384)])
def test_the_allocator_stops_at_the_budget_less_the_context(monkeypatch, budget_mib, allowed_mib):
    fractions = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=16384 * 2**20))

    def set_fraction(fraction, device=None):
        if device is not None:
            _get_device_index(device)  # torch's own: it refuses "cuda" without an index
        fractions.append(fraction)

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fraction)
    limit_memory(CPU, budget_mib)  # nothing
    limit_memory(CUDA, budget_mib)
    assert fractions == [pytest.approx(allowed_mib / 16384)]
