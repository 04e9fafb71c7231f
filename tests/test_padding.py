"""Voxels without a number: around a scan they are air, in it they are an error."""

import nibabel as nib
import numpy as np
import pytest

from app.ct import read_ct
from app.errors import InputError
from app.padding import fill_padding
from app.voxels import NO_NUMBER
from tests.scans import AFFINE, smooth_hu

Y, X = np.mgrid[:64, :64]


def volume(hole) -> np.ndarray:
    """Values from 0 to 99, none where the index into (z, y, x) says."""
    values = np.random.default_rng(0).integers(0, 100, (5, 64, 64)).astype(np.int16)
    values[0, 30, 30] = 0
    values[hole] = NO_NUMBER
    return values


@pytest.mark.parametrize(
    ("hole", "percent"),
    [
        (np.s_[:, (X - 31.5) ** 2 + (Y - 31.5) ** 2 > 31**2], 26.2),  # beside a round field of view
        (np.s_[:, :, :16], 25),
        (np.s_[:, (X + Y < 32) | (X + Y > 95)], 25),  # a slice that was turned
        (np.s_[:, 32:, 24:40], 12.5),  # between the legs
        (np.s_[:, 24:40, 32:], 12.5),
        (np.s_[3:], 40),  # slices that were added
        (np.s_[2, 0, 0], 0.00488),
    ],
)
def test_padding_becomes_the_lowest_value(hole, percent):
    values, expected = volume(hole), volume(np.s_[:0])
    expected[hole] = 0
    (warning,) = fill_padding(values)
    assert np.array_equal(values, expected)
    assert warning == (
        f"{percent} % of its voxels are NaN, infinite or -32768, all of them around the others: taken for air (0)"
    )


@pytest.mark.parametrize("hole", [np.s_[2, 30, 31], np.s_[:, 20:40, 20:40], np.s_[2], np.s_[1:3, 1:-1, 1:-1]])
def test_amid_others_it_is_an_error(hole):
    values = volume(hole)
    with pytest.raises(InputError, match=r"^[0-9.]+ % of its voxels are NaN, .*, some of them amid others$"):
        fill_padding(values)


def test_nothing_else_is_an_error():
    with pytest.raises(InputError, match=r"^every voxel is NaN, infinite or -32768$"):
        fill_padding(volume(np.s_[:]))


def test_without_it_nothing_changes():
    values = volume(np.s_[:0])
    before = values.copy()
    assert fill_padding(values) == ()
    assert np.array_equal(values, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("offset", [0, 1024])
def test_from_a_file(tmp_path, value, offset):
    """Padding is air on whatever scale the values are."""
    hu = smooth_hu()
    array = (hu + offset).astype(np.float32)
    array[:, :2] = value
    nib.save(nib.Nifti1Image(array.T, AFFINE), tmp_path / "ct.nii.gz")
    if offset:
        array[:, 2] = offset - 1000  # some air is left
        nib.save(nib.Nifti1Image(array.T, AFFINE), tmp_path / "ct.nii.gz")
    read = read_ct(tmp_path / "ct.nii.gz")
    assert read.warnings[0].startswith("3.12 % of its voxels are NaN, infinite or -32768")
    assert np.array_equal(read.hu[:, 3:], hu[:, 3:])
    assert read.hu[:, :2].max() == read.hu.min()
