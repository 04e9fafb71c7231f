"""What a look leaves out: against every slab, and against the rule, slab by slab."""

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app.cases import find_cases
from app.look import LOOK_MM, looked_at, slabs_per_look
from app.segment import segment
from benchmarks import look as benchmark
from benchmarks.look import kept_slices
from evaluation.tables.__main__ import make
from tests.scans import save_ct, smooth_hu
from tests.test_tables import cells as table_cells

STATISTICS = (0.0, 1.0)


class FlatNetwork(nn.Module):
    """One label a slab, that of its mean HU, 10 for each class; it notes what it sees."""

    def __init__(self, fitting=99):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.fitting, self.seen = fitting, []

    def quarter_logits(self, images):
        if len(images) > self.fitting:
            raise torch.OutOfMemoryError
        means = images.mean(dim=(1, 2, 3))
        self.seen += means.tolist()
        return (-((means[:, None, None, None] - 10 * torch.arange(14).view(1, 14, 1, 1)) ** 2)).repeat(1, 1, 4, 4)


def volume(labels):
    """int16 (z, 16, 16): each slice the HU of its label."""
    return np.repeat(np.array(labels, np.int16) * 10, 256).reshape(-1, 16, 16)


@given(st.floats(0.1, 100))
def test_looks_are_no_farther_apart_than_they_may_be_and_as_far_as_that_allows(slab_mm):
    step = slabs_per_look(slab_mm)
    assert step == 1 or step * slab_mm <= LOOK_MM
    assert (step + 1) * slab_mm > LOOK_MM


@given(st.integers(1, 60), st.integers(1, 12))
def test_looks_reach_from_end_to_end(slabs, step):
    found = looked_at(slabs, step)
    assert (found[0], found[-1]) == (0, slabs - 1)
    assert all(0 < there - here <= step for here, there in pairwise(found))


def wanted(labels, step):
    """By the rule, slab by slab: it lies between two looks, or is one of them, of which one sees an organ."""
    looked = looked_at(len(labels), step)
    stretches = list(pairwise(looked))
    return np.array([any(a <= z <= b and (labels[a] or labels[b]) for a, b in stretches) for z in range(len(labels))])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 0, 0, 5]), min_size=1, max_size=40), st.integers(2, 9), st.integers(1, 5))
def test_as_without_a_look_where_slabs_are_not_left_out(labels, step, slabs_per_step):
    hu, network, done = volume(labels), FlatNetwork(), []
    found = segment(network, hu, STATISTICS, slabs_per_step, 16, done.append, slabs_per_look=step)
    kept = wanted(labels, step) if len(labels) > step else np.ones(len(labels), bool)
    assert np.array_equal(found, np.where(kept[:, None, None], hu // 10, 0))
    looked = looked_at(len(labels), step) if len(labels) > step else []
    assert len(network.seen) == len({*np.flatnonzero(kept), *looked})  # no slab twice
    assert done == sorted(done) and done[-1] == len(labels)


def test_looks_are_never_more_than_a_step_ahead():
    """Their logits are kept until the slabs below them are done: a long scan must not need more memory."""
    network = FlatNetwork()
    hu = np.repeat(np.arange(50, 70, dtype=np.int16), 256).reshape(-1, 16, 16)
    segment(network, hu, STATISTICS, 2, 16, slabs_per_look=4)
    order = [0, 4, 1, 2, 3, 8, 12, 5, 6, 7, 9, 10, 11, 16, 19, 13, 14, 15, 17, 18]
    assert network.seen == [50 + slab for slab in order]


def test_slabs_at_the_ends_of_a_run_are_interpolated_inside_it_only():
    """Eight slabs of two slices, looks at 0, 3, 6 and 7: stretch 3 to 6 is left out. Slab 4 holds what no look sees."""
    hu = volume([4, 4, 4, 4, 0, 0, 0, 0, 8, 8, 0, 0, 0, 0, 6, 6])
    found = segment(FlatNetwork(), hu, STATISTICS, 2, 16, slices_per_slab=2, slabs_per_look=3)[:, 0, 0].tolist()
    whole = segment(FlatNetwork(), hu, STATISTICS, 2, 16, slices_per_slab=2)[:, 0, 0].tolist()
    assert whole[:4] == found[:4] and whole[13:] == found[13:]
    assert found[8:13] == [0] * 5
    assert found[6] == whole[6] == 0 and whole[8] > 0


@pytest.mark.parametrize("slices_per_slab", [2, 3])
@pytest.mark.parametrize("step", [2, 3])
def test_neighbouring_stretches_are_one_run(slices_per_slab, step):
    """Around a look between two of them logits are interpolated as everywhere else."""
    hu = volume(np.random.default_rng(0).integers(1, 13, 30))
    looked, whole = (
        segment(FlatNetwork(), hu, STATISTICS, 2, 16, slices_per_slab=slices_per_slab, slabs_per_look=k)
        for k in (step, 1)
    )
    assert np.array_equal(looked, whole)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 0, 0, 5]), min_size=1, max_size=40), st.integers(1, 9))
