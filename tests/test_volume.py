"""Reading and writing against nibabel and SimpleITK, on every orientation, and against damage of every kind."""

import gzip
import hashlib
import itertools
import os
import random
import re
import struct
import subprocess
import sys
import time
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nibabel.orientations import inv_ornt_aff
from nibabel.quaternions import quat2mat

import app.stream
import app.volume as module
import app.voxels
from app.errors import InputError
from app.maskfile import write_mask
from app.volume import read_volume
from app.voxels import NO_NUMBER
from tests.hostile import flip_bits, metaimage_bytes, nifti_bytes, nrrd_bytes
from tests.nifti_files import AFFINE, ARRAY, REAL_SCANS, REPOSITORY, VOLUME, labels_of, mask_on, patch_header, save

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def oriented_affine(permutation, signs):
    return AFFINE @ inv_ornt_aff(np.column_stack([permutation, signs]), ARRAY.shape)


def canonical(path):
    """(z, y, x) float64 by nibabel."""
    return nib.as_closest_canonical(nib.load(path)).get_fdata().transpose(2, 1, 0)


def dicom_oriented(path):
    """(z, y, x) by SimpleITK."""
    return sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(path), "RAS"))


# Orientation and geometry


@pytest.mark.parametrize(("permutation", "signs"), ORIENTATIONS)
def test_every_axis_orientation_there_and_back(tmp_path, permutation, signs):
    ct = save(tmp_path / "ct.nii.gz", affine=oriented_affine(permutation, signs))
    volume = read_volume(ct)
    assert volume.hu.dtype == np.int16
    assert volume.hu.flags.c_contiguous
    assert volume.warnings == ()
    assert np.array_equal(volume.hu, canonical(ct))
    assert np.array_equal(volume.hu, dicom_oriented(ct))
    oriented = nib.as_closest_canonical(nib.load(ct))
    assert volume.geometry.shape == oriented.shape[::-1]
    assert volume.geometry.spacing_mm == tuple(map(float, oriented.header.get_zooms()[::-1]))
    assert volume.geometry.voxel_ml == pytest.approx(0.5 * 0.75 * 2.5 / 1000)

    assert np.array_equal(mask_on(volume, tmp_path).affine, nib.load(ct).affine)
    by_itk, ct_by_itk = sitk.ReadImage(tmp_path / "mask.nii.gz"), sitk.ReadImage(ct)
    assert by_itk.GetDirection() == ct_by_itk.GetDirection()
    assert by_itk.GetOrigin() == ct_by_itk.GetOrigin()
    assert by_itk.GetSpacing() == ct_by_itk.GetSpacing()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([(1, 0), (0, 1), (1, 1)]),
    st.sampled_from(["<", ">"]),
)
@example(9, False, (1, 1), "<")  # the nearest axis of two columns is the same one
def test_oblique_scans_come_out_as_itk_and_nibabel_have_them(tmp_path, seed, mirrored, codes, order):
    quaternion = np.random.default_rng(seed).normal(size=4)  # all rotations, equally likely
    rotation = quat2mat(quaternion / np.linalg.norm(quaternion))
    cosines = np.sort(np.abs(rotation).ravel())
    if np.diff(cosines).min() < 1e-4:  # two axes equally near: either answer would be right
        return
    affine = np.eye(4)
    affine[:3, :3] = rotation * [0.5, 0.75, -2.5 if mirrored else 2.5]
    ct = save(tmp_path / "ct.nii", affine=affine, sform=codes[0], qform=codes[1], order=order)
    volume = read_volume(ct)
    assert np.array_equal(volume.hu, canonical(ct))
    assert np.array_equal(volume.hu, dicom_oriented(ct))
    assert np.array_equal(mask_on(volume, tmp_path).affine, nib.load(ct).affine)


def test_a_sheared_direction_is_read_with_a_warning(tmp_path):
    affine = AFFINE.copy()
    affine[1, 2] = 0.4  # a tilted gantry
    ct = save(tmp_path / "ct.nii.gz", affine=affine, qform=0)
    volume = read_volume(ct)
    assert volume.warnings == ("its axes are not at right angles: the nearest ones are used",)
    assert np.array_equal(volume.hu, canonical(ct))
    assert np.array_equal(mask_on(volume, tmp_path).affine, nib.load(ct).affine)


def test_without_orientation_it_is_read_as_itk_reads_it(tmp_path):
    ct = save(tmp_path / "ct.nii")
    patch_header(ct, "<2h", 252, 0, 0)
    volume = read_volume(ct)
    assert "no orientation" in volume.warnings[0]
    assert np.array_equal(volume.hu, dicom_oriented(ct))
    assert not np.array_equal(volume.hu, canonical(ct))  # nibabel takes the other reading


