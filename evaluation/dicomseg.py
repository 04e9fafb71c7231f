"""A mask as a DICOM Segmentation, for viewers and PACS: `python -m evaluation.dicomseg MASK SERIES -o FILE`.

Each organ in the mask becomes a segment with a coded name and a colour. Each frame lies where a CT image lies and
refers to it. Patient and study are the CT's.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.sr.codedict import codes

from app.labels import NUM_CLASSES, ORGANS, Organ
from app.record import file_sha256, finished_masks
from evaluation.dicom_series import MULTIFRAME_CLASSES, MaskOnSeries, SeriesError, lay_on_series
from evaluation.masks import MaskError, read_mask
from evaluation.output import say, whole_file

ERROR_EXIT = 2
ALGORITHM = "FLARE22 abdominal organs"
SERIES_NUMBER = 1000  # behind the scanner's own in a viewer's list

# SNOMED CT, as DICOM PS3.16 has it for segments (context groups 7192 and 244) and as 3D Slicer writes it. The aorta is
# not called abdominal: masks follow it into the chest.
NAMES = {  # by label: structure and, of a pair, side
    1: (codes.cid7192.Liver, None),
    2: (codes.cid7192.Kidney, codes.cid244.Right),
    3: (codes.cid7192.Spleen, None),
    4: (codes.cid7192.Pancreas, None),
    5: (codes.cid7192.Aorta, None),
    6: (codes.cid7192.InferiorVenaCava, None),
    7: (codes.cid7192.AdrenalGland, codes.cid244.Right),
    8: (codes.cid7192.AdrenalGland, codes.cid244.Left),
    9: (codes.cid7192.Gallbladder, None),
    10: (codes.cid7192.Esophagus, None),
    11: (codes.cid7192.Stomach, None),
    12: (codes.cid7192.Duodenum, None),
    13: (codes.cid7192.Kidney, codes.cid244.Left),
}

# highdicom refuses these where they break a rule, and may print them. It gets none; the CT's are copied as they are.
IDENTITY = ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"]
IDENTITY += ["StudyID", "StudyDate", "StudyTime", "AccessionNumber", "SpecificCharacterSet"]


def organs_in(labels: np.ndarray) -> list[Organ]:
    """The organs of which a (slice, row, column) uint8 mask has a voxel."""
    voxels = np.sum([np.bincount(plane.ravel(), minlength=NUM_CLASSES) for plane in labels], axis=0)
    return [organ for organ in ORGANS if voxels[organ.label]]


def segmentation(on_series: MaskOnSeries, organs: Sequence[Organ], version: str) -> Segmentation:
    """The DICOM object, of the BINARY type, which every viewer reads.

    Args:
        on_series: From `lay_on_series`.
        organs: A segment each, in this order; voxels of others are background.
        version: Of the algorithm: the SHA-256 of its weights.

    Raises:
        SeriesError: A header is too damaged.
    """
    segment_numbers = np.zeros(NUM_CLASSES, np.uint8)  # by label; the standard wants them from 1 without a gap
    segment_numbers[[organ.label for organ in organs]] = range(1, len(organs) + 1)
    algorithm = hd.AlgorithmIdentificationSequence(ALGORITHM, codes.cid7162.ArtificialIntelligence, version)
    source = on_series.images[0]
    try:
        made = Segmentation(
            source_images=_acceptable(on_series),
            pixel_array=segment_numbers[on_series.labels],
            segmentation_type="BINARY",
            segment_descriptions=[_segment(number, organ, algorithm) for number, organ in enumerate(organs, 1)],
            series_instance_uid=hd.UID(),
            series_number=SERIES_NUMBER,
            series_description="Abdominal organs (automatic)",
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="Research software",
            manufacturer_model_name=ALGORITHM,
            software_versions=version,
            device_serial_number="none",
            content_label="ABDOMINAL_ORGANS",
            content_description="For research only, not for diagnosis",
        )
    except Exception as error:  # its text may hold a patient's data
        cause = f"highdicom cannot refer to this header ({type(error).__name__})"
        raise SeriesError(f"{source.filename}: {cause}") from error
    if "SpecificCharacterSet" in source:
        made.SpecificCharacterSet = source.SpecificCharacterSet
    made.copy_patient_and_study_information(source)
    return made


def _segment(number: int, organ: Organ, algorithm: hd.AlgorithmIdentificationSequence) -> SegmentDescription:
    structure, side = NAMES[organ.label]
    segment = SegmentDescription(
        segment_number=number,
        segment_label=organ.name,
        segmented_property_category=codes.cid7150.AnatomicalStructure,
        segmented_property_type=structure,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        display_color=CIELabColor.from_rgb(*organ.colour),
    )
    if side:
        modifiers = [hd.sr.CodedConcept.from_code(side)]
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifiers
    return segment


def _acceptable(on_series: MaskOnSeries) -> list[pydicom.Dataset]:
    """The headers as highdicom wants them: no identity, all spacings, one orientation equal to the last digit."""
    first, *others = copy.deepcopy(on_series.images)
    for keyword in IDENTITY:
        setattr(first, keyword, None)
    measures = first
    if first.SOPClassUID in MULTIFRAME_CLASSES:
        shared, frame = first.SharedFunctionalGroupsSequence[0], first.PerFrameFunctionalGroupsSequence[0]
        for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if keyword not in shared:
                shared[keyword] = frame[keyword]
        measures = shared.PixelMeasuresSequence[0]
    for image in others:
        image.ImageOrientationPatient = first.ImageOrientationPatient
    # Viewers need it: the frames alone do not tell, since those without an organ are left out.
    measures.SpacingBetweenSlices = round(on_series.slice_spacing_mm, 6)
    measures.SliceThickness = measures.get("SliceThickness") or measures.SpacingBetweenSlices
    return [first, *others]


def weights_of(mask_path: Path) -> str:
    """SHA-256 of the weights that a mask was made with, if the log of the run lies beside it; else "unknown"."""
    mask_sha256 = file_sha256(mask_path)
    runs = (run for runs in finished_masks(mask_path.parent).values() for run in runs)
    return next((weights for _, weights, mask in runs if mask == mask_sha256), "unknown")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m evaluation.dicomseg", description=__doc__.splitlines()[0])
    parser.add_argument("mask", type=Path, metavar="MASK", help="mask (.nii.gz) that was made from the series")
    parser.add_argument("series", type=Path, metavar="SERIES", help="folder, nested or flat, or file of the CT series")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="DICOM Segmentation to write")
    parser.add_argument(
        "--series-number", type=int, metavar="N",
        help="needed only where the mask lies on several series in the folder",
    )  # fmt: skip
    return parser.parse_args(argv)


def convert(mask_path: Path, series: Path, output: Path, series_number: int | None = None) -> list[Organ]:
    """Write the segmentation of a mask; arguments are those of the command line.

    Returns:
        The organs that got a segment.

    Raises:
        MaskError, SeriesError: The mask or the series cannot be used, or they do not fit.
        OSError: A file cannot be read or written.
    """
    mask = read_mask(mask_path)
    organs = organs_in(mask.labels)
    if not organs:
        raise MaskError(f"{mask_path}: no organ in it, and a segmentation of nothing is not allowed")
    on_series = lay_on_series(mask, series, series_number)
    inputs = [mask_path, *(Path(image.filename) for image in on_series.images)]
    if output.resolve() in [path.resolve() for path in inputs]:
        raise SeriesError(f"{output}: would replace what it is made from")
    made = segmentation(on_series, organs, weights_of(mask_path))
    try:
        with whole_file(output) as file:  # one that is there is replaced
            made.save_as(file)
    except OSError as error:
        raise OSError(f"{output}: cannot be written: {error.strerror}") from error
    return organs


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 if nothing was written."""
    arguments = parse_arguments(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's repeat what is in the headers, of patients too
            organs = convert(arguments.mask, arguments.series, arguments.output, arguments.series_number)
    except (MaskError, SeriesError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return ERROR_EXIT
    if absent := [organ.name for organ in ORGANS if organ not in organs]:
        say(f"not in the mask, left out: {', '.join(absent)}", sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
