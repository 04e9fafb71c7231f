"""CT folders to a slice store: `python -m training.prepare --images DIR --labels DIR --store STORE`.

Files are named as FLARE22 names them: images X_0000.nii.gz (or X.nii.gz), label maps X.nii.gz. Without
--labels the cases are unlabelled. Run again, it adds what is new or changed and skips the rest.
"""

import argparse
import fnmatch
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from app.cases import Case as Scan
from app.cases import find_cases, input_sha256
from app.ct import read_ct
from app.errors import InputError, UsageError
from app.geometry import Geometry
from app.labels import NUM_CLASSES
from app.nifti import parse_nifti
from app.preprocess import clipped_statistics
from app.record import file_sha256
from app.resample import nearest_spacing, resample_in_plane, resampled_shape
from app.volume import Volume, read_volume
from app.voxels import NO_NUMBER
from evaluation.masks import SAME_PLACE_VOXELS, corners_apart_mm
from evaluation.organs import parse_organs
from training.partial_labels import mark_uncertain
from training.store import Case, read_case, write_case

# By how much voxels cut off at 275 HU exceed it, and the mean square of that excess (HU, HU^2): measured on
# slices of the same scans before they were cut. A scan's statistics are shifted to what they were.
EXCESS_HU, EXCESS_SQUARE_HU2 = 180.0, 62800.0
# Bytes in the store per byte of the files; CT takes 1.0 of .nii.gz and at most 0.7 of .nii.
STORE_PER_BYTE = {True: 1.3, False: 0.8}  # by whether the image is compressed


class CaseError(Exception):
    """A case that cannot be prepared; the message says why."""


@dataclass(frozen=True)
class Job:
    """One case to prepare.

    Attributes:
        name, patient: As in `Case`.
        scan: The CT, an image file or a DICOM series.
        labels: Label map; None for an unlabelled case.
        store: Folder.
        annotated: Label values that were looked for; empty for an unlabelled case.
        saturated_hu: HU at which the image was cut off before we got it; None if it was not.
        spacing_mm: (lowest, highest) in plane; images outside are resampled to the nearer. None: never.
        shrink: Factor by which slices are made smaller.
    """

    name: str
    patient: str
    scan: Scan
    labels: Path | None
    store: Path
    annotated: tuple[int, ...]
    saturated_hu: int | None
    spacing_mm: tuple[float, float] | None
    shrink: int

    @property
    def settings(self) -> dict:
        """What the stored case depends on besides its files."""
        spacing_mm = self.spacing_mm and list(self.spacing_mm)
        settings = {"annotated": list(self.annotated), "saturated_hu": self.saturated_hu}
        return {**settings, "spacing_mm": spacing_mm, "shrink": self.shrink}


def prepare(job: Job) -> tuple[str, ...] | None:
    """Read, check and store one case.

    Returns:
        Warnings of its image, or None if the store has it already, made from the same.

    Raises:
        CaseError: With the case's name and the cause.
    """
    try:
        return _prepare(job)
    except (CaseError, InputError, OSError, MemoryError) as error:
        raise CaseError(f"{job.name}: {error}") from None


def _prepare(job: Job) -> tuple[str, ...] | None:
    stored = read_case(job.store, job.name)
    if stored:
        image_sha256 = input_sha256(job.scan)
        if image_sha256 != stored.image_sha256 and stored.image_sha256:
            raise CaseError("the store has another image of that name: give --suffix, or remove that case")
        labels_sha256 = file_sha256(job.labels) if job.labels else None
        made_from = (image_sha256, labels_sha256, job.settings)
        if made_from == (stored.image_sha256, stored.labels_sha256, stored.settings):
            return None

    image = read_ct(job.scan.source)
    hu, spacing_mm = image.hu, image.geometry.spacing_mm
    labels_volume = read_volume(job.labels) if job.labels else None
    labels = _checked_labels(labels_volume, image.geometry, job.annotated) if labels_volume else None
    mean_hu, std_hu = unsaturated_statistics(hu, job.saturated_hu)
    if job.spacing_mm:
        new_mm = nearest_spacing(spacing_mm[1:], job.spacing_mm)
        shape = resampled_shape(hu.shape, spacing_mm[1:], new_mm)
        if shape != hu.shape:
            hu, spacing_mm = resample_in_plane(hu, shape, order=1), (spacing_mm[0], *new_mm)
            labels = resample_in_plane(labels, shape, order=0) if labels is not None else None
    if job.shrink > 1:
        hu, labels = shrink(hu, labels, job.shrink)
        spacing_mm = (spacing_mm[0], spacing_mm[1] * job.shrink, spacing_mm[2] * job.shrink)

    organ_pixels: list[list[int]] = []
    if labels is not None:
        organ_pixels = [np.bincount(plane.ravel(), minlength=NUM_CLASSES).tolist() for plane in labels]
        labels = mark_uncertain(hu, labels, spacing_mm, job.annotated)
    case = Case(
        name=job.name,
        patient=job.patient,
        shape=hu.shape,
        spacing_mm=spacing_mm,
        mean_hu=mean_hu,
        std_hu=std_hu,
        saturated_hu=job.saturated_hu,
        annotated=job.annotated,
        organ_pixels=organ_pixels,
        image_sha256=image.sha256,
        labels_sha256=labels_volume.sha256 if labels_volume else None,
        settings=job.settings,
    )
    write_case(job.store, case, hu, labels)
    return image.warnings


