"""The NIfTI header against nibabel's reading of it, and against the standard's text."""

import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from nibabel.quaternions import quat2mat

from app.errors import InputError
from app.maskheader import mask_header_of
from app.nifti import parse_nifti

TURNED = np.array([[0, -0.8, 0, 10], [0.75, 0, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
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


def header(affine, sform_code=1, qform_code=1, order="<", shape=(4, 5, 6), dtype=np.int16, version=1):
    result = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=order)
    result.set_data_shape(shape)
    result.set_data_dtype(dtype)
    result.set_qform(affine, qform_code)
    result.set_sform(affine, sform_code)
    result["vox_offset"] = 352 if version == 1 else 544
    result["magic"] = b"n+1" if version == 1 else b"n+2\0\r\n\x1a\n"
    return result


def best_affine(sound):
    try:
        return sound.get_best_affine()
    except ValueError:  # nibabel refuses rounded half turns in double precision
        reject()


def damaged(changes, order="<", version=1):
    """The bytes of a sound header with fields replaced."""
    raw = header(TURNED, order=order, version=version)
    for field, value in changes.items():
        raw[field] = value
    return raw.binaryblock


@pytest.mark.parametrize("version", [1, 2])
@given(quaternions, st.booleans(), spacings, shifts, st.sampled_from("<>"), st.sampled_from([(1, 0), (0, 1), (2, 3)]))
def test_affine_is_nibabels(version, quaternion, mirrored, spacing, shift, order, codes):
    a = quaternion[0] / np.linalg.norm(quaternion)
    assume(abs(a) > 1e-3 or abs(a) < 1e-5)  # between, nibabel takes a turn for half a turn; the standard does not
    affine = affine_of(rotation(quaternion, mirrored), spacing, shift)
    expected = header(affine, *codes, order=order, version=version)
    parsed = parse_nifti(expected.binaryblock)
    np.testing.assert_allclose(parsed.affine, best_affine(expected), atol=1e-5)
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


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("unknown", 1), ("meter", 1000), ("micron", 0.001)])
def test_units_become_mm(unit, mm):
    raw = header(np.diag([2, 3, 4, 1]))
    raw.set_xyzt_units(unit, "sec")
    np.testing.assert_allclose(parse_nifti(raw.binaryblock).affine, np.diag([2 * mm, 3 * mm, 4 * mm, 1]))


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
        ("magic", b"", "Analyze"),
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


