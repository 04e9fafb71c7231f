"""From slabs to logits: what the network is given, a step at a time, and what it has seen already.

On the device happen the frame of air, clip, z-score and network; what a look has shown is not computed again.
"""

from collections.abc import Iterator, Sequence

import torch

from app.network import OUTPUT_STRIDE, DeepLabV3Plus
from app.postprocess import labels_from_logits
from app.preprocess import WINDOW_HU, normalise
from app.slabs import Slabs


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
        self._looked: dict[int, torch.Tensor] = {}
        height, width = slabs.size_px
        self._framed = tuple(max(frame_px, -(-size // OUTPUT_STRIDE) * OUTPUT_STRIDE) for size in (height, width))
        top, left = (self._framed[0] - height) // 2, (self._framed[1] - width) // 2
        self.centre = (..., slice(top, top + height), slice(left, left + width))

    def look(self, indices: Sequence[int]) -> Iterator[bool]:
        """Whether each of these slabs shows an organ. Their logits are kept in the CPU's memory until asked for."""
        for first in range(0, len(indices), self._step):
            part = indices[first : first + self._step]
            logits = self._compute(part)
            self._looked.update(zip(part, logits.cpu(), strict=True))
            yield from labels_from_logits(logits)[self.centre].flatten(1).any(dim=1).tolist()

    def __call__(self, part: Sequence[int]) -> torch.Tensor:
        """Logits of slabs: (slabs, 14, h, w).

        Raises:
            torch.OutOfMemoryError: They did not fit the device.
            RuntimeError: The device failed, or float16 was too small for the logits.
        """
        unseen = [index for index in part if index not in self._looked]
        if len(unseen) == len(part):
            return self._compute(part)
        fresh = iter(self._compute(unseen)) if unseen else iter(())
        device = self._parameter.device
        return torch.stack([self._looked.pop(i).to(device) if i in self._looked else next(fresh) for i in part])

    def _compute(self, indices: Sequence[int]) -> torch.Tensor:
        slices = torch.from_numpy(self._slabs[indices]).to(self._parameter.device)
        frames = slices.new_full((len(slices), 1, *self._framed), WINDOW_HU[0])
        frames[self.centre] = slices[:, None]
        images = normalise(frames, *self._statistics_hu).to(self._parameter.dtype, memory_format=torch.channels_last)
        logits = self._network.quarter_logits(images)
        if logits.dtype == torch.float16 and not logits.sum(dtype=torch.float32).isfinite():
            raise RuntimeError("the logits overflow float16")  # argmax of NaN would look like any mask
        return logits