def _checked_labels(labels: Volume, geometry: Geometry, annotated: tuple[int, ...]) -> np.ndarray:
    """A label map as uint8, found to lie where its image lies and to hold what it may.

    Raises:
        CaseError: It does not.
    """
    if labels.hu.shape != geometry.shape:
        raise CaseError(f"the label map has {labels.hu.shape} voxels (z, y, x), its image {geometry.shape}")
    off_mm = corners_apart_mm(_array_affine(labels.geometry), _array_affine(geometry), geometry.shape)
    if off_mm > SAME_PLACE_VOXELS * min(labels.geometry.spacing_mm):  # in the unit of the headers, not yet mm
        raise CaseError(f"the label map lies up to {off_mm:.1f} mm away from its image")
    values = np.unique(labels.hu)
    if values[0] == NO_NUMBER:
        raise CaseError("the label map holds NaN or infinity")
    unknown = [int(value) for value in values if not 0 <= value < NUM_CLASSES]
    if unknown:
        raise CaseError(f"the label map holds {_listed(unknown)}, not 0 to {NUM_CLASSES - 1} alone")
    unexpected = [int(value) for value in values if value and value not in annotated]
    if unexpected:
        raise CaseError(f"the label map holds {_listed(unexpected)}, not among the annotated organs")
    return labels.hu.astype(np.uint8)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def _array_affine(geometry: Geometry) -> np.ndarray:
    """(4, 4): index (z, y, x) in the reoriented array to RAS mm."""
    header = parse_nifti(geometry.mask_header)
    to_file = np.zeros((4, 4))  # index in the reoriented array to i, j, k
    to_file[[2, 1, 0], geometry.axes] = np.where(geometry.flips, -1, 1)
    to_file[[2, 1, 0], 3] = np.where(geometry.flips, np.array(header.shape) - 1, 0)
    to_file[3, 3] = 1
    return header.affine @ to_file


def unsaturated_statistics(hu: np.ndarray, saturated_hu: int | None) -> tuple[float, float]:
    """Mean and standard deviation of the clipped volume, estimated as if nothing had been cut off above.

    With e the excess of a cut voxel over the limit s, (s + e)^2 - s^2 = 2 s e + e^2.
    """
    mean_hu, std_hu = clipped_statistics(hu)
    if saturated_hu is None:
        return mean_hu, std_hu
    share = np.count_nonzero(hu >= saturated_hu) / hu.size
    square_hu2 = mean_hu**2 + std_hu**2 + share * (2 * saturated_hu * EXCESS_HU + EXCESS_SQUARE_HU2)
    mean_hu += share * EXCESS_HU
    return mean_hu, float(np.sqrt(square_hu2 - mean_hu**2))


