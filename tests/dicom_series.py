"""DICOM CT series for the tests, made with pydicom: small, valid (dciodvfy), every personal tag invented."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

# Direction of a row (towards higher columns) and of a column (towards higher rows), as in ImageOrientationPatient: LPS.
Orientation = tuple[tuple[float, float, float], tuple[float, float, float]]
AXIAL: Orientation = ((1, 0, 0), (0, 1, 0))
CORONAL: Orientation = ((1, 0, 0), (0, 0, -1))
SAGITTAL: Orientation = ((0, 1, 0), (0, 0, -1))

SPACING_MM = (5.0, 0.8, 0.75)  # slices, rows, columns
ORIGIN_MM = (-12.0, -150.5, 40.25)  # LPS, centre of the first voxel of slice 0
INTERCEPT_HU = -1024


def distinct_hu(slices: int = 5, rows: int = 24, columns: int = 32) -> np.ndarray:
    """int16 (slice, row, column), no two voxels alike: each value says where its voxel belongs."""
    return (np.arange(slices * rows * columns) - 1000).reshape(slices, rows, columns).astype(np.int16)


@dataclass
class Series:
    """A CT series of one study. UIDs follow from the series number and the slice: made again, a series has the same.

    Attributes:
        hu: int16 (slice, row, column); `distinct_hu()` if not given.
        spacing_mm: Slices, rows, columns.
        orientation: Of rows and columns.
        tilt_degrees: Of the gantry: slices are shifted along columns, not only along their normal.
        positions_mm: (slices, 3) ImagePositionPatient. If not given, `spacing_mm` apart along the normal (axial:
            upwards); given for a gap, a duplicate, a bend.
        order: Slices in the order of files (or frames) and InstanceNumber; may leave some out. All, first to last,
            if not given.
        acquisitions: AcquisitionNumber of each slice; 1 if not given.
        number: SeriesNumber.
        tags: Attributes by keyword that every file gets instead; None leaves the attribute out.
    """

    hu: np.ndarray = field(default_factory=distinct_hu)
    spacing_mm: tuple[float, float, float] = SPACING_MM
    orientation: Orientation = AXIAL
    tilt_degrees: float = 0
    positions_mm: np.ndarray | None = None
    order: Sequence[int] | None = None
    acquisitions: Sequence[int] | None = None
    number: int = 1
    tags: dict = field(default_factory=dict)

    def __post_init__(self):
        row, column = np.array(self.orientation, float).round(9)  # a decimal string has 16 characters
        step = np.cross(row, column) + np.tan(np.radians(self.tilt_degrees)) * column
        regular = ORIGIN_MM + np.outer(np.arange(len(self.hu)) * self.spacing_mm[0], step)
        given = regular if self.positions_mm is None else np.asarray(self.positions_mm, float)
        self.positions_mm = given.round(6)
        self.order = list(range(len(self.hu)) if self.order is None else self.order)
        self.orientation = tuple(row.tolist()), tuple(column.tolist())

    def write(self, folder: Path) -> list[Path]:
        """One file a slice, named by series number and place in `order`, without a suffix. Returns them in `order`."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, k in enumerate(self.order, 1):
            image = self._image(CTImageStorage, f"slice {k}", self.hu[k])
            image.InstanceNumber = number
            image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            image.RescaleIntercept, image.RescaleSlope, image.RescaleType = INTERCEPT_HU, 1, "HU"
            image.KVP, image.GantryDetectorTilt = 120, self.tilt_degrees
            image.AcquisitionNumber = self.acquisitions[k] if self.acquisitions else 1
            image.SliceThickness, image.PixelSpacing = self.spacing_mm[0], list(self.spacing_mm[1:])
            image.ImageOrientationPatient = [*self.orientation[0], *self.orientation[1]]
            image.ImagePositionPatient = list(self.positions_mm[k])
            paths.append(self._save(image, folder / f"S{self.number}I{number:04}"))
        return paths

    def write_multiframe(self, path: Path) -> Path:
        """One file (Enhanced CT Image Storage)."""
        heights = self.positions_mm[self.order] @ np.cross(*np.array(self.orientation, float))
        places = heights.argsort().argsort() + 1

        image = self._image(EnhancedCTImageStorage, "frames", self.hu[self.order])
        image.InstanceNumber = 1
        frame_type = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
        kind = {
            "PixelPresentation": "MONOCHROME",
            "VolumetricProperties": "VOLUME",
            "VolumeBasedCalculationTechnique": "NONE",
        }
        image.update(_item(ImageType=frame_type, **kind))
        image.MultienergyCTAcquisition, image.ContentQualification = "NO", "RESEARCH"
        image.AcquisitionDateTime, image.AcquisitionContextSequence = "20000101000000", []
        image.BurnedInAnnotation, image.LossyImageCompression, image.PresentationLUTShape = "NO", "00", "IDENTITY"
        dimensions = _uid("dimensions")
        image.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=dimensions)]
        place = _item(DimensionOrganizationUID=dimensions, DimensionDescriptionLabel="place in the stack")
        place.DimensionIndexPointer = tag_for_keyword("InStackPositionNumber")
        place.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
        image.DimensionIndexSequence = [place]
        abdomen = _item(CodeValue="818981001", CodingSchemeDesignator="SCT", CodeMeaning="Abdomen")
        groups = {
            "CTImageFrameTypeSequence": _item(FrameType=frame_type, **kind),
            "IrradiationEventIdentificationSequence": _item(IrradiationEventUID=_uid("irradiation")),
            "FrameAnatomySequence": _item(AnatomicRegionSequence=[abdomen], FrameLaterality="U"),
            "PixelMeasuresSequence": _item(SliceThickness=self.spacing_mm[0], PixelSpacing=list(self.spacing_mm[1:])),
            "PlaneOrientationSequence": _item(ImageOrientationPatient=[*self.orientation[0], *self.orientation[1]]),
            "PixelValueTransformationSequence": _item(RescaleIntercept=INTERCEPT_HU, RescaleSlope=1, RescaleType="HU"),
            "FrameVOILUTSequence": _item(WindowCenter=50, WindowWidth=400),
        }
        image.SharedFunctionalGroupsSequence = [_item(**{keyword: [group] for keyword, group in groups.items()})]
        image.PerFrameFunctionalGroupsSequence = [
            _item(
                FrameContentSequence=[_item(StackID="1", InStackPositionNumber=place, DimensionIndexValues=place)],
                PlanePositionSequence=[_item(ImagePositionPatient=list(self.positions_mm[k]))],
            )
            for k, place in zip(self.order, places.tolist(), strict=True)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        return self._save(image, path)

    def _image(self, sop_class: str, instance: str, hu: np.ndarray) -> Dataset:
        """What both kinds of file share: patient, study, series, equipment, pixels."""
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = sop_class, _uid("series", self.number, instance)
        image.StudyInstanceUID, image.SeriesInstanceUID = _uid("study"), _uid("series", self.number)
        image.FrameOfReferenceUID, image.PositionReferenceIndicator = _uid("frame of reference"), ""
        image.PatientName, image.PatientID = "Test^Invented", "INVENTED-0000"
        image.PatientBirthDate, image.PatientSex, image.PatientPosition = "19000101", "O", "HFS"
        image.StudyDate = image.SeriesDate = image.ContentDate = "20000101"
        image.StudyTime = image.SeriesTime = image.ContentTime = "000000"
        image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "1", "", ""
        image.Modality, image.SeriesNumber, image.SeriesDescription = "CT", self.number, "made for a test"
        image.BodyPartExamined = "ABDOMEN"
        image.Manufacturer, image.ManufacturerModelName = "invented", "made for a test"
        image.DeviceSerialNumber, image.SoftwareVersions = "0", "0"
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows, image.Columns = hu.shape[-2:]
        if hu.ndim == 3:
            image.NumberOfFrames = len(hu)
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.PixelData = (hu.astype(np.int32) - INTERCEPT_HU).astype("<i2").tobytes()
        return image

    def _save(self, image: Dataset, path: Path) -> Path:
        for keyword, value in self.tags.items():
            if value is None:
                delattr(image, keyword)
            else:
                setattr(image, keyword, value)
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(path, enforce_file_format=True)
        return path


def _uid(*of) -> str:
    return generate_uid(entropy_srcs=["tests", *map(str, of)])


def _item(**attributes) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item
