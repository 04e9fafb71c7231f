"""Two branches as one network, which answers with the mean of their logits: the ceiling of what each may learn."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.network import DeepLabV3Plus, upsample_4x


class Ensemble(nn.Module):
    """What segments as a branch does, at the cost of all of them.

    Args:
        branches: On one device.
    """

    def __init__(self, branches: Sequence[DeepLabV3Plus]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 14, H, W) of images (N, 1, H, W)."""
        return upsample_4x(self.quarter_logits(x))

    def quarter_logits(self, x: Tensor) -> Tensor:
        """Logits (N, 14, H / 4, W / 4)."""
        return torch.stack([branch.quarter_logits(x) for branch in self.branches]).mean(dim=0)  # type: ignore[operator]
