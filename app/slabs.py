"""Slabs: thin slices are averaged before the network sees them, its logits interpolated after.

Not in the paper. The network was trained on slices of some thickness: thinner ones are noisier than all it knows, and
each of them costs as much. A slab is the mean of neighbouring slices, as a scanner would have reconstructed it.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def slices_per_slab(slice_mm: float, trained_slice_mm: float) -> int:
    """How many slices come nearest to the thickness that was trained on, at least 1.

    For 3 mm that is 2 from 2 mm down (3 from 1.2 mm, 5 at 0.6 mm): benchmarks/README.md has what was measured.
    """
    return max(1, round(trained_slice_mm / slice_mm))


class Slabs:
    """A volume as slabs of so many slices. Where the last one would be thinner it takes slices of the one before too.

    Args:
        hu: int16 (z, y, x).
        slices: In a slab; a volume of fewer is one slab.

    Attributes:
        size_px: Height and width.
    """

    def __init__(self, hu: np.ndarray, slices: int) -> None:
        self._hu, self._slices, self.size_px = hu, min(slices, len(hu)), hu.shape[1:]
        self._starts = [*range(0, len(hu) - self._slices, self._slices), len(hu) - self._slices]
        self._centres = np.array(self._starts) + (self._slices - 1) / 2

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, indices: Sequence[int]) -> np.ndarray:
        """int16 HU (slabs, y, x)."""
        if self._slices == 1:
            return self._hu[indices]
        starts = (self._starts[index] for index in indices)
        thin = (self._hu[start : start + self._slices] for start in starts)
        return np.stack([np.rint(slices.mean(axis=0, dtype=np.float32)).astype(np.int16) for slices in thin])

    def slices_of(self, first: int, last: int) -> slice:
        """The slices of these slabs and of all between them."""
        return slice(self._starts[first], self._starts[last] + self._slices)

    def per_slice(self, steps: Iterable[Tensor], most: int, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Logits of slices from those of slabs, linear in z between the centres of slabs, constant beyond them.

        Args:
            steps: (n, 14, h, w), slabs in their order without a gap, n of them at a time; only the last one's are kept.
            most: Slices to give at a time.
            first: The lowest of these slabs.

        Returns:
            Which slices, and their logits: (slices, 14, h, w), float32 where they are interpolated.
        """
        done = self._starts[first]
        known = None
        for logits in steps:
            known = logits if known is None else torch.cat([known, logits])
            last = first + len(known) - 1
            yield from self._between(known, first, slice(done, int(self._centres[last]) + 1), most)
            known, first, done = known[-1:].clone(), last, int(self._centres[last]) + 1
        if known is not None:
            yield from self._between(known, first, slice(done, self.slices_of(first, first).stop), most)

    def _between(self, known: Tensor, first: int, slices: slice, most: int) -> Iterator[tuple[slice, Tensor]]:
        """Of slices whose neighbouring slabs are known, of which this is the first."""
        centres = self._centres[first : first + len(known)]
        for start in range(slices.start, slices.stop, most):
            part = slice(start, min(start + most, slices.stop))
            yield part, _interpolated(known, np.interp(np.arange(start, part.stop), centres, np.arange(len(known))))


def _interpolated(logits: Tensor, positions: np.ndarray) -> Tensor:
    below = np.floor(positions).astype(np.int64)
    if (positions == below).all():  # true for slabs of one slice: nothing to interpolate
        return logits[below]
    above = np.minimum(below + 1, len(logits) - 1)
    share = torch.tensor(positions - below, dtype=torch.float32, device=logits.device)
    return torch.lerp(logits[below].float(), logits[above].float(), share[:, None, None, None])
