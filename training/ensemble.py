"""Branches as one network, which answers with the mean of their logits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from app.network import DeepLabV3Plus


class Ensemble(nn.Module):
    """What segments as a branch does, at the cost of all of them.

    Args:
        branches: On one device.
    """

    def __init__(self, branches: Sequence[DeepLabV3Plus]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def quarter_logits(self, x: Tensor) -> Tensor:
        """Logits (N, 14, H / 4, W / 4) of images (N, 1, H, W)."""
        return torch.stack([branch.quarter_logits(x) for branch in self.branches]).mean(dim=0)  # type: ignore[operator]
