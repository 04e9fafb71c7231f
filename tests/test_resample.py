"""Against SimpleITK, which places pixels by their physical centres."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from app.resample import nearest_spacing, resample_in_plane, resampled_shape
from tests.scans import smooth_hu


@pytest.mark.parametrize(
    ("spacing_mm", "expected"),
    [
        ((0.7, 0.8), (0.7, 0.8)),
        ((0.5, 1.0), (0.5, 1.0)),
        ((3.0, 3.0), (1.0, 1.0)),
        ((0.3, 0.3), (0.5, 0.5)),
        ((0.3, 3.0), (0.5, 1.0)),
        ((0.476, 0.476), (0.476, 0.476)),  # 5 % outside is near enough
        ((1.04, 0.7), (1.04, 0.7)),
        ((0.474, 0.474), (0.5, 0.5)),
        ((1.06, 1.06), (1.0, 1.0)),
        ((1.04, 3.0), (1.0, 1.0)),  # resampled in any case: then into the range
    ],
)
def test_the_nearest_spacing_that_training_saw(spacing_mm, expected):
    assert nearest_spacing(spacing_mm, (0.5, 1.0)) == expected


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "new_spacing_mm", "expected"),
    [
        ((7, 512, 512), (0.7, 0.7), (0.7, 0.7), (7, 512, 512)),
        ((7, 128, 100), (3.0, 3.0), (1.0, 1.0), (7, 384, 300)),
        ((7, 512, 400), (0.25, 0.25), (0.5, 0.5), (7, 256, 200)),
        ((1, 1, 3), (0.1, 0.1), (0.5, 0.5), (1, 1, 1)),
        ((2, 10, 10), (2.0, 1.0), (1.0, 1.0), (2, 20, 10)),
    ],
)
def test_shape_at_another_spacing(shape, spacing_mm, new_spacing_mm, expected):
    assert resampled_shape(shape, spacing_mm, new_spacing_mm) == expected


def by_simpleitk(volume, shape, interpolator):
    """The same over the same field of view, slice by slice."""
    out = np.empty(shape, volume.dtype)
    for source, target in zip(volume, out, strict=True):
        image = sitk.GetImageFromArray(source.astype(np.float64) if interpolator == sitk.sitkLinear else source)
        spacing = [old / new for old, new in zip(source.shape[::-1], shape[:0:-1], strict=True)]
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize(shape[:0:-1])
        resampler.SetOutputSpacing(spacing)
        resampler.SetOutputOrigin([(mm - 1) / 2 for mm in spacing])  # edges coincide, not centres
        resampler.SetInterpolator(interpolator)
        resampler.SetUseNearestNeighborExtrapolator(True)
        target[...] = np.rint(sitk.GetArrayFromImage(resampler.Execute(image)))
    return out


SHAPES = [
    ((2, 40, 50), (2, 120, 150)),
    ((2, 120, 150), (2, 40, 50)),
    ((1, 64, 48), (1, 91, 37)),
    ((1, 33, 17), (1, 100, 17)),
    ((3, 20, 20), (3, 20, 20)),
]


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
def test_hu_as_simpleitk_resamples_linearly_and_labels_to_the_nearest(shape, new_shape):
    hu = smooth_hu(shape)
    resampled = resample_in_plane(hu, new_shape, order=1)
    assert resampled.dtype == np.int16
    assert np.abs(resampled.astype(int) - by_simpleitk(hu, new_shape, sitk.sitkLinear)).max() <= 1
    labels = np.random.default_rng(0).integers(0, 14, shape).astype(np.uint8)
    resampled = resample_in_plane(labels, new_shape, order=0)
    assert resampled.dtype == np.uint8
    expected = by_simpleitk(labels, new_shape, sitk.sitkNearestNeighbor)
    assert (resampled == expected).mean() > 0.9 if 91 in new_shape else np.array_equal(resampled, expected)


def test_rounded_not_cut():
    hu = np.array([[[0, -1], [0, -1]]], np.int16)  # at thirds: 0, 0, -1/2, -1, -1
    assert resample_in_plane(hu, (1, 2, 4), order=1)[0, 0].tolist() == [0, 0, -1, -1]  # 0, -0.25, -0.75, -1


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 9), (1, 9, 1)])
def test_sides_of_one_pixel(shape, order):
    volume = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8 if order == 0 else np.int16)
    there = resample_in_plane(volume, (shape[0], 3 * shape[1], 3 * shape[2]), order)
    assert there.min() >= volume.min()
    assert there.max() <= volume.max()
    assert np.array_equal(resample_in_plane(there, shape, order)[:, ::1, ::1], volume)


@settings(deadline=None, max_examples=60)
@given(*[st.integers(1, 80)] * 4, st.sampled_from([0, 1]))
def test_any_size_to_any_size(height, width, new_height, new_width, order):
    volume = np.full((1, height, width), 7, np.uint8 if order == 0 else np.int16)
    assert (resample_in_plane(volume, (1, new_height, new_width), order) == 7).all()
