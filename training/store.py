"""The slice store: one folder a case, one compressed blosc2 chunk a slice.

    STORE/CASE/hu.b2nd       int16 (z, y, x), HU, reoriented as inference sees it
    STORE/CASE/labels.b2nd   uint8 (z, y, x), 0..13 or UNCERTAIN; only if the case is labelled
    STORE/CASE/case.json     Case: spacing, statistics of the clipped volume, annotated organs, voxel counts

A case appears whole or not at all (written to a hidden folder, then renamed), so a store is appended
to, and an interrupted preparation resumed, without care. blosc2 gives random access to a slice.
"""

import dataclasses
import json
import os
import shutil
from functools import cached_property, lru_cache
from pathlib import Path

import blosc2
import numpy as np

# Its threads do not survive a fork: after a read, loader processes that were forked would wait for them for ever.
blosc2.set_nthreads(1)

# A pixel that is background or an organ that this case does not annotate: nobody knows which.
UNCERTAIN = 255


@dataclasses.dataclass(frozen=True)
class Case:
    """What training must know of a case besides its pixels.

    Attributes:
        name: Folder name in the store.
        patient: Scans and single slices of one patient share it; folds are made of patients.
        shape: (z, y, x).
        spacing_mm: (z, y, x).
        mean_hu, std_hu: Of the whole volume clipped to the window, as the true scan's would be.
        saturated_hu: HU were cut off here before we got the file; None if not.
        annotated: Label values that were looked for; empty for an unlabelled case.
        organ_pixels: (z, 14) pixel counts per slice and label value; empty if unlabelled.
        image_sha256, labels_sha256: Of the files the case was made from; labels None if unlabelled.
        settings: How it was made from them.
    """

    name: str
    patient: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    mean_hu: float
    std_hu: float
    saturated_hu: int | None
    annotated: tuple[int, ...]
    organ_pixels: list[list[int]]
    image_sha256: str
    labels_sha256: str | None
    settings: dict = dataclasses.field(default_factory=dict)

    @cached_property  # every slice of the case asks
    def negative(self) -> bool:
        """Whether organs were looked for and none is there: a head, a limb."""
        return bool(self.annotated) and not any(any(counts[1:]) for counts in self.organ_pixels)


def write_case(store: Path, case: Case, hu: np.ndarray, labels: np.ndarray | None) -> None:
    """Add a case, or replace it.

    Args:
        store: The store's folder, made if absent.
        case: Its description.
        hu: int16 (z, y, x).
        labels: uint8 (z, y, x), or None for an unlabelled case.
    """
    final, partial = store / case.name, store / f".{case.name}.{os.getpid()}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, volume in (("hu", hu), ("labels", labels)):
            if volume is not None:
                chunk = (1, *volume.shape[1:])
                blosc2.asarray(
                    np.ascontiguousarray(volume), chunks=chunk, urlpath=str(partial / f"{name}.b2nd"), mode="w",
                    cparams={"codec": blosc2.Codec.ZSTD, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE]},
                )  # fmt: skip
        (partial / "case.json").write_text(json.dumps(dataclasses.asdict(case)))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_case(store: Path, name: str) -> Case | None:
    """One case of a store; None if it is not there."""
    path = store / name / "case.json"
    return Case(**json.loads(path.read_text())) if path.exists() else None


def read_cases(store: Path) -> list[Case]:
    """All cases of a store, by name. Tuples come back as lists.

    Raises:
        FileNotFoundError: The store is missing or holds no case.
    """
    cases = [Case(**json.loads(path.read_text())) for path in sorted(store.glob("[!.]*/case.json"))]
    if not cases:
        raise FileNotFoundError(f"{store}: no prepared case; run `python -m training.prepare` first")
    return cases


@lru_cache(maxsize=512)  # an open array is a file handle and a few kB
def _open(path: Path) -> blosc2.NDArray:
    return blosc2.open(str(path), mode="r")


def read_pixels(store: Path, case: Case, z: int | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """A slice of a case, (y, x), or all of it, (z, y, x): int16 HU and uint8 labels, all UNCERTAIN if unlabelled."""
    hu = _open(store / case.name / "hu.b2nd")[z]
    if case.annotated:
        return hu, _open(store / case.name / "labels.b2nd")[z]
    return hu, np.full(hu.shape, UNCERTAIN, np.uint8)
