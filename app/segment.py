"""Stream a volume's slices through the network; the device never holds the volume (paper section 3.2).

A step of slices goes to the device as int16 and comes back as uint8 labels: clip, z-score, network,
bias and argmax all happen there.
"""

from collections.abc import Callable

import numpy as np
import torch

from app.network import OUTPUT_STRIDE
from app.postprocess import decide
from app.preprocess import WINDOW_HU, normalise


def segment(
    network: torch.nn.Module,
    hu: np.ndarray,
    statistics_hu: tuple[float, float],
    slices_per_step: int,
    frame_px: int = 512,
    on_step: Callable[[int], None] = lambda slices_done: None,
) -> np.ndarray:
    """Labels of a volume, before the small-region filter.

    Args:
        network: In evaluation mode; its parameters tell the device and dtype to work in.
        hu: int16 (z, y, x).
        statistics_hu: Mean and standard deviation of the clipped volume.
        slices_per_step: Slices on the device at a time.
        frame_px: Slices are centred in at least this square (air around them), as training framed them.
        on_step: Called after each step with the number of slices done.

    Returns:
        uint8 (z, y, x), 0..13.

    Raises:
        torch.OutOfMemoryError: A step did not fit; nothing is kept, try a smaller one.
    """
    parameter = next(network.parameters())
    depth, height, width = hu.shape
    framed_height, framed_width = (max(frame_px, -(-size // OUTPUT_STRIDE) * OUTPUT_STRIDE) for size in (height, width))
    top, left = (framed_height - height) // 2, (framed_width - width) // 2
    centre = (..., slice(top, top + height), slice(left, left + width))
    labels = np.empty(hu.shape, np.uint8)
    with torch.inference_mode():
        for start in range(0, depth, slices_per_step):
            part = slice(start, min(start + slices_per_step, depth))
            slices = torch.from_numpy(hu[part]).to(parameter.device)
            framed = slices.new_full((len(slices), 1, framed_height, framed_width), WINDOW_HU[0])
            framed[centre] = slices[:, None]
            images = normalise(framed, *statistics_hu).to(parameter.dtype, memory_format=torch.channels_last)
            labels[part] = decide(network(images)[centre]).cpu().numpy()
            on_step(part.stop)
    return labels
