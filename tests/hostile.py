"""A generator of damaged and lying image files, small ones, for tests and benchmarks: `hostile_files(count, seed)`."""

import gzip
import io
import random
import struct
import zlib
from collections.abc import Iterator

import nibabel as nib
import numpy as np


def hostile_files(count: int, seed: int) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Yield `count` triples: a file name, its bytes, and the one volume that may be read from it.

    A reader must raise an error that names the file, or return the volume: int16 HU (z, y, x), axes to
    right, forward and up. Where the damage can hit what no checksum guards (plain .nii, the text headers,
    raw voxels) another volume cannot be told from the true one, and None stands in its place.
    """
    rng = random.Random(seed)
    volume = np.random.default_rng(seed).integers(-1000, 1000, (5, 6, 7), np.int16)
    makers = (_damaged_gzip, _rewrapped_gzip, _lying_nifti, _damaged_plain, _damaged_text)
    for _ in range(count):
        name, raw, sure = rng.choice(makers)(rng, volume)
        yield name, raw, volume if sure else None


def nifti_bytes(volume: np.ndarray) -> bytes:
    """A plain .nii file of a (z, y, x) volume whose axes run right, forward and up."""
    stream = io.BytesIO()
    image = nib.Nifti1Image(volume.transpose(2, 1, 0), np.diag([0.5, 0.75, 2, 1]))
    image.to_file_map({"image": nib.FileHolder(fileobj=stream)})
    return stream.getvalue()


def metaimage_bytes(volume: np.ndarray, compressed: bool = False, **changes: str) -> bytes:
    """A .mha file; `changes` replaces fields of its header."""
    body = volume.tobytes()
    body = zlib.compress(body) if compressed else body
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed),
        "TransformMatrix": "-1 0 0 0 -1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "0.5 0.75 2",
        "DimSize": " ".join(map(str, reversed(volume.shape))),
        "ElementType": "MET_SHORT",
    }
    fields |= changes
    data_file = fields.pop("ElementDataFile", "LOCAL")
    lines = [f"{name} = {value}\n" for name, value in fields.items()] + [f"ElementDataFile = {data_file}\n"]
    return "".join(lines).encode() + body


def nrrd_bytes(volume: np.ndarray, compressed: bool = False, **changes: str) -> bytes:
    """A .nrrd file; `changes` replaces fields of its header, "_" for a space."""
    body = volume.tobytes()
    body = gzip.compress(body) if compressed else body
    fields = {
        "type": "short",
        "dimension": "3",
        "space": "right-anterior-superior",
        "sizes": " ".join(map(str, reversed(volume.shape))),
        "space directions": "(0.5,0,0) (0,0.75,0) (0,0,2)",
        "endian": "little",
        "encoding": "gzip" if compressed else "raw",
        "space origin": "(0,0,0)",
    }
    fields |= {name.replace("_", " "): value for name, value in changes.items()}
    return ("NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n").encode() + body


def flip_bits(rng: random.Random, raw: bytes, count: int) -> bytes:
    damaged = bytearray(raw)
    for _ in range(count):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _cut_or_flip(rng, raw):
    if rng.random() < 0.4:
        return raw[: rng.randrange(len(raw))]
    return flip_bits(rng, raw, rng.choice((1, 1, 2, 10)))


def _damaged_gzip(rng, volume):
    return "case.nii.gz", _cut_or_flip(rng, gzip.compress(nifti_bytes(volume), rng.choice((0, 1, 9)))), True


def _rewrapped_gzip(rng, volume):
    """Several members, empty ones, garbage and zeros behind them, a member lost."""
    plain = nifti_bytes(volume)
    cuts = sorted(rng.randrange(len(plain)) for _ in range(rng.randrange(4)))
    members = [gzip.compress(plain[a:b]) for a, b in zip([0, *cuts], [*cuts, len(plain)], strict=True)]
    if len(members) > 1 and rng.random() < 0.3:
        members.pop()
    tail = rng.choice(
        (b"", b"\0" * 700, b"\x1f\x8b", rng.randbytes(50), gzip.compress(b""), gzip.compress(bytes(5000)))
    )
    return "case.nii.gz", b"".join(members) + tail, True


def _lying_nifti(rng, volume):
    """Sizes and offsets that the file does not have, in a gzip whose checksum is right."""
    raw = bytearray(nifti_bytes(volume))
    code, at, values = rng.choice(
        (
            ("<h", 40, (0, 2, 4, 7, 8, -1, 32767)),
            ("<h", 42 + 2 * rng.randrange(3), (-5, 0, 100, 30000, 32767)),
            ("<f", 108, (0, 348, 353, 2**20, 2**30, 1e38, float("nan"), -352)),
            ("<h", 70, (0, 1, 8, 16, 32, 64, 128, 2304, 1024, -4)),
            ("<i", 0, (0, 540, 349)),
        )
    )
    struct.pack_into(code, raw, at, rng.choice(values))
    return ("case.nii.gz", gzip.compress(bytes(raw)), True) if rng.random() < 0.5 else ("case.nii", bytes(raw), True)


def _damaged_plain(rng, volume):
    return "case.nii", _cut_or_flip(rng, nifti_bytes(volume)), False


def _damaged_text(rng, volume):
    name, maker = rng.choice((("case.mha", metaimage_bytes), ("case.nrrd", nrrd_bytes)))
    return name, _cut_or_flip(rng, maker(volume, compressed=rng.random() < 0.5)), False
