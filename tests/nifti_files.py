"""NIfTI files for the tests: small ones made here, and the real scans where there are any."""

import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np

from app.maskfile import write_mask

REPOSITORY = Path(__file__).resolve().parents[1]
CT_DIR = Path(os.environ.get("FLARE22_CT_DIR", REPOSITORY.parent / "shared" / "ct"))
REAL_SCANS = sorted(CT_DIR.glob("*labelled/images/*.nii.gz"))

ARRAY = np.random.default_rng(0).integers(-1000, 1500, (5, 6, 7)).astype(np.int16)  # (i, j, k)
VOLUME = ARRAY.transpose(2, 1, 0)  # (z, y, x) where the axes run right, forward and up
AFFINE = np.array([[0.5, 0, 0, -100], [0, 0.75, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])


def save(path, array=ARRAY, affine=AFFINE, order="<", sform=1, qform=1):
    image = nib.Nifti1Image(array, affine, nib.Nifti1Header(endianness=order))
    image.header.set_data_dtype(array.dtype)
    image.header.set_qform(affine, qform)
    image.header.set_sform(affine, sform)
    nib.save(image, path)
    return path


def labels_of(hu):
    return (hu % 14).astype(np.uint8)


def mask_on(volume, folder, array=ARRAY) -> nib.Nifti1Image:
    """The volume's mask, written and read back; its voxels lie on those of the CT's file."""
    write_mask(labels_of(volume.hu), volume.geometry, folder / "mask.nii.gz")
    mask = nib.load(folder / "mask.nii.gz")
    assert np.array_equal(mask.dataobj, labels_of(array))
    return mask


def patch_header(path, code, at, *values):
    """Overwrite fields of a plain .nii file."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(code, raw, at, *values)
    path.write_bytes(bytes(raw))
