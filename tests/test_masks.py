"""Only a whole, undamaged mask of labels 0..13 is read; everything else is named in one line."""

import gzip

import nibabel
import numpy as np
import pytest

from evaluation.masks import Mask, MaskError, check_same_grid, read_mask

LABELS = np.random.default_rng(0).integers(0, 14, (4, 5, 6)).astype(np.uint8)  # (x, y, z), as nibabel has it


def save(path, array, affine=None, slope=None):
    image = nibabel.Nifti1Image(array, np.diag([0.75, 1.5, 2.5, 1]) if affine is None else affine)
    image.header.set_slope_inter(slope)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_reads_any_real_type(tmp_path, dtype, suffix):
    mask = read_mask(save(tmp_path / f"a{suffix}", LABELS.astype(dtype)))
    assert mask.labels.dtype == np.uint8 and mask.labels.flags.c_contiguous
    np.testing.assert_array_equal(mask.labels, LABELS.transpose(2, 1, 0))
    assert mask.spacing_mm == (2.5, 1.5, 0.75)


@pytest.mark.parametrize("more", [(1,), (1, 1), (1, 1, 1, 1)])
def test_further_dimensions_of_size_1_are_left_out(tmp_path, more):
    mask = read_mask(save(tmp_path / "a.nii.gz", LABELS.reshape(*LABELS.shape, *more)))
    np.testing.assert_array_equal(mask.labels, LABELS.transpose(2, 1, 0))
    assert mask.labels.flags.c_contiguous and mask.spacing_mm == (2.5, 1.5, 0.75)


def with_bytes(path, at, raw):
    content = bytearray(path.read_bytes())
    content[at : at + len(raw)] = raw
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("code", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (5, 1), (2 | 8, 1), (3 | 16, 0.001)])
def test_units_become_mm(tmp_path, code, mm):
    """Codes 1 and 3 are metres and microns, the upper bits time; ITK takes all else as mm."""
    affine = np.diag([0.75, 1.5, 2.5, 1])
    affine[:3, 3] = 10, -20, 30
    mask = read_mask(with_bytes(save(tmp_path / "a.nii", LABELS, affine), 123, bytes([code])))
    assert mask.spacing_mm == tuple(float(np.float32(length * mm)) for length in (2.5, 1.5, 0.75))
    np.testing.assert_allclose(mask.affine[:3], affine[:3] * mm)
    np.testing.assert_array_equal(mask.affine[3], [0, 0, 0, 1])


@pytest.mark.parametrize(("code", "per_mm"), [(1, 1e-3), (2, 1), (3, 1e3)])
def test_spacing_is_the_headers_float32_in_any_unit(tmp_path, code, per_mm):
    """To the last bit: two surfaces may be apart by exactly a tolerance."""
    for spacing_mm in np.random.default_rng(0).uniform(0.3, 5, (100, 3)).round(4):
        path = save(tmp_path / "a.nii", LABELS[:1, :1, :1], np.diag([*spacing_mm * per_mm, 1]))
        assert read_mask(with_bytes(path, 123, bytes([code]))).spacing_mm == tuple(
            map(float, np.float32(spacing_mm[::-1]))
        )


def test_a_voxel_without_a_size_is_refused(tmp_path):
    path = with_bytes(save(tmp_path / "a.nii", LABELS), 80, np.float32(np.nan).tobytes())
    with pytest.raises(MaskError, match=r"a\.nii: its voxels measure nan x 1\.5 x 2\.5 mm"):
        read_mask(path)


def test_scaled_values(tmp_path):
    path = with_bytes(save(tmp_path / "a.nii", LABELS * 2), 112, np.float32(0.5).tobytes())  # scl_slope
    np.testing.assert_array_equal(read_mask(path).labels, LABELS.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 3, 3), -1000, np.int16), "-1000, .*is this a CT"),
        (np.full((3, 3, 3), 14, np.uint8), "holds values from 14 to 14"),
        (np.full((3, 3, 3), 257, np.int16), "257"),  # would wrap to 1 as uint8
        (np.full((3, 3, 3), 0.5, np.float32), "0.5, a mask holds whole numbers"),
        (np.full((3, 3, 3), np.nan, np.float32), "nan"),
        (np.full((3, 3, 3), np.inf, np.float32), "inf"),
        (np.zeros((3, 3, 3), np.complex64), "complex64"),
        (np.zeros((3, 3, 3, 2), np.uint8), "3 dimensions, this file has 4"),
        (np.zeros((3, 3, 3, 1, 2), np.uint8), "3 dimensions, this file has 5"),
        (np.zeros((3, 3), np.uint8), "3 dimensions, this file has 2"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_refuses_what_is_no_mask(tmp_path, array, message):
    path = save(tmp_path / "a.nii.gz", array)
    with pytest.raises(MaskError, match=message) as caught:
        read_mask(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_refuses_damaged_files(tmp_path):
    whole = save(tmp_path / "a.nii.gz", LABELS).read_bytes()
    checksum_flipped = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for damaged in (
        b"",
        b"no image",
        whole[: len(whole) // 2],
        whole[:-4],
        checksum_flipped,
        gzip.compress(b"no image"),
    ):
        (tmp_path / "a.nii.gz").write_bytes(damaged)
        with pytest.raises(MaskError, match="cannot be read as NIfTI"):
            read_mask(tmp_path / "a.nii.gz")
    with pytest.raises(MaskError, match="no such file"):
        read_mask(tmp_path / "b.nii.gz")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (280, np.float32(np.nan), "its header does not say where its voxels lie"),  # srow_x
        (42, np.int16([30000] * 3), "cannot be read as NIfTI"),  # dim
        (42, np.int16([0, 5, 4]), r"it has no voxels: \(0, 5, 4\)"),
        (108, np.float32(1e30), "cannot be read as NIfTI"),  # vox_offset
        (108, np.float32(np.inf), "cannot be read as NIfTI"),
    ],
)
def test_headers_that_make_no_sense_are_refused(tmp_path, at, value, message):
    path = with_bytes(save(tmp_path / "a.nii", LABELS), at, value.tobytes())
    with pytest.raises(MaskError, match=message) as caught:
        read_mask(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def mask_at(path, shape=(6, 5, 4), spacing=(1, 1, 1), origin=(0, 0, 0), flip=1):
    affine = np.diag([flip * spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = origin
    return Mask(path, np.zeros(shape, np.uint8), tuple(map(float, spacing[::-1])), affine)


def test_grids_agree_up_to_rounding(tmp_path):
    check_same_grid(mask_at("p", spacing=(0.7, 0.7, 2.5)), mask_at("t", spacing=np.float32((0.7, 0.7, 2.5))))


@pytest.mark.parametrize(
    "other",
    [
        {"shape": (6, 5, 5)},
        {"spacing": (1, 1, 1.1)},
        {"origin": (0, 0.2, 0)},
        {"flip": -1},
        {"origin": (np.nan, 0, 0)},
    ],
)
def test_grids_that_differ_are_both_named(other):
    with pytest.raises(MaskError, match=r"^pred\.nii\.gz and truth\.nii\.gz differ in geometry: .* voxels of .* mm"):
        check_same_grid(mask_at("pred.nii.gz", **other), mask_at("truth.nii.gz"))


def test_spacing_of_a_single_slice_counts():
    with pytest.raises(MaskError, match="4x5x1 voxels of 1x1x5 mm, RAS from"):
        check_same_grid(mask_at("p", shape=(1, 5, 4), spacing=(1, 1, 5)), mask_at("t", shape=(1, 5, 4)))
