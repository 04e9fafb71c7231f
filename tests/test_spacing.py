"""Spacings that are not in mm: scans that people have are left alone, in other units made right or refused."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from app.ct import read_ct
from app.errors import InputError
from app.geometry import Geometry
from app.spacing import checked_spacing
from tests.nifti_files import REAL_SCANS, mask_on, patch_header
from tests.scans import save_ct, smooth_hu

EVERY_REAL_SCAN = sorted(REAL_SCANS[0].parents[2].glob("*/images/*.nii.gz")) if REAL_SCANS else []


def grid(shape, spacing_mm):
    """Of (z, y, x) voxels."""
    return Geometry(tuple(shape), tuple(map(float, spacing_mm)), (0, 1, 2), (False,) * 3, b"")


SOUND = {
    "abdomen": ((100, 512, 512), (5, 0.75, 0.75)),
    "large patient in a wide bore": ((200, 512, 512), (3, 1.56, 1.56)),
    "whole body": ((900, 512, 512), (2, 1.37, 1.37)),
    "whole body, its axes named wrongly": ((512, 900, 512), (1.37, 2, 1.37)),
    "thin slices": ((1500, 512, 512), (0.3, 0.6, 0.6)),
    "small matrix": ((112, 101, 122), (3, 3, 3)),
    "head": ((54, 512, 512), (3.75, 0.43, 0.43)),
    "thigh": ((24, 143, 161), (6.54, 0.98, 0.98)),
    "slices thinned out": ((5, 512, 512), (50, 0.77, 0.77)),
    "one slice": ((1, 512, 512), (5, 0.8, 0.8)),
    "infant": ((60, 512, 512), (1, 0.25, 0.25)),
    "inner ear": ((100, 1024, 1024), (0.1, 0.1, 0.1)),
    "cut out of a scan": ((3, 64, 64), (5, 0.75, 0.75)),
    "a few voxels": ((7, 6, 5), (2.5, 0.75, 0.5)),
    "phantom of coarse pixels": ((40, 48, 48), (5, 8.3, 8.3)),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_scanners_and_people_make_is_left_alone(kind):
    geometry = grid(*SOUND[kind])
    assert checked_spacing(geometry) == (geometry, ())


@pytest.mark.skipif(not EVERY_REAL_SCAN, reason="no real scans: set FLARE22_CT_DIR")
def test_real_scans_are_left_alone():
    for path in EVERY_REAL_SCAN:
        header = nib.load(path).header
        geometry = grid(header.get_data_shape()[::-1], header.get_zooms()[::-1])
        assert checked_spacing(geometry) == (geometry, ()), path


@given(
    st.sampled_from([256, 320, 512, 768]),
    st.floats(250, 510),  # pixels below 2 mm: a tenth of more may be a small field's own
    st.floats(2.5, 8),
    st.integers(20, 250),
    st.sampled_from([1e-3, 1e-2, 1e-1, 10, 100, 1e3]),
)
def test_a_trunk_in_any_unit_is_brought_to_mm(pixels, width_mm, slice_mm, slices, factor):
    pixel_mm = width_mm / pixels
    true_mm = np.array([slice_mm, pixel_mm, pixel_mm])
    geometry, (warning,) = checked_spacing(grid((slices, pixels, pixels), true_mm * factor))
    np.testing.assert_allclose(geometry.spacing_mm, true_mm)
    assert " mm are assumed" in warning


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        ((500, 512, 512), (0.08, 0.08, 0.08)),  # a trunk in cm, or a mouse
        ((1000, 1000, 1000), (0.01, 0.01, 0.01)),  # a tenth of a mm times a hundred, or a specimen
        ((3, 64, 64), (0.5, 0.075, 0.075)),  # a part of a scan, in cm or in tenths of it
        ((3, 64, 64), (5, 90, 90)),
        ((100, 512, 512), (0.005, 0.8, 0.8)),  # the slices alone
        ((100, 512, 512), (500, 0.8, 0.8)),
        ((100, 512, 512), (5, 0.8, 0.008)),
        ((100, 512, 512), (1e-30, 1e-30, 1e-30)),
        ((100, 512, 512), (1e30, 1e30, 1e30)),
    ],
)
def test_what_is_not_certain_is_refused(shape, spacing_mm):
    with pytest.raises(InputError, match=r"^a field of view of .* mm is no person's: its spacing must be wrong$"):
        checked_spacing(grid(shape, spacing_mm))


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((112, 101, 122), (0.3, 0.3, 0.3)), ((20, 400, 400), (0.5, 0.2, 0.2))],
)
def test_what_may_be_in_another_unit_is_left_with_a_warning(shape, spacing_mm):
    geometry, (warning,) = checked_spacing(grid(shape, spacing_mm))
    assert geometry == grid(shape, spacing_mm)
    assert warning.endswith("is its spacing in mm?")


HU = smooth_hu((4, 250, 260))
MM = np.array([[0, -1.5, 0, 10], [1.6, 0, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]])
UNITS = {  # name: (factor of the affine, unit in the header, factor of ITK)
    "affine in cm": (0.1, 2, 1),
    "affine in metres": (1e-3, 2, 1),
    "affine in microns": (1e3, 2, 1),
    "ten times too large": (10, 2, 1),
    "100 times too small": (1e-2, 0, 1),
    "wrong unit of metres": (1, 1, 1e3),
    "wrong unit of microns": (1, 3, 1e-3),
}


@pytest.mark.parametrize("kind", UNITS)
def test_a_file_in_another_unit(tmp_path, kind):
    factor, unit, factor_of_itk = UNITS[kind]
    ct = save_ct(tmp_path / "ct.nii", HU, np.diag([factor, factor, factor, 1]) @ MM)
    patch_header(ct, "<B", 123, unit)
    volume = read_ct(ct)
    assert volume.geometry.spacing_mm == pytest.approx((5, 1.6, 1.5))
    assert volume.geometry.voxel_ml == pytest.approx(0.012)
    (warning,) = volume.warnings
    assert warning.endswith("is no person's: voxels of 1.5 x 1.6 x 5 mm are assumed")

    mask = mask_on(volume, tmp_path, nib.load(ct).get_fdata())
    assert np.array_equal(mask.affine, nib.load(ct).affine)  # on the CT, as other programs see it
    by_itk, ct_by_itk = sitk.ReadImage(tmp_path / "mask.nii.gz"), sitk.ReadImage(ct)
    assert by_itk.GetSpacing() == ct_by_itk.GetSpacing()
    assert by_itk.GetSpacing() == pytest.approx(np.array([1.6, 1.5, 5]) * factor * factor_of_itk)
    assert by_itk.GetOrigin() == ct_by_itk.GetOrigin()


@pytest.mark.parametrize("kind", ["metre", "micron"])
def test_a_file_whose_unit_is_right(tmp_path, kind):
    factor, unit = {"metre": (1e-3, 1), "micron": (1e3, 3)}[kind]
    ct = save_ct(tmp_path / "ct.nii", HU, np.diag([factor, factor, factor, 1]) @ MM)
    patch_header(ct, "<B", 123, unit)
    volume = read_ct(ct)
    assert volume.warnings == ()
    assert volume.geometry.spacing_mm == pytest.approx((5, 1.6, 1.5))
    assert sitk.ReadImage(ct).GetSpacing() == pytest.approx((1.6, 1.5, 5))


def test_the_rest_of_a_geometry_stays():
    geometry = replace(grid((50, 512, 512), (0.5, 0.08, 0.08)), axes=(2, 0, 1), flips=(True, False, True))
    assert checked_spacing(geometry)[0] == replace(geometry, spacing_mm=(5, 0.8, 0.8))
