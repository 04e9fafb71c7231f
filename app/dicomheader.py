"""The header of one DICOM file: the few elements that tell what an object is, where it lies, what its pixels mean.

Read by hand: SimpleITK's GDCM tells neither where the frames of an enhanced CT lie nor what an object without an
image is, and it reads files that end too early. It does decode compressed pixels (`dicompixels`).
Encodings: DICOM PS3.5, section 7 and annex A; tags and keywords: PS3.6.
"""

import os
import struct
from typing import BinaryIO

from app.errors import InputError

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"

UNDEFINED = 0xFFFFFFFF  # a length that the file does not tell: the end is marked instead
ITEM, SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_ITEM_END = 0xFFFEE00D
_PIXEL_DATA = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_PREAMBLE_BYTES = 128  # before the word DICM
_LONGEST_VALUE = 1 << 16  # bytes; no value that is wanted comes near it
_DEEPEST = 16  # sequences in sequences; an enhanced CT has two
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_KEYWORDS = {
    0x00020002: "MediaStorageSOPClassUID",
    0x00020010: "TransferSyntaxUID",
    0x00080008: "ImageType",
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x00080060: "Modality",
    0x0020000E: "SeriesInstanceUID",
    0x00200011: "SeriesNumber",
    0x00200012: "AcquisitionNumber",
    0x00200032: "ImagePositionPatient",
    0x00200037: "ImageOrientationPatient",
    0x00209113: "PlanePositionSequence",
    0x00209116: "PlaneOrientationSequence",
    0x00280002: "SamplesPerPixel",
    0x00280004: "PhotometricInterpretation",
    0x00280008: "NumberOfFrames",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280030: "PixelSpacing",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280102: "HighBit",
    0x00280103: "PixelRepresentation",
    0x00280120: "PixelPaddingValue",
    0x00281052: "RescaleIntercept",
    0x00281053: "RescaleSlope",
    0x00283000: "ModalityLUTSequence",
    0x00289110: "PixelMeasuresSequence",
    0x00289145: "PixelValueTransformationSequence",
    0x52009229: "SharedFunctionalGroupsSequence",
    0x52009230: "PerFrameFunctionalGroupsSequence",
}


