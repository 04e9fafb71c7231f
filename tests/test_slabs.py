"""Slabs against the same in one go: numpy averages the volume, the network sees each slab, numpy interpolates."""

import weakref
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app.inference import segment_volume
from app.postprocess import labels_from_logits, remove_small_components
from app.preprocess import clipped_statistics
from app.segment import Segmenter, segment
from app.slabs import Slabs, slices_per_slab
from tests.scans import random_network, smooth_hu

STATISTICS = (100.0, 200.0)


@settings(max_examples=200)
@given(st.floats(0.2, 10), st.floats(0.5, 8))
def test_no_other_number_of_slices_comes_nearer(slice_mm, trained_mm):
    slices = slices_per_slab(slice_mm, trained_mm)
    nearest_mm = min(abs(k * slice_mm - trained_mm) for k in range(1, 60))
    assert abs(slices * slice_mm - trained_mm) == pytest.approx(nearest_mm)


def slab_logits_in_one_go(network, hu, slices):
    """Logits of slabs, float32 (slabs, 14, h, w), and their centres; by hand and by numpy alone but for the network."""
    depth = len(hu)
    slices = min(slices, depth)
    starts = []
    while not starts or starts[-1] + slices < depth:
        starts.append(min(len(starts) * slices, depth - slices))
    slabs = [np.round(sum(hu[start + k].astype(np.float64) for k in range(slices)) / slices) for start in starts]
    images = (np.clip(slabs, -100, 1000) - STATISTICS[0]) / STATISTICS[1]
    with torch.inference_mode():
        logits = [network.quarter_logits(torch.from_numpy(image)[None, None].float())[0] for image in images]
    return torch.stack(logits).numpy(), [np.arange(start, start + slices).mean() for start in starts]


def labels_in_one_go(network, hu, slices):
    """Labels by the largest logit, and where another one is so near that rounding may decide."""
    logits, centres = slab_logits_in_one_go(network, hu, slices)
    z = np.arange(len(hu))
    flat = logits.reshape(len(logits), -1).T
    between = np.stack([np.interp(z, centres, along_z) for along_z in flat], axis=-1)
    between = torch.from_numpy(between.reshape(len(hu), *logits.shape[1:])).float()
    whole = nn.functional.interpolate(between, scale_factor=4, mode="bilinear").numpy()
    whole[:, 1:] += 0.6
    first, second = np.sort(whole, axis=1)[:, :-3:-1].swapaxes(0, 1)
    return whole.argmax(axis=1), first - second < 1e-4


