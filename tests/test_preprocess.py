"""Against NumPy in float64 on a clipped copy."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.preprocess import WINDOW_HU, clipped_statistics, normalise


def test_the_window_is_the_papers():
    assert WINDOW_HU == (-100, 1000)


@settings(deadline=None)
@given(
    arrays.arrays(
        np.int16,
        arrays.array_shapes(min_dims=1, max_dims=4, max_side=6),
        elements=st.integers(-300, 1200) | st.sampled_from([-32768, -101, -100, 1000, 1001, 32767]),
    )
)
def test_statistics_are_those_of_the_clipped_volume(hu):
    clipped = np.clip(hu.astype(np.float64), -100, 1000)
    mean, std = clipped_statistics(hu)
    assert mean == pytest.approx(clipped.mean(), rel=1e-12, abs=1e-9)
    assert std == pytest.approx(clipped.std() if clipped.std() > 1e-9 else 1.0, rel=1e-9)


def test_a_constant_volume_becomes_zeros():
    hu = np.full((2, 3, 4), 40, np.int16)
    assert clipped_statistics(hu) == (40.0, 1.0)
    assert not normalise(torch.from_numpy(hu), *clipped_statistics(hu)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int32])
def test_other_types_are_refused(dtype):
    with pytest.raises(TypeError, match="int16"):
        clipped_statistics(np.zeros((2, 2, 2), dtype))


def test_a_strided_view_gives_the_same():
    hu = np.random.default_rng(0).integers(-1000, 2000, (5, 6, 7)).astype(np.int16)
    assert clipped_statistics(hu.transpose(2, 0, 1)[::-1]) == clipped_statistics(hu)


def test_statistics_take_no_copy_of_the_volume():
    hu = np.random.default_rng(0).integers(-1000, 2000, (200, 64, 64)).astype(np.int16)
    tracemalloc.start()
    clipped_statistics(hu)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < hu.nbytes / 4


def test_normalise_by_hand():
    hu = torch.tensor([-1000, -100, 0, 300, 1000, 3000], dtype=torch.int16)
    expected = torch.tensor([-2.0, -2.0, -1.5, 0.0, 3.5, 3.5])
    assert torch.equal(normalise(hu, 300.0, 200.0), expected)
    assert normalise(hu, 300.0, 200.0).dtype == torch.float32
    assert torch.equal(hu, torch.tensor([-1000, -100, 0, 300, 1000, 3000], dtype=torch.int16))  # not in place


def test_normalise_takes_statistics_for_each_slice():
    hu = torch.full((2, 1, 1, 1), 100, dtype=torch.int16)
    statistics = torch.tensor([0.0, 50.0]).view(2, 1, 1, 1), torch.tensor([10.0, 25.0]).view(2, 1, 1, 1)
    assert normalise(hu, *statistics).flatten().tolist() == [10.0, 2.0]
