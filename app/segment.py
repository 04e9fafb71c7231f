"""Stream a volume's slices through the network; the device never holds the volume (paper section 3.2).

A step of slices goes to the device as int16 and comes back as uint8 labels: clip, z-score, network,
bias and argmax all happen there.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch

from app.body import body_box
from app.device import compute_dtype, limit_memory, slices_per_step
from app.inference import Segmentation, segment_volume
from app.network import OUTPUT_STRIDE
from app.postprocess import decide
from app.preprocess import WINDOW_HU, normalise
from app.weights import Weights

log = logging.getLogger(__name__)

OnStep = Callable[[int], None]


def _unheard(slices_done: int) -> None:
    pass


class Segmenter:
    """A trained branch on a device, under a memory budget.

    Args:
        weights: The branch.
        device: Where to run; the CPU takes over when a GPU cannot go on.
        budget_mib: For all that this process takes on a GPU.

    Raises:
        torch.OutOfMemoryError: The GPU has no room for the network.

    Attributes:
        device: Where the network is now.
        used_device: Where the last volume was segmented.
    """

    def __init__(self, weights: Weights, device: torch.device, budget_mib: int):
        self.weights, self.budget_mib = weights, budget_mib
        limit_memory(device, budget_mib)
        self._move_to(device)
        self.used_device = device

    def _move_to(self, device: torch.device) -> None:
        self.device, self.dtype = device, compute_dtype(device)
        self._network = self.weights.network(device, self.dtype)

    def segment_volume(
        self,
        hu: np.ndarray,
        spacing_mm: tuple[float, float, float],
        on_step: OnStep = _unheard,
        stage: Callable[[str], AbstractContextManager] = nullcontext,
    ) -> Segmentation:
        """A CT in memory to clean labels.

        Args:
            hu: int16 (z, y, x), at least one voxel; rows run to anterior, columns to the right, slices upwards.
            spacing_mm: (z, y, x).
            on_step: Called with the number of slices done, after each step.
            stage: Entered with "preprocess", "segment" and "postprocess", each while that runs.
        """
        return segment_volume(partial(self, on_step=on_step), hu, spacing_mm, self.weights.spacing_mm, stage=stage)

    def __call__(self, hu: np.ndarray, statistics_hu: tuple[float, float], on_step: OnStep = _unheard) -> np.ndarray:
        """Labels of a volume, before `postprocess.clean`; arguments and result as for `segment`.

        Out of memory on a GPU halves the step down to one slice, then this case goes to the CPU; after any
        other failure of a GPU all that follow go there. Each is warned of.
        """
        frame = [max(size, self.weights.frame_px) for size in hu.shape[1:]]
        step = min(slices_per_step(self.device, self.budget_mib, frame[0] * frame[1]), len(hu))
        self.used_device = self.device
        while self.device.type != "cpu":
            try:
                return segment(self._network, hu, statistics_hu, step, self.weights.frame_px, on_step)
            except torch.OutOfMemoryError:
                pass  # until this block ends, the traceback holds what the step took
            except RuntimeError as error:
                cause = (str(error) or type(error).__name__).splitlines()[0]
                log.warning("the GPU failed (%s): going on with the CPU", cause)
                self._move_to(torch.device("cpu"))
                break
            torch.cuda.empty_cache()
            if step == 1:
                log.warning("one slice does not fit the GPU's memory budget: this case goes to the CPU")
                break
            log.warning("out of GPU memory at %d slices a step: trying %d", step, step // 2)
            step //= 2
        network, cpu = self._network, torch.device("cpu")
        self.used_device = cpu
        if self.device != cpu:
            network = self.weights.network(cpu, compute_dtype(cpu))
        step = slices_per_step(cpu, self.budget_mib, frame[0] * frame[1])
        return segment(network, hu, statistics_hu, step, self.weights.frame_px, on_step)


def segment(
    network: torch.nn.Module,
    hu: np.ndarray,
    statistics_hu: tuple[float, float],
    slices_per_step: int,
    frame_px: int = 512,
    on_step: OnStep = _unheard,
) -> np.ndarray:
    """Labels of a volume, slice by slice, of each the part where the body is.

    Args:
        network: A DeepLabV3Plus in evaluation mode; its parameters tell the device and dtype to work in.
        hu: int16 (z, y, x).
        statistics_hu: Mean and standard deviation of the clipped volume.
        slices_per_step: Slices on the device at a time.
        frame_px: The network sees at least this square, as in training; smaller slices get air around them.
        on_step: Called after each step with the number of slices done.

    Returns:
        uint8 (z, y, x), 0..13.

    Raises:
        torch.OutOfMemoryError: A step did not fit; nothing is kept, try a smaller one.
        RuntimeError: The device failed, or float16 was too small for the logits.
    """
    parameter = next(network.parameters())
    body = (slice(None), *body_box(hu, frame_px))
    labels = np.zeros(hu.shape, np.uint8)
    body_hu, body_labels = hu[body], labels[body]
    depth, height, width = body_hu.shape
    framed_height, framed_width = (max(frame_px, -(-size // OUTPUT_STRIDE) * OUTPUT_STRIDE) for size in (height, width))
    top, left = (framed_height - height) // 2, (framed_width - width) // 2
    centre = (..., slice(top, top + height), slice(left, left + width))
    with torch.inference_mode():
        for start in range(0, depth, slices_per_step):
            part = slice(start, min(start + slices_per_step, depth))
            slices = torch.from_numpy(body_hu[part]).to(parameter.device)
            framed = slices.new_full((len(slices), 1, framed_height, framed_width), WINDOW_HU[0])
            framed[centre] = slices[:, None]
            images = normalise(framed, *statistics_hu).to(parameter.dtype, memory_format=torch.channels_last)
            logits = network.quarter_logits(images)
            if logits.dtype == torch.float16 and not logits.sum(dtype=torch.float32).isfinite():
                raise RuntimeError("the logits overflow float16")  # argmax of NaN would be a mask like any other
            body_labels[part] = decide(logits)[centre].cpu().numpy()
            on_step(part.stop)
    return labels
