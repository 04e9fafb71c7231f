"""DICOM headers against pydicom, in every encoding, and cut or damaged at every place."""

import random
import struct

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from app.dicomheader import DicomHeader, looks_like_dicom, read_dicom_header
from app.errors import InputError
from tests.dicom_series import Series, distinct_hu


def header_of(path) -> DicomHeader:
    with open(path, "rb") as file:
        return read_dicom_header(file)


def nested(depth: int) -> Dataset:
    """Private and standard sequences in sequences, with a decoy of every wanted element in them."""
    item = Dataset()
    item.Rows, item.Modality, item.ImagePositionPatient = 9999, "MR", [9, 9, 9]
    item.is_undefined_length_sequence_item = depth % 2 == 1
    item.add_new("PixelData", "OB", bytes(4))  # an icon's
    if depth:
        item.ReferencedImageSequence = Sequence([nested(depth - 1), nested(depth - 1)])
        item["ReferencedImageSequence"].is_undefined_length = depth % 2 == 0
    return item


@pytest.fixture
def image(tmp_path) -> Dataset:
    (path,) = Series(hu=distinct_hu(1, 4, 6)).write(tmp_path / "made")
    image = pydicom.dcmread(path)
    image.ReferencedStudySequence = Sequence([nested(3)])
    image["ReferencedStudySequence"].is_undefined_length = True
    image.private_block(0x0009, "INVENTED", create=True).add_new(1, "OB", b"\x01" * 70000)
    return image


def save(image: Dataset, path, syntax=ExplicitVRLittleEndian):
    image.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        image.PixelData = b"".join(image.PixelData[k : k + 2][::-1] for k in range(0, len(image.PixelData), 2))
    options = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
    pydicom.dcmwrite(path, image, **options)
    return path


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_encoding_gives_what_pydicom_reads(tmp_path, image, syntax):
    path = save(image, tmp_path / "x", syntax)
    header, expected = header_of(path), pydicom.dcmread(path)
    assert header.text("TransferSyntaxUID") == syntax
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality"):
        assert header.text(keyword) == expected[keyword].value
    assert header.words("ImageType") == list(expected.ImageType)
    for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        assert header.numbers(keyword, count) == tuple(map(float, expected[keyword].value))
    assert header.number("RescaleIntercept", 0) == expected.RescaleIntercept
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        assert header.unsigned(keyword, 0) == expected[keyword].value
    at, size = header.pixels
    assert path.read_bytes()[at : at + size] == expected.PixelData


def test_without_preamble_or_what_goes_with_it(tmp_path, image):
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        raw = save(image, tmp_path / "x", syntax).read_bytes()
        bare = tmp_path / "bare"
        bare.write_bytes(
            raw[raw.index(b"\x08\x00\x05\x00") if b"\x08\x00\x05\x00" in raw else raw.index(b"\x08\x00\x08\x00") :]
        )
        assert looks_like_dicom(bare.read_bytes()[:132])
        assert header_of(bare).text("SeriesInstanceUID") == image.SeriesInstanceUID
        assert header_of(bare).unsigned("Rows", 0) == 4


def test_a_private_sequence_of_unknown_kind_is_implicit(tmp_path, image):
    """PS3.5, 6.2.2, note 2: what a UN of undefined length holds; behind it the file is explicit again."""
    raw = save(image, tmp_path / "x").read_bytes()
    at = raw.index(b"\x10\0\x10\0PN")  # PatientName, group 0010, behind group 0009
    element = struct.pack("<HHI", 0x0009, 0x1010, 4) + b"some"  # without a VR
    items = struct.pack("<HHI", 0xFFFE, 0xE000, len(element)) + element + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    unknown = struct.pack("<HH2sHI", 0x0009, 0x10FF, b"UN", 0, 0xFFFFFFFF) + items
    (tmp_path / "x").write_bytes(raw[:at] + unknown + raw[at:])
    assert header_of(tmp_path / "x").unsigned("Rows", 0) == 4