class DicomHeader:
    """Elements by keyword. Every reader raises InputError by the keyword where a value makes no sense.

    Attributes:
        pixels: (first byte in the file, number of bytes or `UNDEFINED`) of the pixels; None without any.
    """

    def __init__(self, order: str = "<") -> None:
        self._order = order
        self._values: dict[str, bytes] = {}
        self._sequences: dict[str, list[DicomHeader]] = {}
        self.pixels: tuple[int, int] | None = None

    def text(self, keyword: str, default: str = "") -> str:
        """The value as it stands, without its padding."""
        return self._values.get(keyword, default.encode()).decode("latin-1").strip(" \0")

    def words(self, keyword: str) -> list[str]:
        """The values of a text that holds several."""
        return [word.strip() for word in self.text(keyword).split("\\")]

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """So many numbers; None where there is no value."""
        if not self.text(keyword):
            return None
        try:
            numbers = tuple(float(word) for word in self.words(keyword))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(abs(number) < 1e9 for number in numbers):  # NaN is not below it
            raise InputError(f"its {keyword} is not {count} numbers: {self.text(keyword)[:60]!r}")
        return numbers

    def number(self, keyword: str, default: float) -> float:
        """One number that is written as text."""
        return (self.numbers(keyword, 1) or (default,))[0]

    def unsigned(self, keyword: str, default: int) -> int:
        """A binary number of 16 bits (VR US, or the bits of SS)."""
        raw = self._values.get(keyword, b"")
        return struct.unpack_from(self._order + "H", raw)[0] if len(raw) >= 2 else default

    def items(self, keyword: str) -> list["DicomHeader"]:
        """The items of a sequence; none where it is absent."""
        return self._sequences.get(keyword, [])


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that begins so (132 bytes) is DICOM; without a preamble it begins with an element of group 8."""
    return head[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM" or (head[:2] == b"\x08\0" and head[3:4] == b"\0")


def read_dicom_header(file: BinaryIO) -> DicomHeader:
    """Read an open file from its beginning up to its pixels.

    Raises:
        InputError: With the cause alone: the caller knows the file.
    """
    return _Parser(file).header()


class _Parser:
    """Reads elements one after the other, encoded as the file's transfer syntax says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._order, self._explicit = "<", True

    def header(self) -> DicomHeader:
        self._file.seek(0)
        head = self._file.read(_PREAMBLE_BYTES + 4)
        header = DicomHeader()
        if head.endswith(b"DICM"):
            self._elements(header, self._size, 0, group=0x0002)
        else:
            self._file.seek(0)
            syntax = EXPLICIT if head[4:6].isalpha() else IMPLICIT
            header._values["TransferSyntaxUID"] = syntax.encode()
        syntax = header.text("TransferSyntaxUID", IMPLICIT)
        if syntax == _DEFLATED:
            raise InputError("deflated DICOM is not read: convert it to explicit little endian")
        at = self._file.tell()
        first = self._file.read(6)  # its kind behind the tag, but where an old converter says explicit and writes none
        self._file.seek(at)
        self._explicit = syntax != IMPLICIT and first[4:].isalpha()
        self._order = header._order = ">" if syntax == BIG_ENDIAN else "<"
        self._elements(header, self._size, 0)
        return header

    def _elements(self, header: DicomHeader, end: int, depth: int, group: int | None = None) -> None:
        """Elements up to a place in the file, to the mark that ends an item, to the pixels, or of one group alone."""
        while (at := self._file.tell()) < end:
            tag = self._tag()
            if group is not None and tag >> 16 != group:
                self._file.seek(at)
                return
            if tag in (_ITEM_END, SEQUENCE_END):
                self._unpack("I")
                return
            vr, length = self._vr_and_length()
            if tag in _PIXEL_DATA and depth == 0:
                header.pixels = (self._file.tell(), length)
                return
            if tag in _PIXEL_DATA and length == UNDEFINED:  # a compressed icon's
                self._skip_pieces()
                continue
            keyword = _KEYWORDS.get(tag)
            if length == UNDEFINED or (keyword or "").endswith("Sequence"):
                items = self._sequence(vr, end if length == UNDEFINED else self._file.tell() + length, end, depth + 1)
                if keyword:
                    header._sequences[keyword] = items
            elif self._file.tell() + length > end:
                raise InputError("truncated: it ends inside its header")
            elif keyword and length <= _LONGEST_VALUE:
                header._values[keyword] = self._file.read(length)
            else:
                self._file.seek(length, os.SEEK_CUR)

    def _skip_pieces(self) -> None:
        """Compressed pixels come in items that hold no elements."""
        while self._tag() != SEQUENCE_END:
            self._file.seek(self._unpack("I"), os.SEEK_CUR)
        self._unpack("I")

    def _sequence(self, vr: bytes, end: int, limit: int, depth: int) -> list[DicomHeader]:
        """Items up to a place in the file, or to the mark that ends a sequence."""
        if depth > _DEEPEST or end > limit:
            raise InputError("damaged DICOM: a sequence does not end")
        explicit, self._explicit = self._explicit, self._explicit and vr != b"UN"  # PS3.5, 6.2.2, note 2
        items = []
        while self._file.tell() < end:
            tag, length = self._tag(), self._unpack("I")
            if tag == SEQUENCE_END:
                break
            if tag != ITEM:
                raise InputError("damaged DICOM: a sequence does not consist of items")
            item_end = end if length == UNDEFINED else self._file.tell() + length
            if item_end > end:
                raise InputError("truncated: it ends inside its header")
            item = DicomHeader(self._order)
            self._elements(item, item_end, depth)
            items.append(item)
        self._explicit = explicit
        return items

    def _tag(self) -> int:
        return self._unpack("H") << 16 | self._unpack("H")

    def _vr_and_length(self) -> tuple[bytes, int]:
        if not self._explicit:
            return b"", self._unpack("I")
        vr = self._file.read(2)
        if vr in _LONG_VRS:
            self._unpack("H")
            return vr, self._unpack("I")
        if not vr.isalpha():
            raise InputError("damaged DICOM: an element of no known kind")
        return vr, self._unpack("H")

    def _unpack(self, code: str) -> int:
        raw = self._file.read(struct.calcsize(code))
        if len(raw) < struct.calcsize(code):
            raise InputError("truncated: it ends inside its header")
        return struct.unpack(self._order + code, raw)[0]
