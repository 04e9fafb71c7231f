"""Equations 1 and 2 of the paper as a loss a pixel, its marginal form, and a soft Dice term.

Partial labels: a pixel marked UNCERTAIN is background or one of the organs that its case does not
annotate, and its target is log(p_background + p_unannotated). Everywhere else the plain cross-entropy.
A slice without labels is the limit of that: every pixel uncertain, every organ unannotated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.distributed import sum_over_processes
from training.store import UNCERTAIN


def marginal_cross_entropy(logits: Tensor, target: Tensor, unannotated: Tensor) -> Tensor:
    """Cross-entropy a pixel, marginal where the target is UNCERTAIN (eq. 1's l_ce).

    Args:
        logits: (N, C, H, W) float32.
        target: (N, H, W) uint8 or int64; 0..C-1 or UNCERTAIN.
        unannotated: (N, C) bool, the organs that the sample's case does not annotate.

    Returns:
        (N, H, W) float32; the mean over pixels is eq. 1 for one branch. Every pixel counts, so the mean over
        the equal parts of several processes is the mean over the batch.
    """
    log_p = F.log_softmax(logits, dim=1)
    known = F.nll_loss(log_p, target.long(), ignore_index=UNCERTAIN, reduction="none")
    impossible = ~_possible(unannotated)[:, :, None, None]
    marginal = -log_p.masked_fill(impossible, -torch.inf).logsumexp(dim=1)
    return torch.where(target == UNCERTAIN, marginal, known)


def _possible(unannotated: Tensor) -> Tensor:
    """What an uncertain pixel may be, (N, C): the unannotated organs, and background."""
    possible = unannotated.clone()
    possible[:, 0] = True
    return possible


def soft_dice_loss(logits: Tensor, target: Tensor, unannotated: Tensor) -> Tensor:
    """1 - soft Dice, averaged over the organs present in the batch (not in the paper; Milletari et al., 2016).

    Sums run over the whole batch, on all processes, so that an organ absent from one slice is not a loss of 1
    there. A slice whose case does not annotate an organ counts neither for nor against that organ.

    Args:
        logits, target, unannotated: As for `marginal_cross_entropy`.

    Returns:
        Scalar float32; 0 if no organ is present.
    """
    p = logits.softmax(dim=1)  # (N, C, H, W)
    classes = range(logits.shape[1])
    known = target.where(target != UNCERTAIN, 0).long()
    in_truth = p.gather(1, known[:, None])[:, 0]  # (N, H, W), p of the true class
    overlap = torch.stack([(in_truth * (target == c)).sum() for c in classes])
    truth_size = torch.stack([(target == c).sum() for c in classes]).float()
    p_size = (p.sum(dim=(2, 3)) * ~unannotated).sum(dim=0)
    overlap, truth_size, p_size = sum_over_processes(torch.stack([overlap, truth_size, p_size]))
    present = (truth_size > 0) & (torch.arange(len(truth_size), device=truth_size.device) > 0)
    dice = 2 * overlap / (p_size + truth_size).clamp(min=1e-6)
    return torch.where(present, 1 - dice, 0).sum() / present.sum().clamp(min=1)


def pseudo_labels(logits: Tensor, known: Tensor, unannotated: Tensor, min_confidence: float = 0.0) -> Tensor:
    """Hard pseudo-labels Y of a branch (section 2.2): the likeliest of what each pixel may be.

    Args:
        logits: (N, C, H, W).
        known: (N, H, W) uint8; where it is not UNCERTAIN, it is the label.
        unannotated: (N, C) bool, what an uncertain pixel may be besides background.
        min_confidence: A pixel whose likeliest class is less probable stays UNCERTAIN (Sohn et al., 2020: FixMatch).

    Returns:
        (N, H, W) int64, without gradient; plainly argmax where nothing is known and everything unannotated.
    """
    impossible = ~_possible(unannotated)[:, :, None, None]
    possible_logits = logits.detach().masked_fill(impossible, -torch.inf)
    likeliest = possible_logits.argmax(dim=1)
    if min_confidence:
        p = possible_logits.float().softmax(dim=1).amax(dim=1)
        likeliest = torch.where(p < min_confidence, UNCERTAIN, likeliest)
    return torch.where(known == UNCERTAIN, likeliest, known.long())
