"""A look at a few slabs first: a stretch of the scan between two that hold no organ is left out.

Not in the paper. A CT of abdomen and pelvis holds organs in two thirds of its length, one of the whole body in half.
The network sees a slab that is looked at as it sees the others, so its logits serve the mask too: a look costs nothing.
"""

from collections.abc import Mapping
from itertools import pairwise

LOOK_MM = 24.0  # from one look to the next, at most; benchmarks/README.md has what longer stretches cost


def slabs_per_look(slab_mm: float, look_mm: float = LOOK_MM) -> int:
    """How many slabs it is from one look to the next, at least 1: every slab is looked at, and none left out."""
    return max(1, int(look_mm / slab_mm))


def looks(slabs: int, step: int) -> list[int]:
    """The slabs that are looked at: every so many, and the last."""
    return [*range(0, slabs - 1, step), slabs - 1]


def runs_with_organs(holds_organ: Mapping[int, bool]) -> list[range]:
    """The slabs to segment: all between two neighbouring looks, these too, if either holds an organ.

    Args:
        holds_organ: Of each slab that was looked at, in their order.

    Returns:
        Runs of slabs, in their order; between two lies at least one slab.
    """
    runs: list[range] = []
    for below, above in pairwise(holds_organ):
        if holds_organ[below] or holds_organ[above]:
            start = runs.pop().start if runs and below in runs[-1] else below
            runs.append(range(start, above + 1))
    return runs