GONE = np.zeros(4)
NAN = np.full(4, np.nan)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"pixdim": (1, 1, 0, 1, 0, 0, 0, 0), "sform_code": 0}, "spacing 1 x 0 x 1 is not positive"),
        ({"pixdim": (1, 1, 1, -3, 0, 0, 0, 0), "sform_code": 0}, "spacing 1 x 1 x -3 is not positive"),
        ({"pixdim": (1, np.nan, 1, 1, 0, 0, 0, 0), "sform_code": 0}, "spacing nan"),
        ({"pixdim": (1, np.inf, 1, 1, 0, 0, 0, 0), "qform_code": 0, "sform_code": 0}, "spacing inf"),
        ({"pixdim": (1, -1, 1, 1, 0, 0, 0, 0), "srow_x": GONE}, "spacing -1"),
        ({"srow_x": GONE, "qform_code": 0}, "sform is singular"),
        ({"srow_x": (0, 1, 0, 0), "srow_y": (0, 1, 0, 0), "qform_code": 0}, "sform is singular"),
        ({"srow_y": NAN, "quatern_b": np.nan}, "sform is singular"),
        ({"quatern_b": np.nan, "sform_code": 0}, "qform is singular"),
        ({"quatern_b": 2, "sform_code": 0}, "qform is singular"),  # of no unit quaternion
        ({"qoffset_x": np.inf, "sform_code": 0}, "qform is singular"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_without_a_sound_geometry_it_is_refused(changes, cause, order):
    for version in (1, 2):
        with pytest.raises(InputError, match=cause):
            parse_nifti(damaged(changes, order, version))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"dim": (3, 4, 40000, 6, 1, 1, 1, 1)}, "size of 4 x 40000 x 6"),
        ({"srow_z": (0, 0, 1e50, 0), "qform_code": 0}, "sform is singular"),
        ({"pixdim": (1, 1, 1, 1e50, 1, 1, 1, 1), "sform_code": 0}, "not positive"),
        ({"pixdim": (1, 1, 1, 1e-50, 1, 1, 1, 1), "sform_code": 0, "qform_code": 0}, "not positive"),
    ],
)
def test_numbers_of_nifti_2_that_a_mask_cannot_hold_are_refused(changes, cause):
    with pytest.raises(InputError, match=cause):
        parse_nifti(damaged(changes, version=2))


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"srow_x": GONE, "srow_y": GONE, "srow_z": GONE}, "the sform is singular: the qform is used"),
        ({"srow_y": NAN}, "the sform is singular: the qform is used"),
        ({"srow_z": (0, 0, 2.5, np.inf)}, "the sform is singular: the qform is used"),
        ({"quatern_c": np.nan}, "the qform is singular: the sform is used"),
        ({"quatern_d": 3}, "the qform is singular: the sform is used"),
        ({"pixdim": (1, 0.75, -0.8, 2.5, 0, 0, 0, 0)}, "voxel spacing 0.75 x -0.8 x 2.5 is not positive: that of the"),
        ({"pixdim": np.zeros(8)}, "voxel spacing 0 x 0 x 0 is not positive: that of the sform is used"),
        ({"pixdim": (1, 0, 1, 1, 1, 1, 1, 1), "qform_code": 0}, "voxel spacing 0 x 1 x 1 is not positive"),
        ({"sform_code": 6}, "sform_code 6 is not one of the standard's: the qform is used"),
        ({"sform_code": 6, "qform_code": 0}, "sform_code 6 is not one of the standard's: the sform is used"),
        ({"qform_code": 99, "sform_code": -1}, "qform_code 99 is not one of the standard's: the qform is used"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_the_sound_form_is_used_and_the_mask_gets_it_in_all_fields(changes, warning, order):
    for version in (1, 2):
        parsed = parse_nifti(damaged(changes, order, version))
        (said,) = parsed.warnings
        assert said.startswith(warning)
        np.testing.assert_allclose(parsed.affine, TURNED, atol=1e-6)
        mask = nib.Nifti1Header(parsed.mask_header[:348])
        assert mask.endianness == order
        assert (int(mask["sform_code"]), int(mask["qform_code"])) == (1, 1)
        for affine in (mask.get_sform(), mask.get_qform(), mask.get_best_affine()):
            np.testing.assert_allclose(affine, TURNED, atol=1e-6)
        assert parse_nifti(parsed.mask_header).warnings == ()


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"qoffset_x": 12}, "sform and qform disagree on the origin: the sform is used"),
        ({"pixdim": (1, 0.75, 0.8, 5, 1, 1, 1, 1), "qform_code": 0}, "sform and pixdim disagree on the voxel spacing"),
        ({"quatern_d": 0}, "sform and qform disagree on the orientation: the sform is used"),
        ({"bitpix": 0}, "bitpix 0 contradicts the data type int16: the data type is used"),
        ({"bitpix": 8}, "bitpix 8 contradicts the data type int16: the data type is used"),
        ({"scl_slope": 1, "scl_inter": np.nan}, "scl_inter is nan: 0 is used"),
        ({"scl_slope": 1, "scl_inter": np.inf}, "scl_inter is inf: 0 is used"),
        ({"scl_slope": 0, "scl_inter": -1024}, "scl_inter -1024 is not used: scl_slope 0 says"),
        ({"sizeof_hdr": 0}, "sizeof_hdr 0 is wrong"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_what_is_doubtful_or_repaired_is_told(changes, warning, order):
    for version in (1, 2):
        parsed = parse_nifti(damaged(changes, order, version))
        (said,) = parsed.warnings
        assert said.startswith(warning)
        np.testing.assert_allclose(parsed.affine, TURNED, atol=1e-6)
        assert (parsed.shape, parsed.dtype, parsed.slope, parsed.inter) == ((6, 5, 4), np.dtype(order + "i2"), 1, 0)


@pytest.mark.parametrize(
    "changes",
    [{"pixdim": (qfac, 0.75, 0.8, 2.5, 1, 1, 1, 1)} for qfac in (0, 0.5, np.nan)]
    + [{"qform_code": -1}, {"sform_code": -3}, {"sform_code": 5}, {"dim": (3, 4, 5, 6, 0, 0, 0, 0)}]
    + [{"dim": (4, 4, 5, 6, 0, 0, 0, 0)}, {"xyzt_units": 7}, {"xyzt_units": 0}],
)
def test_what_all_readers_take_in_one_way_is_no_matter(changes):
    for version in (1, 2):
        parsed = parse_nifti(damaged(changes, version=version))
        assert parsed.warnings == ()
        assert parsed.shape == (6, 5, 4)
        np.testing.assert_allclose(parsed.affine, TURNED, atol=1e-6)


@pytest.mark.parametrize(
    ("version", "changes", "expected"),
    [
        (1, {}, (352,)),
        (1, {"vox_offset": 1024}, (1024,)),
        *((1, {"vox_offset": odd}, (348, 352)) for odd in (0, 100, 348, 352.5, -352, 1e30, np.inf, np.nan)),
        (1, {"magic": b"ni1"}, (348, 352)),
        (2, {}, (544,)),
        (2, {"vox_offset": 0}, (540, 544)),
    ],
)
def test_where_the_voxels_may_begin(version, changes, expected):
    assert parse_nifti(damaged(changes, version=version)).offsets == expected


@given(quaternions, spacings, shifts, st.sampled_from("<>"), st.sampled_from([(1, 0), (0, 1), (2, 3), (0, 0)]))
def test_the_mask_of_a_nifti_2_is_a_nifti_1_at_its_place(quaternion, spacing, shift, order, codes):
    ct = header(affine_of(rotation(quaternion), spacing, shift), *codes, order=order, version=2)
    ct.set_xyzt_units("meter")
    mask = nib.Nifti1Header(parse_nifti(ct.binaryblock).mask_header[:348])
    np.testing.assert_allclose(mask.get_best_affine(), best_affine(ct), rtol=1e-5, atol=1e-2)
    assert mask.get_data_shape() == ct.get_data_shape()
    assert mask.get_xyzt_units() == ct.get_xyzt_units()
    assert (int(mask["sform_code"]), int(mask["qform_code"])) == codes
    assert (mask.endianness, int(mask["sizeof_hdr"]), mask["magic"].item()) == (order, 348, b"n+1")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [((0, 7), (1, 0)), ((np.nan, 7), (1, 0)), ((np.inf, 7), (1, 0)), ((2, -1024), (2, -1024)), ((-1, 3), (-1, 3))],
)
def test_scaling_follows_the_standard(stored, expected):
    for version in (1, 2):
        parsed = parse_nifti(damaged({"scl_slope": stored[0], "scl_inter": stored[1]}, version=version))
        assert (parsed.slope, parsed.inter) == expected


@given(st.binary(max_size=400))
def test_noise_is_refused(noise):
    with pytest.raises(InputError):
        parse_nifti(noise)


@pytest.mark.parametrize("version", [1, 2])
@given(st.lists(st.tuples(st.integers(0, 539), st.binary(min_size=1, max_size=8)), max_size=4), st.sampled_from("<>"))
def test_a_damaged_header_is_parsed_or_refused(version, damages, order):
    raw = bytearray(damaged({}, order, version))
    for at, noise in damages:
        raw[at : at + len(noise)] = noise
    try:
        parsed = parse_nifti(bytes(raw[: 348 if version == 1 else 540]))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(parsed.affine).all()
        assert abs(np.linalg.det(parsed.affine)) > 0
        assert nib.Nifti1Header(parsed.mask_header[:348]).get_data_shape() == parsed.shape[::-1]
