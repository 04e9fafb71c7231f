"""The NIfTI-1 header against nibabel's reading of it, and against the standard's text."""

import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nibabel.quaternions import quat2mat

from app.errors import InputError
from app.nifti import mask_header_of, parse_nifti

# Bytes that a mask may change: data type, vox_offset and scaling, cal_max and cal_min, glmax and glmin.
MASK_FIELDS = [*range(70, 74), *range(108, 120), *range(124, 132), *range(140, 148)]

unit = st.floats(-1, 1, width=32)
quaternions = st.tuples(unit, unit, unit, unit).filter(lambda q: np.linalg.norm(q) > 0.1)
spacings = st.tuples(*[st.floats(0.125, 8, width=32)] * 3)
shifts = st.tuples(*[st.floats(-1000, 1000, width=32)] * 3)


def rotation(quaternion, mirrored=False):
    matrix = quat2mat(np.array(quaternion, np.float64) / np.linalg.norm(quaternion))
    return matrix * [1, 1, -1] if mirrored else matrix


def affine_of(matrix, spacing, shift):
    affine = np.eye(4)
    affine[:3, :3] = matrix * spacing
    affine[:3, 3] = shift
    return affine


def header(affine, sform_code=1, qform_code=1, order="<", shape=(4, 5, 6), dtype=np.int16):
    result = nib.Nifti1Header(endianness=order)
    result.set_data_shape(shape)
    result.set_data_dtype(dtype)
    result.set_qform(affine, qform_code)
    result.set_sform(affine, sform_code)
    result["vox_offset"] = 352
    result["magic"] = b"n+1"
    return result


@given(quaternions, st.booleans(), spacings, shifts, st.sampled_from("<>"), st.sampled_from([(1, 0), (0, 1), (2, 3)]))
def test_affine_is_nibabels(quaternion, mirrored, spacing, shift, order, codes):
    a = quaternion[0] / np.linalg.norm(quaternion)
    assume(abs(a) > 1e-3 or abs(a) < 1e-5)  # between, nibabel takes a turn for half a turn; the standard does not
    expected = header(affine_of(rotation(quaternion, mirrored), spacing, shift), *codes, order=order)
    parsed = parse_nifti(expected.binaryblock)
    np.testing.assert_allclose(parsed.affine, expected.get_best_affine(), atol=1e-5)
    assert parsed.shape == (6, 5, 4)
    assert parsed.dtype == expected.get_data_dtype()
    assert parsed.warnings == ()


@given(quaternions, st.booleans(), spacings, shifts)
def test_mask_header_from_an_affine_has_it_in_both_forms(quaternion, mirrored, spacing, shift):
    affine = affine_of(rotation(quaternion, mirrored), spacing, shift)
    written = nib.Nifti1Header(mask_header_of((6, 5, 4), affine)[:348])
    np.testing.assert_allclose(written.get_sform(), affine, rtol=1e-6, atol=1e-6)
    # float32 quaternions leave a (which is not stored) with half the digits when it is small
    np.testing.assert_allclose(written.get_qform(), affine, atol=8 * 2e-3, rtol=1e-3)
    assert (int(written["sform_code"]), int(written["qform_code"])) == (1, 1)
    assert written.get_xyzt_units()[0] == "mm"
    assert written.get_data_shape() == (4, 5, 6)
    assert written.get_data_dtype() == np.uint8
    assert written["magic"] == b"n+1"


@given(st.binary(min_size=348, max_size=348), st.sampled_from("<>"))
def test_a_mask_header_keeps_every_byte_of_geometry(noise, order):
    raw = bytearray(noise)
    good = header(np.diag([2, 3, 4, 1]), order=order).binaryblock
    for start, stop in ((0, 4), (40, 56), (70, 92), (108, 116), (252, 328), (344, 348)):  # the rest is noise
        raw[start:stop] = good[start:stop]
    assume(np.isfinite(struct.unpack_from(order + "f", raw, 116)[0]))
    mask = parse_nifti(bytes(raw)).mask_header
    assert len(mask) == 352
    assert mask[348:] == bytes(4)
    changed = [at for at in range(348) if mask[at] != raw[at]]
    assert set(changed) <= set(MASK_FIELDS)
    read = nib.Nifti1Header(mask[:348])
    assert (read.get_data_dtype(), float(read["vox_offset"])) == (np.uint8, 352)
    assert (float(read["scl_slope"]), float(read["scl_inter"]), int(read["bitpix"])) == (1, 0, 8)


def test_without_codes_the_orientation_is_itks_lps():
    parsed = parse_nifti(header(np.diag([2, 3, 4, 1]), 0, 0).binaryblock)
    assert np.array_equal(parsed.affine, np.diag([-2, -3, 4, 1]))
    assert "L, P, S assumed" in parsed.warnings[0]


def test_disagreeing_forms_are_told_and_the_sform_wins():
    both = header(np.diag([2, 3, 4, 1]))
    both.set_sform(np.diag([-2, 3, 4, 1]), 1)
    parsed = parse_nifti(both.binaryblock)
    assert np.array_equal(parsed.affine, np.diag([-2, 3, 4, 1]))
    assert parsed.warnings == ("sform and qform disagree on the orientation: the sform is used",)