def test_a_compressed_icon_in_a_sequence_that_does_not_say_its_length(tmp_path, image):
    icon = Dataset()
    icon.Rows = 9999
    icon.is_undefined_length_sequence_item = True
    icon.add_new("PixelData", "OB", pydicom.encaps.encapsulate([b"\xff\xd8not elements"]))
    icon["PixelData"].is_undefined_length = True
    image.IconImageSequence = Sequence([icon])
    image["IconImageSequence"].is_undefined_length = True
    assert header_of(save(image, tmp_path / "x")).unsigned("Rows", 0) == 4


def test_elements_without_the_kind_that_the_file_promises(tmp_path, image):
    """An old converter's fault, which pydicom and GDCM live with too."""
    raw = save(image, tmp_path / "x", ImplicitVRLittleEndian).read_bytes()
    promise = struct.pack("<HH2sH", 2, 0x10, b"UI", 18) + b"1.2.840.10008.1.2\0"
    assert raw.count(promise) == 1
    explicit = struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
    (tmp_path / "x").write_bytes(raw.replace(promise, explicit))
    header = header_of(tmp_path / "x")
    assert header.unsigned("Rows", 0) == 4 and header.pixels is not None


def test_frames_of_an_enhanced_object_are_items(tmp_path):
    path = Series().write_multiframe(tmp_path / "x")
    frames = header_of(path).items("PerFrameFunctionalGroupsSequence")
    expected = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    positions = [frame.items("PlanePositionSequence")[0].numbers("ImagePositionPatient", 3) for frame in frames]
    assert positions == [tuple(map(float, item.PlanePositionSequence[0].ImagePositionPatient)) for item in expected]


def test_a_file_cut_anywhere_in_its_header_is_refused(tmp_path, image):
    image.private_block(0x0009, "INVENTED").add_new(1, "OB", b"\x01" * 30)
    path = save(image, tmp_path / "x")
    whole = path.read_bytes()
    pixels_at, _ = header_of(path).pixels
    missed = []
    for size in range(132, pixels_at, 3):
        path.write_bytes(whole[:size])
        try:
            if header_of(path).pixels is not None:
                missed.append(size)
        except InputError as error:
            assert "\n" not in str(error)
    assert not missed  # between two elements nothing is wrong with the header, but there are no pixels


def test_flipped_bits_give_a_header_or_an_error(tmp_path, image):
    rng = random.Random(0)
    whole = save(image, tmp_path / "x").read_bytes()
    for _ in range(1500):
        raw = bytearray(whole[: rng.choice((len(whole), 5000))])
        for _ in range(rng.choice((1, 3, 30))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        (tmp_path / "x").write_bytes(bytes(raw))
        try:
            header_of(tmp_path / "x").numbers("ImagePositionPatient", 3)
        except InputError as error:
            assert "\n" not in str(error)


def test_sequences_without_end_are_refused(tmp_path, image):
    innermost = image
    for _ in range(30):
        innermost.ReferencedStudySequence = Sequence([Dataset()])
        innermost["ReferencedStudySequence"].is_undefined_length = True
        innermost = innermost.ReferencedStudySequence[0]
    innermost.StudyID = "1"
    with pytest.raises(InputError, match="a sequence does not end"):
        header_of(save(image, tmp_path / "x"))


def test_deflated_is_refused_by_name(tmp_path, image):
    with pytest.raises(InputError, match="deflated DICOM is not read"):
        header_of(save(image, tmp_path / "x", DeflatedExplicitVRLittleEndian))


@pytest.mark.parametrize("value", ["1\\2", "1\\2\\x", "nan\\0\\0", "1e99\\0\\0"])
def test_numbers_that_are_none_are_refused_by_keyword(tmp_path, image, value):
    path = save(image, tmp_path / "x")
    old = "\\".join(map(str, image.ImagePositionPatient)).encode()
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, value.encode().ljust(len(old))))
    with pytest.raises(InputError, match="its ImagePositionPatient is not 3 numbers"):
        header_of(path).numbers("ImagePositionPatient", 3)


@pytest.mark.parametrize("head", [b"", b"DICM", bytes(132), b"\x1f\x8b" + bytes(130), b'{"a": 1}', b"\x08\x00\x05"])
def test_other_files_do_not_look_like_dicom(head):
    assert not looks_like_dicom(head)
