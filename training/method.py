"""Cross pseudo supervision (section 2.2): equations 1 to 3, and the gradients of one step.

Two branches of one architecture, initialised differently. Each learns the labels of the labelled slices (eq. 1) and
the other's hard pseudo-labels of the unlabelled ones (eq. 2); the sum is eq. 3.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.cutmix import inside, mix
from training.losses import marginal_cross_entropy, pseudo_labels, soft_dice_loss


class Examples(NamedTuple):
    """What the networks learn from.

    Attributes:
        images: float32 (N, 1, H, W), z-scored.
        labels: uint8 (N, H, W), 0..13 or UNCERTAIN; UNCERTAIN in unlabelled slices, but 0 in the air beyond them.
        unannotated: bool (N, 14), organs that a slice's case does not annotate.
        weak_images: As images: what the pseudo-labels are made from, where that is not the images.
    """

    images: Tensor
    labels: Tensor
    unannotated: Tensor
    weak_images: Tensor | None = None


def supervised_loss(branch: nn.Module, labelled: Examples, dice_weight: float) -> Tensor:
    """Eq. 1 for one branch, plus the soft Dice term if it has a weight."""
    logits = branch(labelled.images).float()
    loss = marginal_cross_entropy(logits, labelled.labels, labelled.unannotated).mean()
    if dice_weight:
        loss = loss + dice_weight * soft_dice_loss(logits, labelled.labels, labelled.unannotated)
    return loss


def cps_loss(branch: nn.Module, images: Tensor, labels_of_other: Tensor) -> Tensor:
    """Eq. 2 for one branch: cross-entropy with the other branch's pseudo-labels, int64 (N, H, W); 0 where UNCERTAIN."""
    logits = branch(images).float()
    anything = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    return marginal_cross_entropy(logits, labels_of_other, anything).mean()


@torch.no_grad()
def pseudo_labels_of(branch: nn.Module, unlabelled: Examples, min_confidence: float) -> Tensor:
    """A branch's pseudo-labels, in evaluation mode: what inference would say but for its bias.

    The CPS authors make them in training mode, where dropout and the other slices of the batch have a say, and where
    these passes also go into batch norm's running statistics, a second time a step.
    """
    branch.eval()
    images = unlabelled.images if unlabelled.weak_images is None else unlabelled.weak_images
    labels = pseudo_labels(branch(images), unlabelled.labels, unlabelled.unannotated, min_confidence)
    branch.train()
    return labels


def gradients(
    branches: list[nn.Module],
    labelled: Examples,
    unlabelled: Examples | None,
    boxes: Tensor | None,
    lambda_: float,
    dice_weight: float,
    min_confidence: float,
    precision: Callable[[], AbstractContextManager],
) -> tuple[Tensor, Tensor]:
    """Add eq. 3's gradients to the branches' parameters, one branch after the other: half the memory of both at once.

    Args:
        branches: One or two networks in training mode, giving logits.
        labelled: Examples with labels.
        unlabelled: Examples without; None trains without them (lambda 0).
        boxes: CutMix's (N, 4) from `random_boxes`; None: no CutMix. As in Chen et al. (2021), pseudo-labels come from
            the unmixed slices, and the networks learn on mixed ones.
        lambda_: Weight of eq. 2.
        dice_weight: Of the soft Dice term.
        min_confidence: Of `pseudo_labels`.
        precision: Makes the context that the networks run in.

    Returns:
        Supervised loss and CPS loss, detached, means over the branches.
    """
    losses = []
    if unlabelled is not None:
        with precision():
            pseudo = [pseudo_labels_of(branch, unlabelled, min_confidence) for branch in branches]
        images = unlabelled.images
        if boxes is not None:
            mask = inside(boxes, *images.shape[-2:])
            images, pseudo = mix(images, mask), [mix(labels, mask) for labels in pseudo]
    for k, branch in enumerate(branches):
        with precision():
            supervised = supervised_loss(branch, labelled, dice_weight)
            cps = cps_loss(branch, images, pseudo[1 - k]) if unlabelled is not None else torch.zeros_like(supervised)
        (supervised + lambda_ * cps).backward()
        losses.append(torch.stack([supervised.detach(), cps.detach()]))
    supervised, cps = torch.stack(losses).mean(dim=0).unbind()
    return supervised, cps
