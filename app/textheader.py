"""The text headers of MetaImage (.mha) and NRRD (.nrrd), as far as a CT needs them.

Read by hand like NIfTI: the sizes must be checked against the file before memory is taken, and a
header that names another file must never be followed. What is rare is refused by name.
"""

import re
from collections.abc import Sequence

import numpy as np

from app.errors import InputError
from app.geometry import LPS_TO_RAS, is_invertible
from app.maskheader import mask_header_of
from app.nifti import Header

LONGEST_HEADER = 1 << 16  # bytes

_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # MetaIO stores its "long" in 4 bytes on every platform
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NRRD_TYPES = {  # without a leading "signed", a trailing "int" or "_t"
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "unsigned", "uint32"), "u4"),
    **dict.fromkeys(("longlong", "long long", "int64"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64"), "u8"),
    "float": "f4",
    "double": "f8",
}
_NRRD_SPACES = {  # to RAS
    **dict.fromkeys(("left-posterior-superior", "lps"), LPS_TO_RAS),
    **dict.fromkeys(("right-anterior-superior", "ras"), np.eye(3)),
    **dict.fromkeys(("left-anterior-superior", "las"), np.diag([-1.0, 1.0, 1.0])),
}
_NUMBER = re.compile(r"[^\s(),]+")


def parse_metaimage(raw: bytes) -> Header:
    """Header of a MetaImage whose voxels follow it in the same file.

    Args:
        raw: The beginning of the file, `LONGEST_HEADER` bytes or all it has.

    Raises:
        InputError: With the cause alone: the caller knows the file.
    """
    end = re.search(rb"^ElementDataFile\s*=[ \t]*([^\r\n]*)\r?\n", raw, re.MULTILINE)
    if end is None:
        raise InputError("not a MetaImage file: it has no line ElementDataFile")
    if end[1].strip().upper() != b"LOCAL":
        raise InputError("its voxels lie in another file: convert it to one .nii.gz file")
    fields = _Fields(raw[: end.start()], "=")
    if not _is_true(fields.text("BinaryData", "True")):
        raise InputError("voxels written as text are not supported")
    for name, plain in (("ElementNumberOfChannels", 1), ("ElementToIntensityFunctionSlope", 1)):
        if fields.numbers(name, [plain]) != [plain]:
            raise InputError(f"{name} = {fields.text(name)} is not supported")
    for name in ("ElementToIntensityFunctionOffset", "HeaderSize"):
        if fields.numbers(name, [0]) != [0]:
            raise InputError(f"{name} = {fields.text(name)} is not supported")
    big_endian = _is_true(fields.first("BinaryDataByteOrderMSB", "ElementByteOrderMSB", default="False"))
    sizes = fields.sizes("DimSize", "NDims")
    n = len(sizes)
    axes = fields.numbers_of(
        "TransformMatrix", "Rotation", "Orientation", default=np.eye(n).ravel().tolist(), count=n * n
    )
    return _header(
        sizes=sizes[:3],
        dtype=fields.dtype("ElementType", _META_TYPES, "big" if big_endian else "little"),
        axes=np.reshape(axes, (n, n))[:3, :3].T,  # the file lists one direction after the other
        spacing=fields.numbers_of("ElementSpacing", "ElementSize", count=n)[:3],
        origin=fields.numbers_of("Offset", "Position", "Origin", default=[0] * n, count=n)[:3],
        to_ras=LPS_TO_RAS,
        offset=end.end(),
        compression="zlib" if _is_true(fields.text("CompressedData", "False")) else None,
    )


def _is_true(text: str) -> bool:
    """As MetaIO takes it."""
    return text[:1] in ("T", "t", "1")


def parse_nrrd(raw: bytes) -> Header:
    """Header of a NRRD whose voxels follow it in the same file; arguments and errors as `parse_metaimage`."""
    if not re.match(rb"NRRD000[1-9]\r?\n", raw):
        raise InputError("not a NRRD file (it does not begin with NRRD000)")
    end = re.search(rb"\r?\n\r?\n", raw)
    fields = _Fields(raw[: end.start()] if end else raw, ":")
    if fields.first("data file", "datafile"):
        raise InputError("its voxels lie in another file: convert it to one .nii.gz file")
    if end is None:
        raise InputError("its header has no end")
    encoding = fields.text("encoding").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise InputError(f"encoding {encoding!r} is not supported")
    if fields.first("axis mins", "axismins"):
        raise InputError("axis mins is not supported")
    for name in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.numbers(name, [0]) != [0]:
            raise InputError(f"{name} is not supported")

    space = fields.text("space", "").lower()
    to_ras, axes = _NRRD_SPACES.get(space), np.eye(3)
    directions = re.findall(r"none|\(", fields.text("space directions", ""))  # "none" of an axis that is not in space
    spatial = [axis for axis, direction in enumerate(directions) if direction != "none"] if directions else [0, 1, 2]
    sizes = fields.sizes("sizes", "dimension", spatial)
    if directions:
        if to_ras is None:
            raise InputError(f"space {space!r} is not one of LPS, RAS, LAS")
        axes = np.reshape(fields.numbers_of("space directions", count=9), (3, 3)).T
        lengths = np.linalg.norm(axes, axis=0)
        axes, spacing = axes / np.where(lengths > 0, lengths, 1), lengths.tolist()
    else:
        spacing = fields.numbers_of("spacings", count=len(sizes))[:3]
    return _header(
        sizes=[sizes[axis] for axis in spatial],
        dtype=fields.dtype("type", _NRRD_TYPES, fields.text("endian", "")),
        axes=axes,
        spacing=spacing,
        origin=fields.numbers_of("space origin", default=[0, 0, 0], count=3),
        to_ras=LPS_TO_RAS if to_ras is None else to_ras,  # no space: ITK takes it as LPS
        offset=end.end(),
        compression=None if encoding == "raw" else "gzip",
    )


class _Fields:
    """The lines `name <separator> value` of a text header. Every reader raises InputError by the field's name."""

    def __init__(self, raw: bytes, separator: str) -> None:
        lines = (line for line in raw.decode("latin-1").splitlines() if not line.startswith("#"))
        # NRRD's `key:=value` is a remark, whatever the key.
        pairs = (line.split(separator, 1) for line in lines if separator in line and ":=" not in line)
        self._values = {name.strip(): value.strip() for name, value in pairs}

    def first(self, *names: str, default: str = "") -> str:
        return next((self._values[name] for name in names if name in self._values), default)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(name, default)
        if value is None:
            raise InputError(f"its header has no {name}")
        return value

    def numbers(self, name: str, default: list[float] | None = None) -> list[float]:
        if default is not None and name not in self._values:
            return default
        try:
            return [float(word) for word in _NUMBER.findall(self.text(name)) if word != "none"]
        except ValueError:
            raise InputError(f"its header's {name} is not made of numbers: {self.text(name)[:60]!r}") from None

    def numbers_of(self, *names: str, count: int, default: list[float] | None = None) -> list[float]:
        name = next((name for name in names if name in self._values), names[0])
        values = self.numbers(name, default)
        if len(values) != count:
            raise InputError(f"its header's {name} has {len(values)} numbers, not {count}")
        return values

    def sizes(self, name: str, dimension_name: str, spatial: Sequence[int] = (0, 1, 2)) -> list[int]:
        """Of all axes; those that are not spatial have a size of 1."""
        values = self.numbers(name)
        if [len(values)] != self.numbers(dimension_name):
            raise InputError(f"its header's {name} and {dimension_name} contradict each other")
        if any(value != value // 1 or not 1 <= value < 2**15 for value in values):  # the mask has sizes of int16
            raise InputError(f"the header declares a size of {self.text(name)[:60]}")
        others = [value for axis, value in enumerate(values) if axis not in spatial]
        if len(values) - len(others) != 3 or len(values) > 7 or max(others, default=1) > 1:
            raise InputError(f"a {len(values)}-D image ({self.text(name)[:60]}), not one volume")
        return [int(value) for value in values]

    def dtype(self, name: str, types: dict[str, str], endian: str) -> np.dtype:
        text = self.text(name)
        code = types.get(text) or types.get(re.sub(r"^signed | int$|_t$", "", text.lower()))
        if code is None:
            raise InputError(f"voxels of type {text[:60]!r} are not CT numbers")
        if code[1] != "1" and endian not in ("little", "big"):
            raise InputError("its header does not say the byte order")
        return np.dtype((">" if endian == "big" else "<") + code)


def _header(
    *,
    sizes: list[int],
    dtype: np.dtype,
    axes: np.ndarray,
    spacing: list[float],
    origin: list[float],
    to_ras: np.ndarray,
    offset: int,
    compression: str | None,
) -> Header:
    sized = "voxel spacing " + " x ".join(f"{size:g}" for size in spacing)
    if not all(0 < abs(size) < np.inf for size in spacing):
        raise InputError(f"{sized} is not positive")
    affine = np.eye(4)
    affine[:3, :3] = to_ras @ axes * spacing
    affine[:3, 3] = to_ras @ origin
    if not np.isfinite(affine).all() or not is_invertible(affine):
        raise InputError("its directions are singular: they give no orientation")
    warnings = (f"{sized} is negative: the axis runs the other way, as ITK takes it",) if min(spacing) < 0 else ()
    shape = (sizes[2], sizes[1], sizes[0])
    return Header(shape, dtype, 1.0, 0.0, affine, (offset,), compression, mask_header_of(shape, affine), warnings)