def test_the_mask_keeps_the_geometry_fields_exactly(tmp_path):
    image = nib.Nifti1Image(ARRAY, None, nib.Nifti1Header(endianness=">"))
    image.header.set_qform(AFFINE, 3)
    image.header.set_sform(AFFINE + 1e-5, 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1000))
    image.header["descrip"], image.header["pixdim"][4] = b"a scanner", 1.5
    image.header["cal_max"], image.header["slice_duration"] = 400, 2
    nib.save(image, tmp_path / "ct.nii.gz")
    volume = read_volume(tmp_path / "ct.nii.gz")
    assert np.array_equal(volume.hu, VOLUME)
    before, after = nib.load(tmp_path / "ct.nii.gz").header, mask_on(volume, tmp_path).header
    same = set(before.keys()) - {"datatype", "bitpix", "cal_max", "cal_min"}
    for field in same - {"scl_slope", "scl_inter", "vox_offset"}:
        assert before[field].tobytes() == after[field].tobytes(), field
    assert (float(after["cal_max"]), len(after.extensions)) == (0, 0)


def affine_by_itk(path):
    """(4, 4) RAS as nibabel has it, by SimpleITK."""
    image = sitk.ReadImage(path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


TURNED = oriented_affine((2, 0, 1), (-1, 1, -1))
SROW, PIXDIM, CODES = 280, 80, 252  # bytes before fields of NIfTI-1
ODD = {  # name: (warning, fields (type, offset, values))
    "zero sform": ("sform is singular", ("12f", SROW, np.zeros(12))),
    "negative spacing": ("not positive", ("3f", PIXDIM, [0.5, -0.75, 2.5])),
    "odd codes": ("qform_code 9 .* the sform is used", ("2h", CODES, [9, 1])),
    "vox_offset 0": ("at byte 352", ("f", 108, [0])),
    "vox_offset NaN": ("at byte 352", ("f", 108, [np.nan])),
    "magic of a pair": ("at byte 352", ("4s", 344, [b"ni1\0"])),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ODD)
def test_odd_headers_are_read_and_the_mask_lies_in_the_true_place(tmp_path, kind, order, packed):
    true = save(tmp_path / "true.nii", affine=TURNED, order=order)
    warning, *fields = ODD[kind]
    ct = tmp_path / "ct.nii"
    ct.write_bytes(true.read_bytes())
    for code, at, values in fields:
        patch_header(ct, order + code, at, *values)
    if packed:
        raw, ct = ct.read_bytes(), tmp_path / "ct.nii.gz"
        ct.write_bytes(gzip.compress(raw))
    volume = read_volume(ct)
    assert len(volume.warnings) >= 1
    assert any(re.search(warning, said) for said in volume.warnings)
    assert np.array_equal(volume.hu, canonical(true))
    assert volume.geometry.spacing_mm == pytest.approx((2.5, 0.75, 0.5))
    mask = mask_on(volume, tmp_path)
    np.testing.assert_allclose(mask.affine, TURNED, atol=1e-5)
    np.testing.assert_allclose(affine_by_itk(tmp_path / "mask.nii.gz"), TURNED, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("offset", [0, 348, np.nan])
def test_voxels_right_behind_the_header(tmp_path, suffix, offset):
    plain = save(tmp_path / "x.nii")
    patch_header(plain, "<f", 108, offset)
    raw = plain.read_bytes()
    raw = raw[:348] + raw[352:]
    plain.write_bytes(raw)
    assert np.array_equal(dicom_oriented(plain) if offset == 348 else VOLUME, VOLUME)  # ITK believes this offset
    (tmp_path / f"ct{suffix}").write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    volume = read_volume(tmp_path / f"ct{suffix}")
    assert np.array_equal(volume.hu, VOLUME)
    assert volume.warnings == ("its header does not say where its voxels begin: at byte 348, by its length",)
    for wrong in (raw + b"\0", raw + bytes(100), raw + bytes(1 << 20), raw[:-2]):  # is it padding, or lost?
        (tmp_path / f"ct{suffix}").write_bytes(gzip.compress(wrong) if suffix == ".nii.gz" else wrong)
        with pytest.raises(InputError, match=r"does not say where its voxels begin|truncated"):
            read_volume(tmp_path / f"ct{suffix}")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", "<>")
def test_nifti_2_is_read_and_its_mask_is_nifti_1(tmp_path, suffix, order):
    image = nib.Nifti2Image(ARRAY, TURNED, nib.Nifti2Header(endianness=order))
    image.header.set_data_dtype(ARRAY.dtype.newbyteorder(order))
    nib.save(image, tmp_path / f"ct{suffix}")
    volume = read_volume(tmp_path / f"ct{suffix}")
    assert volume.warnings == ()
    assert np.array_equal(volume.hu, canonical(tmp_path / f"ct{suffix}"))
    assert volume.geometry.spacing_mm == (2.5, 0.75, 0.5)
    mask = mask_on(volume, tmp_path)
    assert isinstance(mask, nib.Nifti1Image) and not isinstance(mask, nib.Nifti2Image)
    assert np.array_equal(mask.affine, TURNED)
    np.testing.assert_allclose(affine_by_itk(tmp_path / "mask.nii.gz"), TURNED, atol=1e-6)


@pytest.mark.parametrize("behind", [(1,), (1, 1), (1, 1, 1, 1), (0,)])
def test_a_mask_has_three_dimensions(tmp_path, behind):
    ct = save(tmp_path / "ct.nii")
    patch_header(ct, "<8h", 40, 3 + len(behind), *ARRAY.shape, *behind, *[1] * (4 - len(behind)))
    volume = read_volume(ct)
    assert np.array_equal(volume.hu, VOLUME)
    mask = mask_on(volume, tmp_path)
    assert mask.header["dim"].tolist() == [3, 5, 6, 7, 1, 1, 1, 1]
    assert sitk.ReadImage(tmp_path / "mask.nii.gz").GetSize() == (5, 6, 7)


@pytest.mark.parametrize("shape", [(33, 17, 1), (1, 1, 1), (3, 5, 2000), (1, 2000, 3)])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_odd_sizes_in_blocks_of_rows_or_slices(tmp_path, monkeypatch, shape, block):
    monkeypatch.setattr(app.voxels, "_BLOCK_BYTES", block)
    array = np.random.default_rng(1).integers(-1000, 1000, shape).astype(np.int16)
    ct = save(tmp_path / "ct.nii.gz", array, oriented_affine((2, 0, 1), (-1, 1, -1)))
    volume = read_volume(ct)
    assert np.array_equal(volume.hu, canonical(ct))
    mask_on(volume, tmp_path, array)


# Values


@pytest.mark.parametrize("scaling", [(1, 0), (0, 5), (0.5, -3.25), (-3, 100), (1e6, 0)])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_all_types_of_numbers_are_rounded_and_saturated(tmp_path, dtype, order, scaling):
    dtype = np.dtype(order + dtype)
    if dtype.kind == "f":
        array = np.array([-1e9, -1000.5, -0.5, 0.49, 1.5, 2.5, 3e4, 1e9] * 3)
    else:
        limits = np.iinfo(dtype)
        array = np.array([limits.min, limits.max, 0, 1, 2, 3, 100, limits.max // 2] * 3, object)
    image = nib.Nifti1Image(array.reshape(2, 3, 4).astype(dtype), AFFINE, nib.Nifti1Header(endianness=order))
    image.header.set_data_dtype(dtype)
    nib.save(image, tmp_path / "ct.nii")
    patch_header(tmp_path / "ct.nii", order + "2f", 112, *scaling)
    expected = np.clip(np.rint(nib.load(tmp_path / "ct.nii").get_fdata()), -32768, 32767).transpose(2, 1, 0)
    assert np.array_equal(read_volume(tmp_path / "ct.nii").hu, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_voxel_that_is_not_a_number_has_a_value_of_its_own(tmp_path, value, dtype):
    array = ARRAY.astype(dtype)
    array[-1, -1, -1] = value
    hu = read_volume(save(tmp_path / "ct.nii.gz", array)).hu
    assert hu[-1, -1, -1] == NO_NUMBER
    assert np.array_equal(hu.flat[:-1], VOLUME.flat[:-1])


def test_the_checksum_is_that_of_the_file(tmp_path):
    for name, raw in {
        "a.nii.gz": gzip.compress(nifti_bytes(VOLUME)) + b"garbage" * 10000,
        "b.nii": nifti_bytes(VOLUME),
        "c.mha": metaimage_bytes(VOLUME, compressed=True) + b"\0" * 3,
    }.items():
        (tmp_path / name).write_bytes(raw)
        assert read_volume(tmp_path / name).sha256 == hashlib.sha256(raw).hexdigest()


# Damage


@pytest.fixture(scope="module")
def packed():
    """One .nii.gz whose stream has a stored, a fixed and a dynamic block: real compression, small."""
    return gzip.compress(nifti_bytes(VOLUME), 9, mtime=0)


def test_a_file_cut_anywhere_is_refused(tmp_path, packed):
    path = tmp_path / "ct.nii.gz"
    for size in range(len(packed)):
        path.write_bytes(packed[:size])
        with pytest.raises(InputError, match=r"ct\.nii\.gz': (truncated|ends|an empty file|\d+ bytes)") as error:
            read_volume(path)
        assert "\n" not in str(error.value)


def test_a_flipped_bit_anywhere_is_refused_or_harmless(tmp_path, packed):
    path, refused = tmp_path / "ct.nii.gz", 0
    for bit in range(8 * len(packed)):
        if bit >= 400 and bit % 11:  # all of the gzip header, then an eleventh
            continue
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            hu = read_volume(path).hu
        except InputError as error:
            assert str(error).startswith(f"'{path}': ") and "\n" not in str(error)
            refused += 1
        else:
            assert np.array_equal(hu, VOLUME)
    assert refused > 0.7 * len(packed)


def test_several_members_are_one_stream(tmp_path):
    plain = nifti_bytes(VOLUME)
    parts = [plain[:100], b"", plain[100:400], plain[400:], b""]
    (tmp_path / "ct.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    volume = read_volume(tmp_path / "ct.nii.gz")
    assert np.array_equal(volume.hu, VOLUME)
    assert volume.warnings == ()


def test_damage_in_the_last_of_several_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(app.stream, "_CHUNK_BYTES", 16)  # the voxels come out before the checksum is seen
    plain, path = nifti_bytes(VOLUME), tmp_path / "ct.nii.gz"
    first, second = gzip.compress(plain[:-20]), gzip.compress(plain[-20:])
    for size in range(len(second)):
        path.write_bytes(first + second[:size])
        with pytest.raises(InputError, match="truncated"):
            read_volume(path)
    for at in range(len(second) - 8, len(second)):  # CRC and length
        damaged = bytearray(second)
        damaged[at] ^= 1
        path.write_bytes(first + damaged)
        with pytest.raises(InputError, match="damaged gzip stream"):
            read_volume(path)


@pytest.mark.parametrize("order", "<>")
def test_a_file_that_is_not_compressed_in_spite_of_its_name(tmp_path, order):
    image = nib.Nifti1Image(ARRAY, AFFINE, nib.Nifti1Header(endianness=order))
    nib.save(image, tmp_path / "ct.nii")
    (tmp_path / "ct.nii").rename(tmp_path / "ct.nii.gz")
    volume = read_volume(tmp_path / "ct.nii.gz")
    assert np.array_equal(volume.hu, VOLUME)
    assert volume.warnings == ("it is not compressed, whatever its name says",)


@pytest.mark.parametrize("tail", [b"\0" * 70000, b"garbage", b"\x1f", b"\x1f\x8b\x08\0"])
def test_garbage_behind_a_whole_stream_is_told(tmp_path, tail):
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(nifti_bytes(VOLUME)) + tail)
    volume = read_volume(tmp_path / "ct.nii.gz")
    assert np.array_equal(volume.hu, VOLUME)
    assert volume.warnings == ("bytes behind the end of the gzip stream are ignored",)


MEGABYTE = 1 << 20


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.mha", "ct.nrrd"])
@pytest.mark.parametrize("tail", [bytes(2), b"x" * 512, bytes(MEGABYTE), bytes(8 * MEGABYTE)], ids=len)
def test_a_tail_of_zeros_or_a_short_one_is_ignored(tmp_path, name, tail):
    maker = {".mha": metaimage_bytes, ".nrrd": nrrd_bytes}.get(name[2:], nifti_bytes)
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack(maker(VOLUME) + tail))
    volume = read_volume(tmp_path / name)
    assert np.array_equal(volume.hu, VOLUME)
    assert volume.warnings == (f"{len(tail)} bytes behind the last voxel are ignored",)


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
@pytest.mark.parametrize(
    ("lost", "tail"),
    [(0, b"x" * 513), (0, bytes(512) + b"x"), (0, bytes(MEGABYTE) + b"x"), (0, b"x" + bytes(MEGABYTE)),
     (0, bytes(8 * MEGABYTE + 1)), (100, bytes(5000))],
    ids=["letters", "letter", "late letter", "early letter", "8 MB", "in place of voxels"],
)  # fmt: skip
def test_a_longer_tail_is_refused(tmp_path, name, lost, tail):
    pack = gzip.compress if name.endswith(".gz") else bytes
    whole = nifti_bytes(VOLUME)
    (tmp_path / name).write_bytes(pack(whole[: len(whole) - lost] + tail))
    with pytest.raises(InputError, match="its header declares"):
        read_volume(tmp_path / name)


def test_zeros_in_place_of_voxels_are_refused_where_zero_is_air(tmp_path):
    plain = save(tmp_path / "ct.nii", np.abs(ARRAY) + 1)
    patch_header(plain, "<2f", 112, 1, -1024)
    plain.write_bytes(plain.read_bytes()[:-100] + bytes(5000))
    with pytest.raises(InputError, match="more voxels than its header declares"):
        read_volume(plain)


@pytest.mark.parametrize("offset", [352, 0])
def test_a_gigabyte_of_zeros_is_given_up_early(tmp_path, offset):
    plain = bytearray(nifti_bytes(VOLUME))
    struct.pack_into("<f", plain, 108, offset)
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(plain) + gzip.compress(bytes(MEGABYTE)) * 2000)
    start_s = time.process_time()
    with pytest.raises(InputError, match=r"it holds more voxels than its header declares|does not tell"):
        read_volume(tmp_path / "ct.nii.gz")
    assert time.process_time() - start_s < 2


def lying_nifti(shape, dtype=np.int16):
    """A header that declares what the 348 bytes behind it do not have."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header["pixdim"][1:4], header["vox_offset"], header["magic"] = 1, 352, b"n+1"
    return header.binaryblock + bytes(4) + bytes(348)


BAD = {  # name: (file name, bytes, what the message says)
    "empty": ("x.nii.gz", b"", "an empty file"),
    "text": ("x.nii.gz", b"<html>404 not found</html>", r"damaged gzip stream \(incorrect header check\)"),
    "text plain": ("x.nii", b"<html>404 not found</html>", r"not a NIfTI file \(it starts with 3c 68 74 6d\)"),
    "text in gzip": ("x.nii.gz", gzip.compress(b"hello, world" * 99), "not a NIfTI file"),
    "nothing in gzip": ("x.nii.gz", gzip.compress(b""), "0 bytes are too few"),
    "not compressed": ("x.nii.gz", b"hello, world" * 99, "damaged gzip stream"),
    "compressed": ("x.nii", gzip.compress(nifti_bytes(VOLUME)), "starts with 1f 8b"),
    "only a header": ("x.nii", nifti_bytes(VOLUME)[:352], "but 0 bytes follow it: truncated?"),
    "a byte short": ("x.nii", nifti_bytes(VOLUME)[:-1], "truncated?"),
    "half a header": ("x.nii", nifti_bytes(VOLUME)[:100], "ends after 100 bytes"),
    "voxels missing": ("x.nii.gz", gzip.compress(nifti_bytes(VOLUME)[:-1]), "ends before its last voxel"),
    "huge": ("x.nii.gz", gzip.compress(lying_nifti(shape=(30000,) * 3)), "declares 30000 x 30000 x 30000 voxels"),
    "huge plain": ("x.nii", lying_nifti(shape=(30000,) * 3), "but 348 bytes follow it"),
    "huge floats": (
        "x.nii.gz",
        gzip.compress(lying_nifti(shape=(32767,) * 3, dtype=np.float64)),
        "can hold compressed",
    ),
    "no voxels, nor where": ("x.nii", nifti_bytes(VOLUME)[:344] + b"ni1\0", "but 0 bytes follow it: truncated?"),
    "pair": ("x.hdr", nifti_bytes(VOLUME), "two files: convert it"),
    "dicom": ("x.dcm", b"x", r"unknown kind of file: \.nii\.gz, \.nii, \.mha, \.nrrd and DICOM are read"),
    "no suffix": ("x", b"x", "unknown kind of file"),
    "mha elsewhere": ("x.mha", metaimage_bytes(VOLUME, ElementDataFile="/etc/passwd"), "lie in another file"),
    "mha short": ("x.mha", metaimage_bytes(VOLUME)[:-1], "truncated?"),
    "mha long": ("x.mha", metaimage_bytes(VOLUME) + b"x" * 600, "holds more voxels"),
    "mha zlib short": ("x.mha", metaimage_bytes(VOLUME, True)[:-1], "truncated: its zlib stream has no end"),
    "mha huge": ("x.mha", metaimage_bytes(VOLUME, True, DimSize="30000 30000 30000"), "can hold compressed"),
    "mha vast": ("x.mha", metaimage_bytes(VOLUME, DimSize="1e300 5 5"), "size of 1e300"),
    "mha nan": ("x.mha", metaimage_bytes(VOLUME, DimSize="nan 5 5"), "size of nan"),
    "mha words": ("x.mha", metaimage_bytes(VOLUME, DimSize="many"), "DimSize is not made of numbers"),
    "mha 4-D": ("x.mha", metaimage_bytes(VOLUME, DimSize="5 6 7 2", NDims="4"), r"4-D image \(5 6 7 2\)"),
    "mha many-D": ("x.mha", metaimage_bytes(VOLUME, DimSize="5 6 7" + " 1" * 20000, NDims="20003"), "20003-D image"),
    "mha 2-D": ("x.mha", metaimage_bytes(VOLUME, DimSize="5 6", NDims="2"), "2-D image"),
    "mha channels": ("x.mha", metaimage_bytes(VOLUME, ElementNumberOfChannels="3"), "ElementNumberOfChannels = 3"),
    "mha text": ("x.mha", metaimage_bytes(VOLUME, BinaryData="False"), "written as text"),
    "mha type": ("x.mha", metaimage_bytes(VOLUME, ElementType="MET_STRING"), "type 'MET_STRING'"),
    "mha spacing": ("x.mha", metaimage_bytes(VOLUME, ElementSpacing="1 0 1"), "spacing 1 x 0 x 1"),
    "mha matrix": ("x.mha", metaimage_bytes(VOLUME, TransformMatrix="1 0 0 1 0 0 0 0 1"), "singular"),
    "mha matrix short": ("x.mha", metaimage_bytes(VOLUME, TransformMatrix="1 0 0 1"), "has 4 numbers, not 9"),
    "nrrd elsewhere": ("x.nrrd", nrrd_bytes(VOLUME, data_file="../secret.raw"), "lie in another file"),
    "nrrd elsewhere, one word": ("x.nrrd", nrrd_bytes(VOLUME, datafile="../secret.raw"), "lie in another file"),
    "nrrd not": ("x.nrrd", b"hello", "not a NRRD"),
    "nrrd endless": ("x.nrrd", b"NRRD0004\ntype: short\n", "no end"),
    "nrrd encoding": ("x.nrrd", nrrd_bytes(VOLUME, encoding="hex"), "encoding 'hex'"),
    "nrrd axis mins": ("x.nrrd", nrrd_bytes(VOLUME, axis_mins="-100 -120 30"), "axis mins is not supported"),
    "nrrd skip": ("x.nrrd", nrrd_bytes(VOLUME, byte_skip="-1"), "byte skip"),
    "nrrd type": ("x.nrrd", nrrd_bytes(VOLUME, type="block"), "type 'block'"),
    "nrrd 4-D": ("x.nrrd", nrrd_bytes(VOLUME, dimension="4", sizes="3 5 6 7"), "4-D image"),
    "nrrd 4-D, an axis not in space": (
        "x.nrrd",
        nrrd_bytes(VOLUME, dimension="4", sizes="3 5 6 7", space_directions="none (1,0,0) (0,1,0) (0,0,1)"),
        "4-D image",
    ),
    "nrrd nowhere": ("x.nrrd", nrrd_bytes(VOLUME, space_directions="none none none"), "not one volume"),
    "nrrd contradiction": ("x.nrrd", nrrd_bytes(VOLUME, dimension="2"), "contradict"),
    "nrrd space": ("x.nrrd", nrrd_bytes(VOLUME, space="scanner-xyz"), "space 'scanner-xyz'"),
    "nrrd directions": (
        "x.nrrd",
        nrrd_bytes(VOLUME, **{"space directions": "(0,0,0) (0,1,0) (0,0,1)"}),
        "not positive",
    ),
    "nrrd endian": ("x.nrrd", nrrd_bytes(VOLUME, endian=""), "byte order"),
    "nrrd short": ("x.nrrd", nrrd_bytes(VOLUME)[:-2], "truncated?"),
    "nrrd gzip short": ("x.nrrd", nrrd_bytes(VOLUME, True)[:-2], "truncated: its gzip stream has no end"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, kind):
    name, raw, cause = BAD[kind]
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(InputError, match=cause) as error:
        read_volume(path)
    assert str(error.value).startswith(f"'{path}': ")
    assert "\n" not in str(error.value)


def bad_places(folder):
    (folder / "folder.nii.gz").mkdir()
    (folder / "dangling.nii.gz").symlink_to(folder / "nothing")
    (folder / "loop.nii.gz").symlink_to(folder / "loop.nii.gz")
    os.mkfifo(folder / "pipe.nii.gz")
    return {
        "folder.nii.gz": "a folder, not a file",
        "dangling.nii.gz": "a link to a file that is not there",
        "loop.nii.gz": "Too many levels of symbolic links",
        "pipe.nii.gz": "not a regular file",
        "missing.nii.gz": "no such file",
        "missing": "no such file",
        "x" * 300 + ".nii.gz": "File name too long",
        "a\0b.nii.gz": "null",
        "new\nline \udcff.nii.gz": "no such file",
    }


def test_what_is_no_file_is_refused_in_one_line(tmp_path):
    for name, cause in bad_places(tmp_path).items():
        with pytest.raises(InputError, match=cause) as error:
            read_volume(tmp_path / name)
        assert repr(str(tmp_path / name)) in str(error.value)
        assert "\n" not in str(error.value)
        str(error.value).encode()  # can be printed


def test_more_voxels_than_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_memory_bytes", lambda: 2 * ARRAY.size - 1)
    with pytest.raises(InputError, match="5 x 6 x 7 voxels: more than the memory of this machine"):
        read_volume(save(tmp_path / "ct.nii.gz"))
    monkeypatch.setattr(module, "_memory_bytes", lambda: 2 * ARRAY.size)
    read_volume(save(tmp_path / "ct.nii.gz"))


@pytest.mark.parametrize(("name", "text"), [("memory.max", "1000\n"), ("memory.limit_in_bytes", "1000\n")])
def test_memory_is_the_containers(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    whole = module._memory_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    assert module._memory_bytes() == whole > 1 << 28
    (tmp_path / name).write_text(text)
    assert module._memory_bytes() == 1000


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "ct.nii")
    inner = module.fill

    def fill_and_touch(*arguments):
        os.utime(path, ns=(1, 1))
        return inner(*arguments)

    monkeypatch.setattr(module, "fill", fill_and_touch)
    with pytest.raises(InputError, match="changed while it was read"):
        read_volume(path)


# MetaImage and NRRD


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("permutation", "signs"), ORIENTATIONS[::5])
def test_itk_formats_in_any_orientation(tmp_path, suffix, compressed, permutation, signs):
    save(tmp_path / "ct.nii.gz", affine=oriented_affine(permutation, signs))
    image = sitk.ReadImage(tmp_path / "ct.nii.gz")
    ct = tmp_path / f"ct{suffix}"
    sitk.WriteImage(image, ct, compressed)
    volume = read_volume(ct)
    assert np.array_equal(volume.hu, dicom_oriented(ct))
    assert volume.warnings == ()
    write_mask(labels_of(volume.hu), volume.geometry, tmp_path / "mask.nii.gz")
    mask = sitk.ReadImage(tmp_path / "mask.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(mask), labels_of(sitk.GetArrayFromImage(image)))
    for attribute in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, attribute)(), getattr(image, attribute)(), atol=1e-6)
    header = nib.load(tmp_path / "mask.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize(
    "kind", [f"{kind}{bits}" for kind in ("UInt", "Int") for bits in (8, 16, 32, 64)] + ["Float32", "Float64"]
)
def test_itk_formats_of_any_type_and_byte_order(tmp_path, suffix, kind):
    array = np.array([0, 1, 2, 100, 120, 127]).reshape(1, 2, 3)
    image = sitk.Cast(sitk.GetImageFromArray(array), getattr(sitk, f"sitk{kind}"))
    image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(image, tmp_path / f"ct{suffix}")
    assert np.array_equal(read_volume(tmp_path / f"ct{suffix}").hu, array)
    big, path = VOLUME.astype(">i2"), tmp_path / f"big{suffix}"
    made = {
        ".mha": (
            metaimage_bytes,
            [{"BinaryDataByteOrderMSB": true, "BinaryData": true} for true in ("True", "T", "1")],
        ),
        ".nrrd": (nrrd_bytes, [{"endian": "big"}]),
    }
    make, headers = made[suffix]
    for fields in headers:
        path.write_bytes(make(big, **fields))
        assert np.array_equal(read_volume(path).hu, VOLUME)


def test_remarks_in_a_nrrd_header_are_none_of_its_fields(tmp_path):
    raw = nrrd_bytes(VOLUME).replace(b"encoding:", b"type:=CT\nspace:=body\nencoding:")
    (tmp_path / "ct.nrrd").write_bytes(raw)
    assert np.array_equal(read_volume(tmp_path / "ct.nrrd").hu, VOLUME)


@pytest.mark.parametrize("space", ["left-posterior-superior", "LPS", "RAS", "left-anterior-superior"])
def test_nrrd_spaces(tmp_path, space):
    (tmp_path / "ct.nrrd").write_bytes(nrrd_bytes(VOLUME, space=space))
    assert np.array_equal(read_volume(tmp_path / "ct.nrrd").hu, dicom_oriented(tmp_path / "ct.nrrd"))


ONE_VOLUME = {
    "mha": metaimage_bytes(
        VOLUME, NDims="4", DimSize="5 6 7 1", ElementSpacing="0.5 0.75 2 1", Offset="1 2 3 0",
        TransformMatrix="-1 0 0 0 0 -1 0 0 0 0 1 0 0 0 0 1",
    ),
    "nrrd": nrrd_bytes(
        VOLUME, dimension="4", sizes="5 6 7 1", kinds="domain domain domain list", space_origin="(-1,-2,3)",
        space_directions="(0.5,0,0) (0,0.75,0) (0,0,2) none",
    ),
    "first.nrrd": nrrd_bytes(
        VOLUME, dimension="4", sizes="1 5 6 7", kinds="vector domain domain domain", space_origin="(-1,-2,3)",
        space_directions="none (0.5,0,0) (0,0.75,0) (0,0,2)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_VOLUME)
def test_four_dimensions_with_one_volume(tmp_path, kind):
    ct = tmp_path / f"ct.{kind}"
    ct.write_bytes(ONE_VOLUME[kind])
    by_itk = sitk.ReadImage(ct)
    assert by_itk.GetSpacing()[:3] == (0.5, 0.75, 2) and by_itk.GetOrigin()[:3] == (1, 2, 3)
    assert np.array_equal(sitk.GetArrayFromImage(by_itk).reshape(VOLUME.shape), VOLUME)
    volume = read_volume(ct)
    assert np.array_equal(volume.hu, VOLUME)
    mask_on(volume, tmp_path)
    true = np.array([[0.5, 0, 0, -1], [0, 0.75, 0, -2], [0, 0, 2, 3], [0, 0, 0, 1]])
    np.testing.assert_allclose(affine_by_itk(tmp_path / "mask.nii.gz"), true, atol=1e-6)


@pytest.mark.parametrize("name", ["ct.mha", "ct.nrrd"])
@pytest.mark.parametrize("negative", [False, True])
def test_a_nrrd_without_a_space_and_a_negative_spacing_are_taken_as_itk_takes_them(tmp_path, name, negative):
    spacing = "0.5 -0.75 2" if negative else "0.5 0.75 2"
    raw = metaimage_bytes(VOLUME, ElementSpacing=spacing, Offset="1 2 3")
    if name == "ct.nrrd":
        raw = nrrd_bytes(VOLUME, spacings=spacing)
        for line in (b"space: ", b"space directions", b"space origin"):
            raw = re.sub(line + rb"[^\n]*\n", b"", raw, count=1)
    (tmp_path / name).write_bytes(raw)
    volume = read_volume(tmp_path / name)
    warning = "voxel spacing 0.5 x -0.75 x 2 is negative: the axis runs the other way, as ITK takes it"
    assert volume.warnings == (warning,) * negative
    assert np.array_equal(volume.hu, dicom_oriented(tmp_path / name))
    assert volume.geometry.spacing_mm == (2, 0.75, 0.5)
    write_mask(labels_of(volume.hu), volume.geometry, tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(affine_by_itk(tmp_path / "mask.nii.gz"), affine_by_itk(tmp_path / name), atol=1e-6)


@pytest.mark.parametrize("name", ["ct.mha", "ct.nrrd"])
def test_a_damaged_compressed_body_is_refused(tmp_path, name):
    whole = {"ct.mha": metaimage_bytes, "ct.nrrd": nrrd_bytes}[name](VOLUME, compressed=True)
    body = len(whole) - len(zlib.compress(VOLUME.tobytes())) + 20
    rng = random.Random(0)
    for _ in range(100):
        (tmp_path / name).write_bytes(whole[:body] + flip_bits(rng, whole[body:], 1))
        with pytest.raises(InputError):
            read_volume(tmp_path / name)


# Cost


def test_reading_needs_the_volume_and_little_more(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (256, 256, 400)).astype(np.uint8)
    save(tmp_path / "ct.nii", array)
    patch_header(tmp_path / "ct.nii", "<2f", 112, 4, -1024)
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress((tmp_path / "ct.nii").read_bytes(), 1))
    code = (
        "import resource, sys; from app.volume import read_volume\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(); volume = read_volume(sys.argv[1]); print(peak() - before, volume.hu.nbytes)\n"
        "print(*{'SimpleITK', 'nibabel', 'scipy', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "ct.nii.gz"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    figures, imports = result.stdout.split("\n", 1)
    used, volume = map(int, figures.split())
    assert volume == 2 * array.size
    assert used < volume + 20 * 2**20  # a float copy of the volume would take 100 to 200 MiB more
    assert imports == "\n"  # the slow ones are not needed to read


# Real scans


@pytest.mark.skipif(not REAL_SCANS, reason="no real scans: set FLARE22_CT_DIR")
@pytest.mark.parametrize("path", REAL_SCANS[:1], ids=lambda path: path.name)
def test_real_scans_there_and_back(tmp_path, path):
    volume = read_volume(path)
    reference = nib.load(path)
    stored = np.rint(np.asarray(reference.dataobj)).astype(np.int16)
    to_ras = nib.orientations.io_orientation(reference.affine)
    assert np.array_equal(volume.hu, nib.orientations.apply_orientation(stored, to_ras).T)
    write_mask(labels_of(volume.hu), volume.geometry, tmp_path / "m.nii.gz")
    mask = nib.load(tmp_path / "m.nii.gz")
    assert np.array_equal(mask.dataobj, labels_of(stored))
    for field in ("dim", "pixdim", "qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(mask.header[field], reference.header[field])
