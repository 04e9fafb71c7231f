"""Equations 1 and 2 of the paper as sums over pixels, their marginal form, and a soft Dice term.

Missing annotation: a pixel marked UNCERTAIN is background or one of the organs that its case does not
annotate, and its target is log(p_background + p_missing). Everywhere else the plain cross-entropy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.store import UNCERTAIN


def marginal_cross_entropy(logits: Tensor, target: Tensor, missing: Tensor) -> Tensor:
    """Cross-entropy a pixel, marginal where the target is UNCERTAIN (eq. 1's l_ce).

    Args:
        logits: (N, C, H, W) float32.
        target: (N, H, W) uint8 or int64; 0..C-1 or UNCERTAIN.
        missing: (N, C) bool, the organs that the sample's case does not annotate.

    Returns:
        (N, H, W) float32; the mean over pixels is eq. 1 for one branch.
    """
    log_p = F.log_softmax(logits, dim=1)
    loss = F.nll_loss(log_p, target.long(), ignore_index=UNCERTAIN, reduction="none")
    n, y, x = torch.nonzero(target == UNCERTAIN, as_tuple=True)
    if len(n):
        hidden = missing.clone()
        hidden[:, 0] = True  # background
        loss[n, y, x] = -log_p[n, :, y, x].masked_fill(~hidden[n], -torch.inf).logsumexp(dim=1)
    return loss


def soft_dice_loss(logits: Tensor, target: Tensor, missing: Tensor) -> Tensor:
    """1 - soft Dice, averaged over the organs present in the batch (not in the paper; Milletari et al., 2016).

    Sums run over the whole batch, so that an organ absent from one slice is not a loss of 1 there. A slice
    whose case does not annotate an organ counts neither for nor against that organ.

    Args:
        logits, target, missing: As for `marginal_cross_entropy`.

    Returns:
        Scalar float32; 0 if no organ is present.
    """
    p = logits.softmax(dim=1)  # (N, C, H, W)
    counted = (~missing).float()  # (N, C)
    target = target.long()
    truth_size = torch.stack([(target == c).sum() for c in range(logits.shape[1])]).float()
    in_truth = p.gather(1, target.where(target != UNCERTAIN, 0)[:, None])[:, 0]  # p of the true class
    overlap = torch.zeros_like(truth_size).scatter_add(
        0, target.where(target != UNCERTAIN, 0).flatten(), in_truth.flatten()
    )
    p_size = (p.sum(dim=(2, 3)) * counted).sum(dim=0)
    present = truth_size > 0
    present[0] = False
    if not present.any():
        return logits.sum() * 0.0
    return 1 - (2 * overlap[present] / (p_size[present] + truth_size[present])).mean()


def pseudo_labels(logits: Tensor) -> Tensor:
    """Hard pseudo-labels Y of a branch (section 2.2): (N, C, H, W) logits to (N, H, W) int64, without gradient."""
    return logits.detach().argmax(dim=1)