def shrink(hu: np.ndarray, labels: np.ndarray | None, factor: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Slices smaller by a whole factor: the mean HU and the commonest label of each block; a rest at the rim goes."""
    depth, height, width = (hu.shape[0], hu.shape[1] // factor, hu.shape[2] // factor)

    def blocks(volume):  # (z, y, x, factor * factor)
        whole = volume[:, : height * factor, : width * factor].reshape(depth, height, factor, width, factor)
        return whole.transpose(0, 1, 3, 2, 4).reshape(depth, height, width, -1)

    small = np.rint(blocks(hu).mean(axis=-1, dtype=np.float32)).astype(np.int16)
    if labels is None:
        return small, None
    votes = blocks(labels)
    counts = np.stack([np.count_nonzero(votes == label, axis=-1) for label in range(NUM_CLASSES)], axis=-1)
    return small, counts.argmax(axis=-1).astype(np.uint8)


def _range(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(","))
    if not 0 < low <= high:
        raise ValueError(text)
    return low, high


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """Cases of the folders, by name.

    Raises:
        UsageError: No image, no case that fits --cases, or an image without its label map.
    """
    labelled = arguments.labels is not None
    cases = find_cases([arguments.images], arguments.labels if labelled else arguments.store)
    cases = [case for case in cases if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in arguments.cases)]
    if not cases:
        raise UsageError(f"no case of {arguments.images} fits {' '.join(arguments.cases)}")
    without = [case.name for case in cases if labelled and not case.mask.exists()]
    if without:
        raise UsageError(f"no label map in {arguments.labels} for {', '.join(without)}: use --cases to leave them out")
    return [
        Job(
            name=case.name + arguments.suffix,
            patient=case.name,
            scan=case,
            labels=case.mask if labelled else None,
            store=arguments.store,
            annotated=arguments.annotated if labelled else (),
            saturated_hu=arguments.saturated_hu,
            spacing_mm=arguments.spacing_mm,
            shrink=arguments.shrink,
        )
        for case in cases
    ]


def estimated_bytes(job: Job) -> float:
    """What the case will take in the store, at most about."""
    size = sum(path.stat().st_size for path in (*job.scan.files, job.labels) if path)
    compressed = any(path.suffix == ".gz" for path in job.scan.files)
    return size * STORE_PER_BYTE[compressed] / job.shrink**2


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all prepared, 1 some failed (named), 2 nothing done."""
    parser = argparse.ArgumentParser(prog="python -m training.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of X_0000.nii.gz, or of DICOM series")
    parser.add_argument("--labels", type=Path, help="folder of X.nii.gz; without it the cases are unlabelled")
    parser.add_argument("--store", type=Path, required=True, help="made if absent, else added to")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="GLOB", help="names X to take (default: all)")
    parser.add_argument(
        "--annotated", type=parse_organs, default="1-13", metavar="1-11,13",
        help="organs that the label maps annotate; others are left open where they may hide (default: 1-13)",
    )  # fmt: skip
    parser.add_argument("--suffix", default="", help="for the store's names, where a patient has several images")
    parser.add_argument("--saturated-hu", type=int, metavar="275", help="HU at which the images were cut off")
    parser.add_argument(
        "--spacing-mm", type=_range, metavar="LOW,HIGH",
        help="resample slices with pixels outside to the nearer end, as inference will (default: never)",
    )  # fmt: skip
    parser.add_argument("--shrink", type=int, default=1, help="make slices smaller by this factor (default: 1)")
    parser.add_argument("--workers", type=int, default=2, help="cases at a time, each in memory once (default: 2)")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1 or arguments.shrink < 1:
        parser.error("--workers and --shrink must be at least 1")
    try:
        todo = jobs(arguments)
        arguments.store.mkdir(parents=True, exist_ok=True)
        new_bytes = sum(estimated_bytes(job) for job in todo if not (arguments.store / job.name).exists())
        free_bytes = shutil.disk_usage(arguments.store).free
        print(f"{len(todo)} cases, up to {new_bytes / 1e9:.2f} GB in the store; {free_bytes / 1e9:.1f} GB are free")
        if new_bytes > free_bytes:
            raise UsageError("the disk is too full")
    except (UsageError, OSError) as error:
        print(f"training.prepare: {error}", file=sys.stderr)
        return 2
    return _run(todo, arguments.workers)


def _run(todo: list[Job], workers: int) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = failed = 0
    with (
        ProcessPoolExecutor(min(workers, len(todo))) as pool,
        tqdm(total=len(todo), unit="case", dynamic_ncols=True) as bar,
    ):
        futures = {pool.submit(prepare, job): job.name for job in todo}
        for future in as_completed(futures):
            try:
                warnings = future.result()
                done += warnings is not None
                for warning in warnings or ():
                    tqdm.write(f"{futures[future]}: {warning}", file=sys.stderr)
            except CaseError as error:
                failed += 1
                tqdm.write(f"FAILED {error}", file=sys.stderr)
            except BrokenProcessPool:
                tqdm.write("FAILED: a worker was killed (out of memory? fewer --workers)", file=sys.stderr)
                return 1
            bar.update()
    print(f"{done} prepared, {len(todo) - done - failed} were there already, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
