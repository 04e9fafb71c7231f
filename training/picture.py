"""What the network sees, should say and says, side by side."""

import torch
from torch import Tensor

from app.labels import NUM_CLASSES, ORGANS
from training.store import UNCERTAIN

_COLOURS = torch.zeros(256, 3)
_COLOURS[[organ.label for organ in ORGANS]] = torch.tensor([organ.colour for organ in ORGANS]) / 255
_COLOURS[UNCERTAIN] = 0.5


def panel(images: Tensor, truth: Tensor, predictions: list[Tensor]) -> Tensor:
    """One row a slice: the image, its labels over it (grey: uncertain), then each prediction over it.

    Args:
        images: (N, 1, H, W) z-scored.
        truth: uint8 (N, H, W), 0..13 or UNCERTAIN.
        predictions: (N, H, W) each, one a branch.

    Returns:
        float32 (3, N * H, (2 + predictions) * W) on the CPU, 0..1.
    """
    grey = ((images.cpu()[:, 0, :, :, None] + 1) / 3).clamp(0, 1).expand(-1, -1, -1, 3)  # (N, H, W, 3)
    columns = [grey]
    for labels in (truth, *predictions):
        labels = labels.cpu().long()
        assert labels.max() < NUM_CLASSES or labels.max() == UNCERTAIN
        columns.append(torch.where((labels > 0)[..., None], 0.5 * grey + 0.5 * _COLOURS[labels], grey))
    return torch.cat(columns, dim=2).flatten(0, 1).permute(2, 0, 1)
