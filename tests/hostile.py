"""Generators of damaged and lying image files, `hostile_files(count, seed)`, and of file names, `hostile_names`."""

import functools
import gzip
import io
import os
import random
import struct
import zlib
from collections.abc import Iterator

import nibabel as nib
import numpy as np

from benchmarks.scan import EXAMPLE


def hostile_files(count: int, seed: int) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Yield `count` triples: a file name, its bytes, and the one volume that may be read from it.

    A reader must raise an error that names the file, or return the volume: int16 HU (z, y, x), axes to
    right, forward and up. Where the damage can hit what no checksum guards (plain .nii, the text headers,
    raw voxels) another volume cannot be told from the true one, and None stands in its place.
    """
    rng = random.Random(seed)
    volume = np.random.default_rng(seed).integers(-1000, 1000, (5, 6, 7), np.int16)
    makers = (_damaged_gzip, _rewrapped_gzip, _lying_nifti, _damaged_plain, _damaged_text, _lying_text, _real_header)
    for _ in range(count):
        if rng.random() < 0.02:  # each takes as long as a hundred of the others
            yield _bomb(rng)
        else:
            name, raw, sure = rng.choice(makers)(rng, volume)
            yield name, raw, volume if sure else None


def hostile_names(count: int, seed: int) -> Iterator[str]:
    """Yield `count` different file names of CTs, each of a case of its own, that a careless program would trip over."""
    rng = random.Random(seed)
    pieces = ("..", "\n", " ", "$(touch pwned)", "`touch pwned`", ";touch pwned;", "|touch pwned", "'", '"', "\\", "\t")
    pieces += ("-", "--outputs", "%s", "{0}", "*", "?", "~", "\udcff", "\x1b[2J", "\u202e", "é", "x" * 60, ".nii.gz")
    for number in range(count):
        stem = "".join(rng.choices(pieces, k=rng.randint(1, 5))) + str(number)
        suffix = rng.choice(("_0000.nii.gz", ".nii", ".mha", ".nrrd", ".NII.GZ"))
        while len(os.fsencode(f"{stem}_0000.nii.gz")) > 255:  # of a name in any common file system
            stem = stem[1:]
        yield (stem if stem[0] != "." else f"-{stem[1:]}") + suffix  # in a folder, hidden files are passed over


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
            ("<3h", 42, ((30000, 30000, 30000), (2000, 2000, 2000), (500, 500, 500), (32767, 1, 32767))),
            ("<f", 108, (0, 348, 353, 2**20, 2**30, 1e38, float("nan"), -352)),
            ("<h", 70, (0, 1, 8, 16, 32, 64, 128, 2304, 1024, -4)),
            ("<i", 0, (0, 540, 349)),
        )
    )
    struct.pack_into(code, raw, at, *np.atleast_1d(rng.choice(values)))
    return ("case.nii.gz", gzip.compress(bytes(raw)), True) if rng.random() < 0.5 else ("case.nii", bytes(raw), True)


def _damaged_plain(rng, volume):
    return "case.nii", _cut_or_flip(rng, nifti_bytes(volume)), False


def _damaged_text(rng, volume):
    name, maker = rng.choice((("case.mha", metaimage_bytes), ("case.nrrd", nrrd_bytes)))
    return name, _cut_or_flip(rng, maker(volume, compressed=rng.random() < 0.5)), False


_VALUES = ("", "0", "-1", "1e300", "nan", "inf", "many", "3", "7 5", "7 6 5 1", "6 7 5", "700 600 500", "30000 " * 3)
_FIELDS = {
    "case.mha": {
        **dict.fromkeys(("DimSize", "NDims", "HeaderSize", "CompressedDataSize", "ElementSpacing", "Offset"), _VALUES),
        "ElementType": ("MET_UCHAR", "MET_DOUBLE", "MET_LONG_LONG", "MET_STRING", ""),
        "ElementNumberOfChannels": ("0", "3", "-1"),
        "TransformMatrix": ("0 0 0 0 0 0 0 0 0", "1 0 0 1 0 0 0 0 1", "nan 0 0 0 1 0 0 0 1", "0 1 0 1 0 0 0 0 1"),
        "CompressedData": ("True", "False", "Perhaps"),
        "BinaryData": ("False",),
        "ElementDataFile": ("/etc/passwd", "../../etc/passwd", "LIST", "case%d.raw 0 9 1", "", "/dev/zero"),
    },
    "case.nrrd": {
        **dict.fromkeys(("sizes", "dimension", "byte_skip", "line_skip", "spacings"), _VALUES),
        "type": ("uchar", "double", "int64", "block", ""),
        "encoding": ("raw", "gzip", "bzip2", "hex", "text", ""),
        "endian": ("big", "", "middle"),
        "space": ("left-posterior-superior", "scanner-xyz", ""),
        "space_directions": ("(0,0,0) (0,1,0) (0,0,1)", "none none none", "(0,1,0) (1,0,0) (0,0,1)", "(nan,0,0)"),
        "data_file": ("/etc/passwd", "../secret.raw", "LIST", "/dev/zero"),
    },
}


def _lying_text(rng, volume):
    """A text header that lies in one field; also as the header of a detached pair, which must never be followed."""
    name, maker = rng.choice((("case.mha", metaimage_bytes), ("case.nrrd", nrrd_bytes)))
    field = rng.choice(list(_FIELDS[name]))
    raw = maker(volume, rng.random() < 0.5, **{field: rng.choice(_FIELDS[name][field])})
    if field in ("ElementDataFile", "data_file") and rng.random() < 0.5:
        name = {"case.mha": "case.mhd", "case.nrrd": "case.nhdr"}[name]
    return name, raw, False


@functools.cache
def _example_header() -> bytes:
    with gzip.open(EXAMPLE) as file:
        return file.read(352)


def _real_header(rng, volume):
    """A scanner's header over the small volume, bytes of it overwritten, in a gzip whose checksum is right."""
    header = bytearray(_example_header())
    struct.pack_into("<3h", header, 42, *reversed(volume.shape))
    for _ in range(rng.choice((1, 2, 5, 50))):
        header[rng.randrange(len(header))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return "case.nii.gz", gzip.compress(bytes(header) + volume.tobytes(), 1), False


@functools.cache
def _packed_zeros(size: int) -> bytes:
    """A gzip member, a thousandth of the size."""
    return gzip.compress(bytes(size), 9)


def _bomb(rng):
    """Little on the disk, much in memory: all that was declared, more of it, less of it, or a long way to it."""
    shape, excess = (64, 256, 256), 1 << 24
    size = 2 * shape[0] * shape[1] * shape[2]
    zeros = np.broadcast_to(np.int16(0), shape)
    kind = rng.choice(("whole", "more", "less", "far", "mha", "nrrd"))
    if kind in ("mha", "nrrd"):  # their voxels alone are compressed
        one = np.zeros((1, 1, 1), np.int16)
        if kind == "mha":
            header = metaimage_bytes(one, True, DimSize="256 256 64").removesuffix(zlib.compress(one.tobytes()))
            return "case.mha", header + zlib.compress(bytes(size), 9), zeros
        header = nrrd_bytes(one, True, sizes="256 256 64").partition(b"\n\n")[0] + b"\n\n"
        return "case.nrrd", header + _packed_zeros(size + excess), zeros
    header = nib.Nifti1Header()
    header.set_data_shape(shape[::-1])
    header.set_data_dtype(np.int16)
    header["pixdim"][1:4], header["vox_offset"], header["magic"] = 1, 352, b"n+1"
    header.set_sform(np.eye(4), 1)
    if kind == "far":
        header["vox_offset"] = 352 + excess
    body = {"whole": size, "more": size + excess, "less": size - excess // 2, "far": size + excess}[kind]
    return "case.nii.gz", gzip.compress(header.binaryblock + bytes(4)) + _packed_zeros(body), zeros
