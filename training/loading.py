"""Batches whose slices are read from the store by loader processes.

A slice costs its loader about 4 ms, mostly decompression: 15 of them load 3,500 slices a second.
"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.batch import Batch, each
from training.sampling import Sampler
from training.store import Case, read_pixels

AIR_HU = -1024


class StoredBatches(Dataset):
    """Batches by step: the slices `mine` of each.

    Args:
        sampler: What the batches are made of.
        store: Folder of the slice store.
        mine: This process's part of each batch.
    """

    def __init__(self, sampler: Sampler, store: Path, mine: slice):
        self.sampler, self.store, self.mine = sampler, store, mine

    def __getitem__(self, step: int) -> Batch:
        plan = each(lambda values: values[self.mine], self.sampler.plan(step))
        frame_px = self.sampler.frame_px
        entries = [self.sampler.entries[i] for i in plan.slices.entry]
        framed = [read_framed(self.store, case, z, frame_px) for case, z in entries]
        hu, labels = (torch.from_numpy(np.stack(volume)) for volume in zip(*framed, strict=True))
        return Batch(hu, labels, *each(torch.from_numpy, plan))


def read_framed(store: Path, case: Case, z: int, frame_px: int) -> tuple[np.ndarray, np.ndarray]:
    """A slice in the middle of a square of air, which is background: HU int16 and labels uint8, (frame, frame) each."""
    hu, labels = read_pixels(store, case, z)
    middle = tuple(slice((frame_px - size) // 2, (frame_px - size) // 2 + size) for size in hu.shape)
    framed_hu = np.full((frame_px, frame_px), AIR_HU, np.int16)
    framed_labels = np.zeros((frame_px, frame_px), np.uint8)
    framed_hu[middle], framed_labels[middle] = hu, labels
    return framed_hu, framed_labels


def loader(sampler: Sampler, store: Path, mine: slice, steps: range, workers: int, pin: bool) -> DataLoader:
    """The batches of steps, read ahead by `workers` processes; 0 reads them in this one.

    Args:
        sampler, store, mine: Of `StoredBatches`.
        steps: Of the run.
        workers: Loader processes.
        pin: Whether to put the batches where a GPU fetches them without waiting.
    """
    return DataLoader(
        StoredBatches(sampler, store, mine), batch_size=None, sampler=steps, pin_memory=pin,
        num_workers=workers, prefetch_factor=2 if workers else None,
    )  # fmt: skip
