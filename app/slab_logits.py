"""From slabs to logits: a step of them at a time goes through the network, those that are looked at first.

On the device happen the frame of air, clip, z-score and network.
"""

from collections.abc import Iterator, Sequence

import torch

from app.look import Look, is_of_use, looked_at, stretches_with_organs
from app.network import OUTPUT_STRIDE, DeepLabV3Plus
from app.postprocess import labels_from_logits
from app.preprocess import WINDOW_HU, normalise
from app.slabs import Slabs


class Float16Overflow(RuntimeError):
    """float16 was too small for the logits of a scan: bfloat16 and float32 are not."""


class SlabLogits:
    """The logits of a volume's slabs, at a quarter of their frame's size.

    Args:
        network: In evaluation mode; its parameters tell the device and dtype to work in.
        slabs: Of the volume.
        statistics_hu: Mean and standard deviation of the clipped volume.
        slabs_per_step: On the device at a time.
        frame_px: The network sees at least this square; smaller slabs get air around them.

    Attributes:
        centre: Where in its frame a slab is, as an index of (..., y, x).
    """

    def __init__(
        self,
        network: DeepLabV3Plus,
        slabs: Slabs,
        statistics_hu: tuple[float, float],
        slabs_per_step: int,
        frame_px: int,
    ) -> None:
        self._network, self._slabs, self._statistics_hu, self._step = network, slabs, statistics_hu, slabs_per_step
        self._parameter = next(network.parameters())
        height, width = slabs.size_px
        self._framed = tuple(max(frame_px, -(-size // OUTPUT_STRIDE) * OUTPUT_STRIDE) for size in (height, width))
        top, left = (self._framed[0] - height) // 2, (self._framed[1] - width) // 2
        self.centre = (..., slice(top, top + height), slice(left, left + width))

    def runs(self, slabs_per_look: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Logits from the lowest slab up, but for stretches between looks that show no organ.

        Args:
            slabs_per_look: From one slab that is looked at to the next; 1: no slab is left out.

        Returns:
            The first slab of the run that these belong to, and the run's next logits: (slabs, 14, h, w).

        Raises:
            torch.OutOfMemoryError: A step did not fit the device.
            Float16Overflow: Its logits are no numbers.
            RuntimeError: The device failed.
        """
        slabs = len(self._slabs)
        if not is_of_use(slabs, slabs_per_look):
            yield from ((0, logits) for _, logits in self._steps(range(slabs)))
            return
        run = end = -1
        for below, above in stretches_with_organs(self._looks(looked_at(slabs, slabs_per_look))):
            if below.slab != end:
                run = below.slab
                yield run, below.logits
            yield from ((run, logits) for _, logits in self._steps(range(below.slab + 1, above.slab)))
            yield run, above.logits
            end = above.slab

    def _looks(self, indices: Sequence[int]) -> Iterator[Look]:
        for part, logits in self._steps(indices):
            shows_organ = labels_from_logits(logits)[self.centre].flatten(1).any(dim=1).tolist()
            yield from map(Look, part, shows_organ, logits[:, None].unbind())

    def _steps(self, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        for first in range(0, len(indices), self._step):
            part = indices[first : first + self._step]
            yield part, self._compute(part)

    def _compute(self, indices: Sequence[int]) -> torch.Tensor:
        slices = torch.from_numpy(self._slabs[indices]).to(self._parameter.device)
        frames = slices.new_full((len(slices), 1, *self._framed), WINDOW_HU[0])
        frames[self.centre] = slices[:, None]
        images = normalise(frames, *self._statistics_hu).to(self._parameter.dtype, memory_format=torch.channels_last)
        logits = self._network.quarter_logits(images)
        if logits.dtype == torch.float16 and not logits.sum(dtype=torch.float32).isfinite():
            raise Float16Overflow("the logits overflow float16")  # argmax of NaN would look like any mask
        return logits