def test_the_benchmark_simulates_what_the_program_does(labels, step):
    whole, looked = (segment(FlatNetwork(), volume(labels), STATISTICS, 2, 16, slabs_per_look=k) for k in (1, step))
    assert np.array_equal(looked, whole * kept_slices(whole, 1, step)[:, None, None])


def test_benchmark_counts(tmp_path):
    """Of 40 slices of 3 mm the first 4 and the 13th to 15th hold an organ; looks see every eighth and the last."""
    labels = (volume([5] * 4 + [0] * 8 + [5] * 3 + [0] * 25) // 10).astype(np.uint8)
    affine = np.diag([-0.75, -0.75, 3.0, 1.0])
    save_ct(tmp_path / "ct" / "a_0000.nii.gz", smooth_hu((40, 16, 16)), affine)
    save_ct(tmp_path / "labels" / "a.nii.gz", labels.astype(np.int16), affine)
    case, *_ = find_cases([tmp_path / "ct"], tmp_path / "out")

    def segmenter(hu, statistics_hu, slices_per_slab):
        assert slices_per_slab == 1
        return labels

    segmenter.weights = SimpleNamespace(spacing_mm=(0.5, 1.0), slice_mm=3.0)
    found = benchmark.measure(case, tmp_path / "labels" / "a.nii.gz", segmenter, [3.0, 24.0])
    assert [look["slices_left_out"] for look in found["looks"]] == [0, 31]
    assert [look["annotated_voxels_lost"] for look in found["looks"]] == [0, 3 * 256]
    result = {"scans": [found], "processor": "CPU", "device": "CPU", "flags": [], "torch": "2"}
    (tmp_path / "benchmark_look.json").write_text(json.dumps(result))
    assert table_cells(make("benchmark_look", tmp_path))["24 mm"][:3] == ["78 %", "78 %", "1"]


def test_benchmark_refuses_what_it_cannot_use(tmp_path, capsys, weights_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no scan")
    for scan, said in ((tmp_path / "a.nii.gz", "damaged gzip"), (tmp_path / "none", "none")):
        with pytest.raises(SystemExit, match="2"):
            benchmark.main([str(scan), "--weights", str(weights_path), "-o", str(tmp_path / "look.json")])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "look.json").exists()


@pytest.mark.parametrize("fitting", [1, 2, 3])
def test_a_step_that_does_not_fit_is_an_error_in_a_look_too(fitting):
    with pytest.raises(torch.OutOfMemoryError):
        segment(FlatNetwork(fitting), volume([0] * 20), STATISTICS, fitting + 1, 16, slabs_per_look=2)
    assert not segment(FlatNetwork(fitting), volume([0] * 20), STATISTICS, fitting, 16, slabs_per_look=2).any()