def test_a_spacing_that_contradicts_the_sform_is_told():
    both = header(np.diag([2, 3, 4, 1]), qform_code=0)
    both["pixdim"][1:4] = 2, 3, 5
    assert parse_nifti(both.binaryblock).warnings == (
        "sform and pixdim disagree on the voxel spacing: the sform is used",
    )


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("unknown", 1), ("meter", 1000), ("micron", 0.001)])
def test_units_become_mm(unit, mm):
    raw = header(np.diag([2, 3, 4, 1]))
    raw.set_xyzt_units(unit, "sec")
    np.testing.assert_allclose(parse_nifti(raw.binaryblock).affine, np.diag([2 * mm, 3 * mm, 4 * mm, 1]))


@pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 1, 1, 1, 1), (4, 5, 1)])
def test_singleton_dimensions_are_one_volume(shape):
    assert parse_nifti(header(np.eye(4), shape=shape).binaryblock).shape == shape[2::-1]


@pytest.mark.parametrize(
    ("field", "value", "cause"),
    [
        ("dim", (2, 4, 5, 1, 1, 1, 1, 1), "2-D image (4 x 5)"),
        ("dim", (4, 4, 5, 6, 2, 1, 1, 1), "4-D image (4 x 5 x 6 x 2)"),
        ("dim", (5, 4, 5, 6, 1, 3, 1, 1), "5-D image"),
        ("dim", (3, 4, -5, 6, 1, 1, 1, 1), "size of 4 x -5 x 6"),
        ("dim", (3, 4, 0, 6, 1, 1, 1, 1), "size of 4 x 0 x 6"),
        ("dim", (0,) * 8, "0 dimensions"),
        ("datatype", 128, "RGB"),
        ("datatype", 2304, "RGBA"),
        ("datatype", 32, "complex64"),
        ("datatype", 1536, "float128"),
        ("datatype", 99, "code 99"),
        ("bitpix", 8, "bitpix 8"),
        ("pixdim", (1, 1, 0, 1, 0, 0, 0, 0), "spacing 1 x 0 x 1"),
        ("pixdim", (1, 1, 1, -3, 0, 0, 0, 0), "spacing 1 x 1 x -3"),
        ("pixdim", (1, np.nan, 1, 1, 0, 0, 0, 0), "spacing nan"),
        ("pixdim", (1, np.inf, 1, 1, 0, 0, 0, 0), "spacing inf"),
        ("vox_offset", 100, "vox_offset 100"),
        ("vox_offset", np.nan, "vox_offset nan"),
        ("vox_offset", 352.5, "vox_offset 352.5"),
        ("vox_offset", 1e30, "vox_offset 1e+30"),
        ("srow_x", (0, 0, 0, 0), "sform is singular"),
        ("srow_x", (0, 1, 0, 0), "sform is singular"),
        ("srow_y", (0, np.nan, 0, 0), "sform is singular"),
        ("magic", b"ni1", ".hdr/.img pair"),
        ("magic", b"", "Analyze"),
        ("sizeof_hdr", 540, "NIfTI-2"),
        ("sizeof_hdr", 349, "not a NIfTI-1 file"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_refused_headers_name_the_cause(field, value, cause, order):
    raw = header(np.eye(4), order=order)
    raw[field] = value
    with pytest.raises(InputError) as error:
        parse_nifti(raw.binaryblock)
    assert cause in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [((0, 7), (1, 0)), ((np.nan, 7), (1, 0)), ((np.inf, 7), (1, 0)), ((2, -1024), (2, -1024)), ((-1, 3), (-1, 3))],
)
def test_scaling_follows_the_standard(stored, expected):
    raw = header(np.eye(4))
    raw["scl_slope"], raw["scl_inter"] = stored
    parsed = parse_nifti(raw.binaryblock)
    assert (parsed.slope, parsed.inter) == expected


def test_an_infinite_intercept_is_refused():
    raw = header(np.eye(4))
    raw["scl_slope"], raw["scl_inter"] = 1, np.inf
    with pytest.raises(InputError, match="scl_inter is inf"):
        parse_nifti(raw.binaryblock)


@given(st.binary(max_size=400))
def test_noise_is_refused(noise):
    with pytest.raises(InputError):
        parse_nifti(noise)


@given(st.lists(st.tuples(st.integers(4, 343), st.binary(min_size=1, max_size=8)), max_size=4), st.sampled_from("<>"))
def test_a_damaged_header_is_parsed_or_refused(damages, order):
    raw = bytearray(header(np.diag([2, 3, 4, 1]), order=order).binaryblock)
    for at, noise in damages:
        raw[at : at + len(noise)] = noise
    try:
        parsed = parse_nifti(bytes(raw[:348]))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(parsed.affine).all()
        assert abs(np.linalg.det(parsed.affine)) > 0
