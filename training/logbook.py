"""What a run tells while it goes on: a progress bar, and TensorBoard's curves and pictures."""

import math
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.method import Examples
from training.picture import panel

PICTURED_SLICES = 4


class Logbook:
    """Of one run.

    Args:
        folder: For TensorBoard's files.
        step: That the run goes on from; what was logged beyond it is taken back.
        total_steps: None if the run ends by the clock.
        slices_per_step: On all processes.
    """

    def __init__(self, folder: str, step: int, total_steps: int | None, slices_per_step: int):
        self.writer = SummaryWriter(folder, purge_step=step)
        self.bar = tqdm(
            total=total_steps, initial=step, unit="step", dynamic_ncols=True,
            mininterval=1 if sys.stderr.isatty() else 30,
        )  # fmt: skip
        self.slices_per_step = slices_per_step
        self._step, self._time_s = step, time.monotonic()

    def losses(self, step: int, losses: dict[str, Tensor]) -> None:
        """Values of one step; waits for the device.

        Raises:
            FloatingPointError: One is not finite.
        """
        values = {name: value.item() for name, value in losses.items()}
        if not all(map(math.isfinite, values.values())):
            raise FloatingPointError(f"step {step}: {values}")
        now_s = time.monotonic()
        values["slices_per_s"] = (step - self._step) * self.slices_per_step / (now_s - self._time_s)
        self._step, self._time_s = step, now_s
        self.bar.set_postfix({name.split("/")[-1]: f"{value:.3g}" for name, value in values.items()})
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, branches: Sequence[nn.Module], examples: Examples) -> None:
        """A few slices, their labels, and what the branches say of them."""
        images, labels = examples.images[:PICTURED_SLICES], examples.labels[:PICTURED_SLICES]
        predictions = []
        with torch.no_grad():
            for branch in branches:
                branch.eval()
                predictions.append(branch(images).argmax(dim=1))
                branch.train()
        self.writer.add_image("image, labels, predictions", panel(images, labels, predictions), step)

    def validation(self, step: int, dsc: list[dict[str, float]]) -> None:
        """DSC by organ, one dictionary a branch."""
        for k, mean in enumerate(dsc):
            tqdm.write(
                f"step {step} branch {k}: DSC " + "  ".join(f"{name} {value:.3f}" for name, value in mean.items())
            )
            for name, value in mean.items():
                self.writer.add_scalar(f"dsc_branch{k}/{name}", value, step)

    def close(self) -> None:
        self.bar.close()
        self.writer.close()
