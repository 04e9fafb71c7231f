"""Which slice a training sample is, and with which augmentation: a pure function of (seed, position).

Position p of the run's endless sequence of samples always gives the same sample, whichever process asks
for it and whether or not the run was interrupted. Resuming needs the step alone, and the processes of
a distributed run simply take their parts of each batch.
"""

import json
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from app.labels import NUM_CLASSES
from training.config import Config
from training.store import Case, read_slice

FRAME_PX = 512  # slices are padded to this, as inference frames them; larger ones give a random window of it
AIR_HU = -1024
FOLDS = json.loads((Path(__file__).parent / "folds.json").read_text())
MIN_ORGAN_PX = 8  # fewer pixels of an organ do not make a slice one of that organ

LABELLED, UNLABELLED = 0, 1  # random streams


def split(cases: list[Case], fold: int) -> tuple[list[Case], list[Case]]:
    """Cases to train on and cases to validate on. All cases of a patient are on the same side.

    Only labelled whole scans validate: single slices of a patient that is left out are left out too.
    """
    if fold == -1:
        return cases, []
    held_out = set(FOLDS[fold])
    validation = [c for c in cases if c.patient in held_out and c.annotated and c.name == c.patient]
    return [c for c in cases if c.patient not in held_out], validation


class SliceDataset(Dataset):
    """Samples by position.

    Args:
        store: Folder of the slice store.
        cases: The cases to draw from: all labelled, or all taken without labels.
        config: Sampling and augmentation settings.
        labelled: Whether labels are returned and organs looked for.

    Item: dictionary of numpy arrays and numbers, `augment` takes a batch of them:
        hu int16 (512, 512), labels uint8 (512, 512), missing bool (14,), and the drawn augmentation.

    Raises:
        ValueError: No slice to draw from.
    """

    def __init__(self, store: str | Path, cases: list[Case], config: Config, labelled: bool):
        self.store, self.cases, self.config, self.labelled = Path(store), cases, config, labelled
        entries = [(k, z) for k, case in enumerate(cases) for z in range(case.shape[0])]
        if labelled:
            pixels = np.concatenate([np.array(case.organ_pixels).reshape(-1, NUM_CLASSES) for case in cases])
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
        if labels is None or not self.labelled:
            labels = np.zeros(hu.shape, np.uint8)
        hu, labels = _frame(hu, labels, rng)

        missing = np.zeros(NUM_CLASSES, bool)
        if self.labelled:
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
        }

    def _affine(self, labels: np.ndarray, organ: int, rng: np.random.Generator) -> np.ndarray:
        """(2, 3) float32 for affine_grid: crop position, rotation, zoom, in coordinates -1..1 of the frame."""
        config, crop = self.config, self.config.crop_size
        angle = np.deg2rad(rng.uniform(-1, 1) * config.rotation_deg)
        zoom = np.exp(rng.uniform(-1, 1) * np.log(config.zoom))
        centre = np.full(2, FRAME_PX / 2)
        if crop < FRAME_PX:
            centre = rng.uniform(crop / 2, FRAME_PX - crop / 2, 2)  # (x, y)
            if organ:
                y, x = np.nonzero(labels == organ)
                if len(y):  # none if a window of a larger slice missed it
                    pick = rng.integers(len(y))
                    centre = np.array([x[pick], y[pick]]) + rng.uniform(-crop / 4, crop / 4, 2)
        cos, sin = np.cos(angle) * zoom * crop / FRAME_PX, np.sin(angle) * zoom * crop / FRAME_PX
        tx, ty = 2 * centre / FRAME_PX - 1
        return np.array([[cos, -sin, tx], [sin, cos, ty]], np.float32)


def _frame(hu: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pad a slice to the frame (air, background), centred; of a larger one take a random window."""
    framed_hu = np.full((FRAME_PX, FRAME_PX), AIR_HU, np.int16)
    framed_labels = np.zeros((FRAME_PX, FRAME_PX), np.uint8)
    source, target = [], []
    for size in hu.shape:
        length = min(size, FRAME_PX)
        start = int(rng.integers(size - length + 1))
        source.append(slice(start, start + length))
        target.append(slice((FRAME_PX - length) // 2, (FRAME_PX - length) // 2 + length))
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
        self.part, self.per_batch = per_batch // processes, per_batch
        self.steps, self.rank = range(first_step, total_steps), rank

    def __iter__(self):
        for step in self.steps:
            start = step * self.per_batch + self.rank * self.part
            yield list(range(start, start + self.part))

    def __len__(self) -> int:
        return len(self.steps)


def batches(
    dataset: SliceDataset, per_batch: int, first_step: int, total_steps: int, rank: int = 0, processes: int = 1
) -> DataLoader:
    """Loader of this process's part of the batches of steps first_step..total_steps - 1.

    Raises:
        ValueError: The batch does not divide among the processes.
    """
    if per_batch % processes:
        raise ValueError(f"a batch of {per_batch} does not divide among {processes} processes")
    sampler = _Batches(per_batch, first_step, total_steps, rank, processes)
    workers = dataset.config.workers
    return DataLoader(dataset, batch_sampler=sampler, num_workers=workers, prefetch_factor=4 if workers else None)
