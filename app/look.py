"""A look at a few slabs first: a stretch of the scan between two that show no organ is left out.

Not in the paper. A CT of abdomen and pelvis holds organs in two thirds of its length, one of the whole body in half.
The network sees a slab that is looked at as it sees the others, so its logits serve the mask too: a look costs nothing.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

LOOK_MM = 24.0  # from one look to the next, at most; benchmarks/README.md has what longer stretches cost


class Look(NamedTuple):
    """What the network said of a slab: its index, whether an organ is there, and its logits, (1, 14, h, w)."""

    slab: int
    shows_organ: bool
    logits: torch.Tensor


def slabs_per_look(slab_mm: float, look_mm: float = LOOK_MM) -> int:
    """How many slabs it is from one look to the next, at least 1: every slab is looked at, and none left out."""
    return max(1, int(look_mm / slab_mm))


def is_of_use(slabs: int, step: int) -> bool:
    """Whether looks so far apart can leave a slab out."""
    return 1 < step < slabs


def looked_at(slabs: int, step: int) -> list[int]:
    """The slabs that are looked at: every so many, and the last."""
    return [*range(0, slabs - 1, step), slabs - 1]


def stretches_with_organs(looks: Iterable[Look]) -> Iterator[tuple[Look, Look]]:
    """Neighbouring looks of which either shows an organ: these two and all between them is segmented."""
    for below, above in pairwise(looks):
        if below.shows_organ or above.shows_organ:
            yield below, above