@pytest.mark.parametrize("slices", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("depth", [1, 2, 3, 7, 10])
def test_as_in_one_go(depth, slices):
    hu = smooth_hu((depth, 64, 64), seed=depth)
    network = random_network()
    expected, close = labels_in_one_go(network, hu, slices)
    assert close.mean() < 0.01
    for step in (1, 2, 8):
        labels = segment(network, hu, STATISTICS, step, 64, slices_per_slab=slices)
        assert labels.dtype == np.uint8
        assert np.array_equal(labels[~close], expected[~close])
        assert len(np.unique(labels)) > 2
    assert np.array_equal(hu, smooth_hu((depth, 64, 64), seed=depth))  # nothing is written to the volume


class Ramp(nn.Module):
    """Logits that follow the mean HU of a slab; it notes how many slabs it sees at a time."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=dtype), requires_grad=False)
        self.seen = []

    def quarter_logits(self, images):
        self.seen.append(len(images))
        classes = torch.arange(14, dtype=torch.float32).view(1, 14, 1, 1) * 5
        mean = images.float().mean(dim=(1, 2, 3))[:, None, None, None]
        return (-((mean - classes) ** 2)).expand(-1, -1, 4, 4).to(self.scale.dtype).contiguous()


def ramp(values):
    return np.repeat(np.array(values, np.int16), 256).reshape(-1, 16, 16)


def test_each_slab_is_seen_once():
    for slices, seen in ((1, [3, 3, 1]), (2, [3, 1]), (3, [3]), (6, [2]), (7, [1]), (9, [1])):
        network = Ramp()
        segment(network, ramp(range(7)), (0.0, 1.0), 3, 16, slices_per_slab=slices)
        assert network.seen == seen


def test_hand_worked():
    """Five slices, slabs of two: (0, 1), (2, 3), (3, 4), their centres at 0.5, 2.5 and 3.5."""
    slabs = Slabs(ramp([0, 10, 20, 40, 41]), 2)
    assert slabs[range(3)][:, 0, 0].tolist() == [5, 30, 40]  # 40.5 to the even one
    steps = [torch.tensor([0.0, 8.0]).view(2, 1, 1, 1), torch.tensor([10.0]).view(1, 1, 1, 1)]
    found = [(part, logits.ravel().tolist()) for part, logits in slabs.per_slice(steps, 2)]
    assert found == [(slice(0, 2), [0.0, 2.0]), (slice(2, 3), [6.0]), (slice(3, 4), [9.0]), (slice(4, 5), [10.0])]


@pytest.mark.parametrize("slices", range(1, 6))
def test_slices_are_reported(slices):
    done = []
    segment(Ramp(), ramp(range(11)), (0.0, 1.0), 2, 16, done.append, slices)
    assert done == sorted(done) and done[-1] == 11
    assert np.diff([0, *done]).max() <= 2  # no more labels are decided at a time than a step has slabs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_slabs_of_one_slice_leave_logits_as_they_are(dtype):
    logits = torch.randn(7, 14, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype) * 30
    slabs = Slabs(ramp(range(7)), 1)
    parts = list(slabs.per_slice((logits[k : k + 3] for k in range(0, 7, 3)), 3))
    assert torch.equal(torch.cat([part for _, part in parts]), logits)
    assert [part for part, _ in parts] == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_only_the_last_slabs_logits_are_kept():
    alive, most = weakref.WeakSet(), []

    def steps():
        for _ in range(200):
            logits = torch.zeros(2, 14, 8, 8)
            alive.add(logits)
            most.append(len(alive))
            yield logits
            del logits

    for part, logits in Slabs(ramp(range(1200)), 3).per_slice(steps(), 2):
        assert len(logits) == part.stop - part.start <= 2
    assert max(most) <= 2  # the one that is made, and the one that it is joined to


# Through the door


class Recorder(Segmenter):
    """A Segmenter on the CPU of a random network; it notes how many slices a slab has, and how many slabs a look."""

    def __init__(self, slice_mm=3.0, every_slice=False):
        self.network = random_network()
        weights = SimpleNamespace(
            frame_px=64, spacing_mm=(0.5, 1.0), slice_mm=slice_mm, network=lambda device, dtype: self.network
        )
        super().__init__(weights, torch.device("cpu"), 2048, every_slice)
        self.told = []

    def __call__(self, *arguments, **options):
        self.told.append((options["slices_per_slab"], options["slabs_per_look"]))
        return super().__call__(*arguments, **options)


THIN_MM = (1.0, 0.75, 0.75)
HU = smooth_hu((8, 64, 64), seed=5)


def test_thin_slices_are_averaged_and_their_statistics_are_the_scans():
    segmenter = Recorder()
    segmentation = segmenter.segment_volume(HU, THIN_MM)
    assert segmenter.told == [(segmentation.slices_per_slab, segmentation.slabs_per_look)] == [(3, 8)]
    assert segmentation.statistics_hu == clipped_statistics(HU)
    expected = segment(segmenter.network, HU, clipped_statistics(HU), 2, 64, slices_per_slab=3)
    remove_small_components(expected)
    assert np.array_equal(segmentation.labels, expected)
    assert Recorder(slice_mm=5.0).segment_volume(HU, THIN_MM).slices_per_slab == 5  # the thickness is the weights'


@pytest.mark.parametrize(("slice_mm", "every_slice"), [(1.0, True), (2.5, True), (2.5, False), (30.0, False)])
def test_every_slice_by_itself_is_the_plain_path(slice_mm, every_slice):
    """Eight slices of 2.5 mm are fewer than it is to the second look, and between slices of 30 mm there are none."""
    segmenter = Recorder(every_slice=every_slice)
    segmentation = segmenter.segment_volume(HU, (slice_mm, 0.75, 0.75))
    assert segmenter.told == [(segmentation.slices_per_slab, segmentation.slabs_per_look)]
    assert segmenter.told == [(1, 9 if slice_mm == 2.5 and not every_slice else 1)]
    with torch.inference_mode():
        mean_hu, std_hu = clipped_statistics(HU)
        images = (torch.from_numpy(HU)[:, None].float().clamp(-100, 1000) - mean_hu) / std_hu
        logits = [segmenter.network.quarter_logits(images[z : z + 2]) for z in range(0, 8, 2)]  # a step of the CPU's
    expected = labels_from_logits(torch.cat(logits)).numpy()
    remove_small_components(expected)
    assert np.array_equal(segmentation.labels, expected)
    assert not np.array_equal(expected, Recorder().segment_volume(HU, THIN_MM).labels)


def test_stages_are_entered_in_their_order():
    entered = []
    Recorder().segment_volume(HU, THIN_MM, stage=lambda name: nullcontext(entered.append(name)))
    assert entered == ["preprocess", "segment", "postprocess"]


def test_given_statistics_and_smallest_region_are_used():
    network = random_network()
    segment_slices = partial(segment, network, slices_per_step=2, frame_px=64)
    options = {"statistics_hu": STATISTICS, "min_region_px": 200}
    segmentation = segment_volume(segment_slices, HU, (5.0, 0.75, 0.75), (0.5, 1.0), 3.0, **options)
    expected = segment(network, HU, STATISTICS, 2, 64)
    remove_small_components(expected, 200)
    assert segmentation.statistics_hu == STATISTICS
    assert np.array_equal(segmentation.labels, expected)


@pytest.mark.parametrize(("side_px", "stays"), [(70, False), (71, True)])  # 49 and 50.4 ml of voxels of 0.005 ml
def test_traces_are_counted_in_ml_of_the_voxels_that_the_network_saw(side_px, stays):
    labels = np.zeros((20, 300, 300), np.uint8)
    labels[9:11, 100 : 100 + side_px, 100 : 100 + side_px] = 3
    segment_slices = lambda *_, **__: labels.copy()  # noqa: E731 - stands in for the network
    found = segment_volume(segment_slices, smooth_hu((20, 300, 300)), (5.0, 1.0, 1.0), (0.5, 1.0), 3.0).labels
    assert np.array_equal(found, labels if stays else 0 * labels)
