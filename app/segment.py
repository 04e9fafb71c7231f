"""Stream a volume's slices through the network; the device never holds the volume (paper section 3.2).

A step of slices, or of slabs of thin ones, goes to the device as int16 and comes back as uint8 labels: clip, z-score,
network, bias and argmax all happen there.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch

from app.body import body_box
from app.device import compute_dtype, limit_memory, slices_per_step
from app.inference import Segmentation, segment_volume
from app.network import DeepLabV3Plus
from app.postprocess import labels_from_logits
from app.slab_logits import Float16Overflow, SlabLogits
from app.slabs import Slabs
from app.weights import Weights

log = logging.getLogger(__name__)

OnStep = Callable[[int], None]


def _ignore(slices_done: int) -> None:
    """What is called where nobody asks for progress."""


class Segmenter:
    """A trained branch on a device, under a memory budget.

    Args:
        weights: The branch.
        device: Where to run; the CPU takes over when a GPU cannot go on.
        budget_mib: For all that this process takes on a GPU.
        every_slice: Give the network every slice, however thin, as the paper does; else slabs of them, and only where
            a look finds organs.

    Raises:
        torch.OutOfMemoryError: The GPU has no room for the network.

    Attributes:
        device: Where the network is now.
        used_device: Where the last volume was segmented.
    """

    def __init__(self, weights: Weights, device: torch.device, budget_mib: int, every_slice: bool = False) -> None:
        self.weights, self.budget_mib, self.every_slice = weights, budget_mib, every_slice
        limit_memory(device, budget_mib)
        self._move_to(device)
        self.used_device = device

    def _move_to(self, device: torch.device) -> None:
        self.device, self.dtype = device, compute_dtype(device)
        self._network = self.weights.network(device, self.dtype)

    def warm_up(self) -> None:
        """One slice of tissue, to load the device's libraries, and to see whether the network runs on it at all.

        Raises:
            RuntimeError: It does not; torch.OutOfMemoryError where there is no room.
        """
        hu = np.zeros((1, self.weights.frame_px, self.weights.frame_px), np.int16)
        segment(self._network, hu, (0.0, 1.0), slices_per_step=1, frame_px=self.weights.frame_px)

    def segment_volume(
        self,
        hu: np.ndarray,
        spacing_mm: tuple[float, float, float],
        on_step: OnStep = _ignore,
        stage: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> Segmentation:
        """A CT in memory to clean labels.

        Args:
            hu: int16 (z, y, x), at least one voxel; rows run to anterior, columns to the right, slices upwards.
            spacing_mm: (z, y, x).
            on_step: Called with the number of slices done, after each step.
            stage: Entered with "preprocess", "segment" and "postprocess", each while that runs.
        """
        slice_mm = None if self.every_slice else self.weights.slice_mm
        segment_slices = partial(self, on_step=on_step)
        return segment_volume(segment_slices, hu, spacing_mm, self.weights.spacing_mm, slice_mm, stage=stage)

    def __call__(
        self,
        hu: np.ndarray,
        statistics_hu: tuple[float, float],
        on_step: OnStep = _ignore,
        slices_per_slab: int = 1,
        slabs_per_look: int = 1,
    ) -> np.ndarray:
        """Labels of a volume, before `postprocess.remove_small_components`; arguments and result as for `segment`.

        Out of memory on a GPU halves the step down to one slice, then this case goes to the CPU, as one does whose
        logits float16 cannot hold; after any other failure of a GPU all that follow go there. Each is warned of.
        """
        frame = [max(size, self.weights.frame_px) for size in hu.shape[1:]]
        step = min(slices_per_step(self.device, self.budget_mib, frame[0] * frame[1]), -(-len(hu) // slices_per_slab))
        segment_with = partial(
            segment,
            hu=hu,
            statistics_hu=statistics_hu,
            frame_px=self.weights.frame_px,
            on_step=on_step,
            slices_per_slab=slices_per_slab,
            slabs_per_look=slabs_per_look,
        )
        self.used_device = self.device
        while self.device.type != "cpu":
            try:
                return segment_with(self._network, slices_per_step=step)
            except torch.OutOfMemoryError:
                pass  # the step's memory is free only after this block, whose traceback holds it
            except Float16Overflow as error:
                log.warning("%s: this case goes to the CPU", error)
                break
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
        return segment_with(network, slices_per_step=step)


def segment(
    network: DeepLabV3Plus,
    hu: np.ndarray,
    statistics_hu: tuple[float, float],
    slices_per_step: int,
    frame_px: int = 512,
    on_step: OnStep = _ignore,
    slices_per_slab: int = 1,
    slabs_per_look: int = 1,
) -> np.ndarray:
    """Labels of a volume, slab by slab, where a look finds organs, and of each slab the part where the body is.

    Args:
        network: In evaluation mode; its parameters tell the device and dtype to work in.
        hu: int16 (z, y, x).
        statistics_hu: Mean and standard deviation of the clipped volume.
        slices_per_step: Slabs on the device at a time.
        frame_px: The network sees at least this square, as in training; smaller slices get air around them.
        on_step: Called after each step with the number of slices done.
        slices_per_slab: So many slices are averaged for the network; each slice gets labels of its own.
        slabs_per_look: From one slab that is looked at first to the next (`app.look`); 1: none is left out.

    Returns:
        uint8 (z, y, x), 0..13.

    Raises:
        torch.OutOfMemoryError: A step did not fit; nothing is kept, try a smaller one.
        Float16Overflow: As `SlabLogits` says.
        RuntimeError: The device failed.
    """
    labels = np.zeros(hu.shape, np.uint8)
    body = (slice(None), *body_box(hu, frame_px))
    slabs, body_labels = Slabs(hu[body], slices_per_slab), labels[body]
    with torch.inference_mode():
        network_on = SlabLogits(network, slabs, statistics_hu, slices_per_step, frame_px)
        for first, run in groupby(network_on.runs(slabs_per_look), key=itemgetter(0)):
            steps = (logits for _, logits in run)
            for part, logits in slabs.per_slice(steps, slices_per_step, first):
                body_labels[part] = labels_from_logits(logits)[network_on.centre].cpu().numpy()
                on_step(part.stop)
    on_step(len(hu))
    return labels
