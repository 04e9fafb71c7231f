"""Which slice a training sample is, and with which augmentation: a pure function of (seed, position).

Position p of the run's endless sequence of samples always gives the same sample, whichever process asks
for it and whether or not the run was interrupted. Resuming needs the step alone, and the processes of
a distributed run simply take their parts of each batch.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from app.labels import NUM_CLASSES
from training.config import Config
from training.contrast import draw_washout
from training.distributed import part
from training.store import UNCERTAIN, Case, read_slice

AIR_HU = -1024
MIN_ORGAN_PX = 8  # fewer pixels of an organ do not make a slice one of that organ
WARP_POINT_PX = 64  # between the points of a smooth warp: about the size of an organ
LABELLED, UNLABELLED = 0, 1  # random streams


class Cases(NamedTuple):
    """Who is trained on with labels, who without, and who validates."""

    labelled: list[Case]
    unlabelled: list[Case]
    validation: list[Case]


def split(cases: list[Case], config: Config) -> Cases:
    """Divide a store's cases by patient: all cases of a patient are on one side.

    Only labelled whole scans validate: single slices of a patient that is left out are left out too.

    Raises:
        ValueError: The fold is unknown or has no labelled scan in the store, or `without_labels` names no patient.
    """
    held_out = set()
    if config.fold != -1:
        folds = json.loads(Path(config.folds).read_text())
        if not 0 <= config.fold < len(folds):
            raise ValueError(f"{config.folds} has folds 0 to {len(folds) - 1}, not {config.fold}")
        held_out = set(folds[config.fold])
    without_labels = set(filter(None, config.without_labels.split(",")))
    if unknown := without_labels - {case.patient for case in cases}:
        raise ValueError(f"--without-labels: no patient {', '.join(sorted(unknown))} in the store")
    training = [
        dataclasses.replace(case, annotated=(), organ_pixels=[]) if case.patient in without_labels else case
        for case in cases
        if case.patient not in held_out
    ]
    labelled = [case for case in training if case.annotated]
    unlabelled = training if config.cps_on_labelled else [case for case in training if not case.annotated]
    validation = [case for case in cases if case.patient in held_out and case.annotated and case.name == case.patient]
    if held_out and not validation:
        raise ValueError(f"fold {config.fold}: no labelled scan of {', '.join(sorted(held_out))} in the store")
    return Cases(labelled, unlabelled if config.lambda_ else [], validation)


def describe(cases: Cases) -> dict:
    """What was trained on, as plain types, for checkpoints and exported weights."""
    training = [*cases.labelled, *cases.unlabelled]
    spacings = [spacing for case in training for spacing in case.spacing_mm[1:]]
    slice_mm = [case.spacing_mm[0] for case in training for _ in range(case.shape[0])]
    return {
        "labelled": [case.name for case in cases.labelled],
        "unlabelled": [case.name for case in cases.unlabelled],
        "validation": [case.name for case in cases.validation],
        "patients": sorted({case.patient for case in training}),
        "annotated": sorted({label for case in cases.labelled for label in case.annotated}),
        "spacing_mm": [min(spacings), max(spacings)],  # in plane
        "slice_mm": statistics.median(slice_mm),  # a few single slices, which tell their distance, do not move it
    }


class SliceDataset(Dataset):
    """Samples by position.

    Args:
        store: Folder of the slice store.
        cases: The cases to draw from: all labelled, or all taken without labels.
        config: Sampling and augmentation settings.
        labelled: Whether the labels steer what is drawn (organs, empty slices) and how (jitter by organ).

    Item: dictionary of numpy arrays and numbers, `augment` takes a batch of them:
        hu int16 (frame, frame); labels uint8 (frame, frame), all UNCERTAIN in a case without labels; missing
        bool (14,), the organs not annotated; and the drawn augmentation.

    Raises:
        ValueError: No slice to draw from.
    """

    def __init__(self, store: str | Path, cases: list[Case], config: Config, labelled: bool):
        self.store, self.cases, self.config, self.labelled = Path(store), cases, config, labelled
        entries = [(k, z) for k, case in enumerate(cases) for z in range(case.shape[0])]
        if labelled:
            pixels = np.array([counts for case in cases for counts in case.organ_pixels]).reshape(-1, NUM_CLASSES)
            with_organ = pixels[:, 1:].sum(axis=1) > 0
            share = config.empty_share
            keep = round(with_organ.sum() * share / (1 - share)) if share < 1 else len(entries)
            empty = np.random.default_rng(config.seed).permutation(np.flatnonzero(~with_organ))[:keep]
            kept = np.sort(np.concatenate([np.flatnonzero(with_organ), empty]))
            entries, pixels = [entries[i] for i in kept], pixels[kept]
            by_organ = {c: np.flatnonzero(pixels[:, c] >= MIN_ORGAN_PX) for c in range(1, NUM_CLASSES)}
            self.by_organ = {c: indices for c, indices in by_organ.items() if len(indices)}
            self.true_hu = [i for i, (k, _) in enumerate(entries) if cases[k].saturated_hu is None]
        if not entries:
            raise ValueError(f"{store}: no {'labelled' if labelled else 'unlabelled'} slice to train on")
        self.entries = entries
        self._epoch, self._order = -1, None

    def __len__(self) -> int:
        """Slices in an epoch; positions go on beyond it."""
        return len(self.entries)

    def _choose(self, position: int, rng: np.random.Generator) -> tuple[int, int]:
        """Index into entries, and the organ to centre on (0: none)."""
        config, draw = self.config, rng.random()
        if self.labelled and self.by_organ and draw < config.organ_share:
            organ = int(rng.choice(list(self.by_organ)))
            return int(rng.choice(self.by_organ[organ])), organ
        if self.labelled and self.true_hu and draw < config.organ_share + config.true_hu_share:
            return int(rng.choice(self.true_hu)), 0
        epoch, i = divmod(position, len(self.entries))
        if epoch != self._epoch:
            self._order = np.random.default_rng([config.seed, self.labelled, epoch]).permutation(len(self.entries))
            self._epoch = epoch
        return int(self._order[i]), 0

    def __getitem__(self, position: int) -> dict:
        config = self.config
        stream = LABELLED if self.labelled else UNLABELLED
        rng = np.random.default_rng([config.seed, stream, position])
        entry, organ = self._choose(position, rng)
        case_index, z = self.entries[entry]
        case = self.cases[case_index]
        hu, labels = read_slice(self.store, case, z)
        if labels is None:
            labels = np.full(hu.shape, UNCERTAIN, np.uint8)
        hu, labels = _frame(hu, labels, config.frame_px, rng)

        missing = np.zeros(NUM_CLASSES, bool)
        missing[[c for c in range(1, NUM_CLASSES) if c not in case.annotated]] = True

        mean_hu = case.mean_hu + rng.uniform(-1, 1) * config.statistics_jitter * case.std_hu
        std_hu = case.std_hu * (1 + rng.uniform(-1, 1) * config.statistics_jitter)
        organ_offset = rng.normal(0, 1, NUM_CLASSES) * config.organ_offset_hu * self.labelled
        organ_scale = 1 + rng.normal(0, 1, NUM_CLASSES) * config.organ_scale * self.labelled
        organ_offset[0], organ_scale[0] = 0, 1  # background moves with the slice only
        return {
            "hu": hu,
            "labels": labels,
            "missing": missing,
            "mean_hu": np.float32(mean_hu),
            "std_hu": np.float32(std_hu),
            "affine": self._affine(labels, organ, rng),
            "organ_offset_hu": organ_offset.astype(np.float32),
            "organ_scale": organ_scale.astype(np.float32),
            "slice_offset_hu": np.float32(rng.normal() * config.slice_offset_hu),
            "slice_scale": np.float32(1 + rng.normal() * config.slice_scale),
            "noise_hu": np.float32(max(0.0, rng.uniform(-1, 1)) * config.noise_hu),
            "noise_at": rng.integers(0, 512, 2),
            "blur": np.float32(rng.choice([0, 1]) * rng.uniform(-1, 1) * config.blur),
            **_saturation(case, rng),
            "warp": self._warp(rng),
            "washout": draw_washout(rng, config.phase_share * self.labelled),
        }

    def _affine(self, labels: np.ndarray, organ: int, rng: np.random.Generator) -> np.ndarray:
        """(2, 3) float32 for affine_grid: crop position, rotation, zoom, in coordinates -1..1 of the frame."""
        config, crop, frame = self.config, self.config.crop_size, self.config.frame_px
        angle = np.deg2rad(rng.uniform(-1, 1) * config.rotation_deg)
        zoom = np.exp(rng.uniform(-1, 1) * np.log(config.zoom))
        centre = np.full(2, frame / 2)
        if crop < frame:
            centre = rng.uniform(crop / 2, frame - crop / 2, 2)  # (x, y)
            if organ:
                pixels = np.flatnonzero(labels == organ)
                if len(pixels):  # none if a window of a larger slice missed it
                    y, x = divmod(int(pixels[rng.integers(len(pixels))]), frame)
                    centre = np.array([x, y]) + rng.uniform(-crop / 4, crop / 4, 2)
        cos, sin = np.cos(angle) * zoom * crop / frame, np.sin(angle) * zoom * crop / frame
        tx, ty = 2 * centre / frame - 1
        return np.array([[cos, -sin, tx], [sin, cos, ty]], np.float32)

    def _warp(self, rng: np.random.Generator) -> np.ndarray:
        """(2, n, n) float32: displacement (x, y) at points over the crop, in coordinates -1..1 of the frame."""
        config = self.config
        points = max(4, round(config.crop_size / WARP_POINT_PX) + 1)
        std_px = max(0.0, rng.uniform(-1, 1)) * config.warp_px
        return (rng.normal(0, 2 * std_px / config.frame_px, (2, points, points))).astype(np.float32)


def _frame(hu: np.ndarray, labels: np.ndarray, frame: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pad a slice to the frame (air, background), centred; of a larger one take a random window."""
    framed_hu = np.full((frame, frame), AIR_HU, np.int16)
    framed_labels = np.zeros((frame, frame), np.uint8)
    source, target = [], []
    for size in hu.shape:
        length = min(size, frame)
        start = int(rng.integers(size - length + 1))
        source.append(slice(start, start + length))
        target.append(slice((frame - length) // 2, (frame - length) // 2 + length))
    framed_hu[tuple(target)], framed_labels[tuple(target)] = hu[tuple(source)], labels[tuple(source)]
    return framed_hu, framed_labels


def _saturation(case: Case, rng: np.random.Generator) -> dict:
    """How a slice's bright end is treated, so that a network cannot tell saturated training data from true HU.

    Saturated cases mostly get a plausible excess back (`excess_hu` inside bone, 0: none); true ones are
    now and then cut off (`saturate_at_hu`).
    """
    restore = case.saturated_hu is not None and rng.random() < 0.8
    cut = case.saturated_hu is None and rng.random() < 0.2
    return {
        "saturated_hu": np.float32(case.saturated_hu if case.saturated_hu is not None else np.inf),
        "excess_hu": np.float32(rng.uniform(100, 500) if restore else 0),
        "saturate_at_hu": np.float32(275 if cut else np.inf),
    }


class _Batches:
    """Positions of this process's part of every batch from `first_step` on."""

    def __init__(self, per_batch: int, first_step: int, total_steps: int, rank: int, processes: int):
        self.per_batch, self.part = per_batch, part(per_batch, rank, processes)
        self.steps = range(first_step, total_steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield list(range(step * self.per_batch, (step + 1) * self.per_batch))[self.part]

    def __len__(self) -> int:
        return len(self.steps)


def batches(
    dataset: SliceDataset, per_batch: int, first_step: int, total_steps: int, rank: int = 0, processes: int = 1
) -> DataLoader:
    """Loader of this process's part of the batches of steps first_step..total_steps - 1.

    A sample costs its worker about 4 ms, mostly decompression: 15 workers load 3,500 slices a second, more than
    one GPU trains on.

    Raises:
        ValueError: The batch does not divide among the processes.
    """
    config = dataset.config
    return DataLoader(
        dataset,
        batch_sampler=_Batches(per_batch, first_step, total_steps, rank, processes),
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        pin_memory=config.device != "cpu" and torch.cuda.is_available(),
    )
