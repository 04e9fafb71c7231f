"""A training batch: which slices, how they are augmented, and their pixels.

The first two are a pure function of the seed and the step (`training.sampling`), and need no pixel. The pixels come
from the disk (`training.loading`) or from the device's memory (`training.resident`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

Array = Any  # numpy's where it is drawn, a tensor in a batch


class Slices(NamedTuple):
    """What is known of a batch's N slices without their pixels.

    Attributes:
        entry: int64 (N,), position in `Sampler.entries`.
        size_px: int64 (N, 2), height and width of the stored slice, which lies in the middle of its frame.
        organ: int64 (N,), label value that the slice was drawn for; 0: for none.
        negative: bool (N,), the slice's case is labelled and shows no organ anywhere.
        unannotated: bool (N, 14), organs that the slice's case does not annotate.
        mean_hu, std_hu: float32 (N,), of the case's clipped volume.
        saturated_hu: float32 (N,), where the case's HU were cut off; infinity if they were not.
    """

    entry: Array
    size_px: Array
    organ: Array
    negative: Array
    unannotated: Array
    mean_hu: Array
    std_hu: Array
    saturated_hu: Array


class Plan(NamedTuple):
    """A batch without its pixels: the slices, and what each augmentation drew (`training.augmentations.Draws`)."""

    slices: Slices
    draws: Any


class Batch(NamedTuple):
    """A batch as `training.augmentations.augment` takes it.

    Attributes:
        hu: int16 (N, frame, frame).
        labels: uint8 (N, frame, frame), 0..13 or UNCERTAIN.
        slices, draws: Of its plan, as tensors.
    """

    hu: Tensor
    labels: Tensor
    slices: Slices
    draws: Any


def each(function: Callable, values: Any) -> Any:
    """Nested tuples of arrays or tensors, with the function applied to each array or tensor."""
    if isinstance(values, tuple):
        return type(values)(*(each(function, value) for value in values))
    return function(values)
