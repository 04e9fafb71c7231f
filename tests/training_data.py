"""Small stores of phantom slices, and batches of them, for the tests of training."""

from pathlib import Path

import numpy as np

from app.labels import NUM_CLASSES
from app.preprocess import clipped_statistics
from training.batch import Batch
from training.config import Config
from training.loading import StoredBatches
from training.phantom import phantom
from training.sampling import Sampler
from training.split import split
from training.store import Case, read_cases, write_case

ALL = tuple(range(1, NUM_CLASSES))
# What a test is about is drawn; the rest of the augmentation is off.
PLAIN = dict(rotation_deg=0.0, organ_offset_hu=0.0, organ_scale=0.0, slice_offset_hu=0.0, slice_scale=0.0)


def add_case(store: Path, name: str, hu, labels, spacing_mm=(5.0, 1.0, 1.0), annotated=ALL, **changes) -> Case:
    """Store a volume as it is, with its own statistics."""
    mean_hu, std_hu = clipped_statistics(hu)
    pixels = [] if labels is None else [np.bincount(plane.ravel(), minlength=256)[:14].tolist() for plane in labels]
    values = dict(
        name=name, patient=name, shape=hu.shape, spacing_mm=spacing_mm, mean_hu=mean_hu, std_hu=std_hu,
        saturated_hu=None, annotated=annotated if labels is not None else (), organ_pixels=pixels,
        image_sha256="", labels_sha256=None,
    )  # fmt: skip
    case = Case(**values | changes)
    write_case(store, case, hu, labels)
    return case


def phantom_store(store: Path, size_px: int, slices: list[int], labelled: int, unlabelled: int = 0) -> Path:
    """Phantoms p0, p1, ...: first the labelled ones, each the chosen slices of 40, as if shrunk from 512 pixels."""
    for k in range(labelled + unlabelled):
        hu, labels, spacing_mm = phantom(k, size_px)
        add_case(
            store,
            f"p{k}",
            hu[slices],
            labels[slices] if k < labelled else None,
            spacing_mm,
            settings={"shrink": 512 // size_px},
        )
    return store


def config(store: Path, out: Path, **changes) -> Config:
    """Settings of a run of seconds on a CPU."""
    values = dict(
        store=str(store), out=str(out), device="cpu", bf16=False, workers=0, crop_px=32,
        labelled_per_batch=4, unlabelled_per_batch=4, warmup_share=0.0, log_every=1,
    )  # fmt: skip
    return Config(**values | changes)


def sampler(store: Path, settings: Config, labelled: bool = True) -> Sampler:
    """Of a whole store."""
    cases = split(read_cases(store), settings)
    return Sampler(cases.labelled if labelled else cases.unlabelled, settings, labelled)


def batch(store: Path, settings: Config, step: int = 0, labelled: bool = True) -> Batch:
    """The whole batch of a step."""
    return StoredBatches(sampler(store, settings, labelled), store, slice(None))[step]
