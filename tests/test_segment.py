"""Streaming against the same network on the whole volume at once; what happens when a GPU cannot go on."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app import segment as module
from app.body import body_box
from app.preprocess import clipped_statistics
from app.segment import Segmenter, segment
from app.weights import load_weights
from tests.scans import save_weights, smooth_hu

STATISTICS = (100.0, 200.0)


class PixelNetwork(nn.Module):
    """Stands in for the network: labels follow from the values and their distance to the frame's edge.

    It is told to fail by `fails`, which is called with the number of slices.
    """

    def __init__(self, fails=lambda slices: None):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.4), requires_grad=False)
        self.fails, self.batches = fails, []

    def quarter_logits(self, images):
        self.batches.append(tuple(images.shape))
        self.fails(len(images))
        images = F.avg_pool2d(images, 4)
        row = torch.linspace(-1, 1, images.shape[-2])[:, None]
        classes = torch.arange(14).view(1, 14, 1, 1) * self.scale
        return -((images + row - classes + 2) ** 2).float()

    def forward(self, images):
        return F.interpolate(self.quarter_logits(images), scale_factor=4, mode="bilinear")


def unstreamed(network, hu, statistics_hu, frame_px):
    """Logits with the bias, of all slices at once, framed by hand."""
    depth, height, width = hu.shape
    framed_height, framed_width = (max(frame_px, (size + 15) // 16 * 16) for size in (height, width))
    top, left = (framed_height - height) // 2, (framed_width - width) // 2
    framed = np.full((depth, 1, framed_height, framed_width), -1000.0)  # air
    framed[:, 0, top : top + height, left : left + width] = hu
    images = (np.clip(framed, -100, 1000) - statistics_hu[0]) / statistics_hu[1]
    with torch.inference_mode():
        logits = network(torch.from_numpy(images).float())[..., top : top + height, left : left + width].numpy()
    return logits + np.array([0] + [0.6] * 13, np.float32)[:, None, None]


@pytest.mark.parametrize(
    ("shape", "frame_px", "framed"),
    [
        ((2, 1, 1), 64, (64, 64)),
        ((1, 17, 33), 16, (32, 48)),
        ((2, 17, 33), 64, (64, 64)),
        ((1, 513, 700), 512, (528, 704)),
        ((1, 100, 700), 512, (512, 704)),
        ((3, 64, 64), 64, (64, 64)),
        ((2, 63, 65), 64, (64, 80)),
    ],
)
def test_any_size_is_framed_and_cropped_back(shape, frame_px, framed):
    hu = np.maximum(smooth_hu(shape, seed=1), 0)  # nothing but body
    network = PixelNetwork()
    labels = segment(network, hu, STATISTICS, 2, frame_px)
    assert {batch[2:] for batch in network.batches} == {framed}
    assert labels.shape == shape
    assert np.array_equal(labels, unstreamed(PixelNetwork(), hu, STATISTICS, frame_px).argmax(axis=1))


def test_only_the_body_is_segmented():
    hu = np.full((3, 160, 200), -1024, np.int16)
    hu[:, 40:90, 60:150] = np.maximum(smooth_hu((3, 50, 90)), 0)
    box = (slice(None), *body_box(hu, 16))
    network = PixelNetwork()
    labels = segment(network, hu, STATISTICS, 2, 16)
    assert {batch[2:] for batch in network.batches} == {hu[box].shape[1:]} != {hu.shape[1:]}
    assert np.array_equal(labels[box], unstreamed(PixelNetwork(), hu[box], STATISTICS, 16).argmax(axis=1))
    labels[box] = 0
    assert not labels.any()


def test_the_device_never_holds_the_volume(monkeypatch):
    taken = []
    from_numpy = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: taken.append(array.shape[0]) or from_numpy(array))
    network = PixelNetwork()
    segment(network, smooth_hu((11, 16, 16)), STATISTICS, 4, 16)
    assert taken == [4, 4, 3]
    assert network.batches == [(4, 1, 16, 16), (4, 1, 16, 16), (3, 1, 16, 16)]


# A GPU that cannot go on


class FakeWeights:
    """Gives networks that all compute on the CPU; those made for the GPU fail as they are told."""

    frame_px = 16

    def __init__(self, gpu_fails=lambda slices: None):
        self.gpu_fails, self.made = gpu_fails, []

    def network(self, device, dtype):
        network = PixelNetwork(self.gpu_fails if device.type == "cuda" else lambda slices: None)
        self.made.append((device.type, network))
        return network


@pytest.fixture
def on_gpu(monkeypatch, caplog):
    """Makes a Segmenter on a GPU of the given behaviour."""
    monkeypatch.setattr(module, "limit_memory", lambda device, budget_mib: None)
    caplog.set_level(logging.WARNING)

    def make(gpu_fails=lambda slices: None, budget_mib=2048):
        weights = FakeWeights(gpu_fails)
        return Segmenter(weights, torch.device("cuda"), budget_mib), weights

    return make


def out_of_memory(where):
    """A GPU without room for steps of some numbers of slices."""

    def fails(slices):
        if where(slices):
            raise torch.OutOfMemoryError("CUDA out of memory")

    return fails


HU = smooth_hu((11, 16, 16))
EXPECTED = segment(PixelNetwork(), HU, STATISTICS, 11, 16)


@pytest.mark.parametrize(("budget_mib", "step"), [(1, 1), (2048, 8)])
def test_the_budget_bounds_a_step(on_gpu, budget_mib, step):
    segmenter, weights = on_gpu(budget_mib=budget_mib)
    assert np.array_equal(segmenter(HU, STATISTICS), EXPECTED)
    ((device, network),) = weights.made
    assert device == "cuda" and max(batch[0] for batch in network.batches) == step


@pytest.mark.parametrize("fitting", [1, 2, 3, 4, 7])
@pytest.mark.fault_gpu_memory
def test_out_of_memory_halves_the_step(on_gpu, caplog, fitting):
    segmenter, weights = on_gpu(out_of_memory(lambda slices: slices > fitting))
    done = []
    assert np.array_equal(segmenter(HU, STATISTICS, done.append), EXPECTED)
    assert [device for device, _ in weights.made] == ["cuda"]
    steps = [8, 4, 2, 1]
    used = next(step for step in steps if step <= fitting)
    expected = [f"out of GPU memory at {step} slices a step: trying {step // 2}" for step in steps if step > fitting]
    assert caplog.messages == expected
    assert done[-1] == len(HU)
    assert np.diff(done[-3:]).max() <= used


@pytest.mark.fault_gpu_memory
def test_out_of_memory_halves_the_step_of_slabs_too(on_gpu, caplog):
    segmenter, _ = on_gpu(out_of_memory(lambda slabs: slabs > 1))
    expected = segment(PixelNetwork(), HU, STATISTICS, 11, 16, slices_per_slab=3)
    assert np.array_equal(segmenter(HU, STATISTICS, slices_per_slab=3), expected)
    assert not np.array_equal(expected, EXPECTED)
    assert [message[-8:] for message in caplog.messages] == ["trying 2", "trying 1"]  # from the four slabs there are


@pytest.mark.fault_gpu_memory
def test_out_of_memory_at_the_end_of_a_volume_begins_it_again(on_gpu):
    calls = []
    segmenter, _ = on_gpu(out_of_memory(lambda slices: calls.append(slices) or len(calls) == 2))
    assert np.array_equal(segmenter(HU, STATISTICS), EXPECTED)
    assert calls == [8, 3, 4, 4, 3]


@pytest.mark.fault_gpu_memory
def test_where_no_slice_fits_this_case_alone_goes_to_the_cpu(on_gpu, caplog):
    full = True
    segmenter, weights = on_gpu(out_of_memory(lambda slices: full))
    assert np.array_equal(segmenter(HU, STATISTICS), EXPECTED)
    assert [device for device, _ in weights.made] == ["cuda", "cpu"]
    assert caplog.messages[-1] == "one slice does not fit the GPU's memory budget: this case goes to the CPU"
    assert len(caplog.messages) == 4
    assert segmenter.used_device.type == "cpu"
    full = False
    caplog.clear()
    assert np.array_equal(segmenter(HU, STATISTICS), EXPECTED)
    assert len(weights.made) == 2  # the GPU again
    assert segmenter.used_device.type == segmenter.device.type == "cuda"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("CUDA error: launch failure\nCompile with TORCH_USE_CUDA_DSA", "CUDA error: launch failure"),
        ("", "RuntimeError"),
    ],
)
@pytest.mark.fault_gpu
def test_a_gpu_that_breaks_between_slices_is_given_up(on_gpu, caplog, error, cause):
    calls = []

    def fails(slices):
        calls.append(slices)
        if len(calls) == 2:
            raise RuntimeError(error)

    segmenter, weights = on_gpu(fails)
    assert np.array_equal(segmenter(HU, STATISTICS), EXPECTED)
    assert caplog.messages == [f"the GPU failed ({cause}): going on with the CPU"]
    assert segmenter.used_device.type == segmenter.device.type == "cpu"
    assert np.array_equal(segmenter(HU, STATISTICS), EXPECTED)
    assert [device for device, _ in weights.made] == ["cuda", "cpu"]
    assert len(calls) == 2  # and is not asked again
    assert len(caplog.messages) == 1


@pytest.mark.fault_gpu
def test_a_scan_that_float16_cannot_hold_goes_to_the_cpu_alone(on_gpu, caplog):
    overflowing = True

    def fails(slices):
        if overflowing:
            raise module.Float16Overflow("the logits overflow float16")

    segmenter, weights = on_gpu(fails)
    assert np.array_equal(segmenter(HU, STATISTICS), EXPECTED)
    assert caplog.messages == ["the logits overflow float16: this case goes to the CPU"]
    assert segmenter.used_device.type == "cpu"
    overflowing = False
    assert np.array_equal(segmenter(HU, STATISTICS), EXPECTED)
    assert segmenter.used_device.type == segmenter.device.type == "cuda"
    assert [device for device, _ in weights.made] == ["cuda", "cpu"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.fault_gpu
def test_logits_beyond_float16_are_an_error_not_a_mask(bad):
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float16), requires_grad=False)

        def quarter_logits(self, images):
            logits = torch.zeros(len(images), 14, 16, 16, dtype=images.dtype)
            logits[0, 3, 5, 5] = bad
            return logits

    with pytest.raises(module.Float16Overflow, match="overflow"):
        segment(Overflowing(), smooth_hu((1, 64, 64)), STATISTICS, 1, 64)


def test_a_failure_on_the_cpu_is_an_error():
    weights = FakeWeights()
    segmenter = Segmenter(weights, torch.device("cpu"), 2048)

    def fails(slices):
        raise RuntimeError("not enough memory")

    weights.made[0][1].fails = fails
    with pytest.raises(RuntimeError, match="not enough memory"):
        segmenter(HU, STATISTICS)


@pytest.mark.gpu
def test_a_real_gpu_agrees_with_the_cpu_and_keeps_to_the_budget(tmp_path):
    weights = load_weights(save_weights(tmp_path / "weights.pt", frame_px=512))
    hu = smooth_hu((20, 512, 512))
    statistics_hu = clipped_statistics(hu)
    expected = segment(weights.network(torch.device("cpu"), torch.float32), hu[:4], statistics_hu, 4)
    segmenter = Segmenter(weights, torch.device("cuda"), 2048)
    labels = segmenter(hu, statistics_hu, lambda done: None)
    assert (labels[:4] == expected).mean() >= 0.99  # an untrained network's labels hang on little
    assert torch.cuda.max_memory_reserved() < 1348 << 20  # the context takes the rest


@pytest.mark.gpu
def test_a_real_gpu_under_a_budget_that_is_too_small(tmp_path, caplog):
    weights = load_weights(save_weights(tmp_path / "weights.pt", frame_px=512))
    hu = smooth_hu((3, 512, 512))
    labels = Segmenter(weights, torch.device("cuda"), 100)(hu, (0.0, 300.0), lambda done: None)
    torch.cuda.set_per_process_memory_fraction(1.0)
    expected = segment(weights.network(torch.device("cpu"), torch.float32), hu, (0.0, 300.0), 3)
    assert (labels == expected).mean() >= 0.99
    assert "this case goes to the CPU" in caplog.messages[-1]
