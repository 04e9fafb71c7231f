import itertools
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from training.losses import marginal_cross_entropy, pseudo_labels, soft_dice_loss
from training.method import Examples, gradients
from training.store import UNCERTAIN


def logits_of(probabilities):
    """(1, C, 1, W) logits whose softmax are the given rows, one a pixel."""
    return torch.tensor(probabilities).log().T[None, :, None, :]


def random_sample(seed, classes=5, uncertain=True):
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(0, 3, (2, classes, 3, 4)), dtype=torch.float32)
    target = rng.integers(0, classes, (2, 3, 4))
    unannotated = rng.random((2, classes)) < 0.4
    unannotated[:, 0] = False
    if uncertain:
        target[rng.random(target.shape) < 0.4] = UNCERTAIN
    return logits, torch.tensor(target, dtype=torch.uint8), torch.tensor(unannotated)


def test_hand_worked_marginal_cross_entropy():
    # Three classes; organ 2 is not annotated. Pixels: known background, known organ 1, uncertain.
    logits = logits_of([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2]])
    target = torch.tensor([[[0, 1, UNCERTAIN]]], dtype=torch.uint8)
    loss = marginal_cross_entropy(logits, target, torch.tensor([[False, False, True]]))
    expected = [-math.log(0.5), -math.log(0.7), -math.log(0.5 + 0.2)]
    assert loss[0, 0].tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_marginal_cross_entropy_against_loops(seed):
    logits, target, unannotated = random_sample(seed)
    loss = marginal_cross_entropy(logits, target, unannotated)
    p = np.exp(logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    for n, y, x in np.ndindex(*target.shape):
        label = int(target[n, y, x])
        if label == UNCERTAIN:
            probability = p[n, 0, y, x] + sum(p[n, c, y, x] for c in range(5) if unannotated[n, c])
        else:
            probability = p[n, label, y, x]
        assert loss[n, y, x].item() == pytest.approx(-math.log(probability), abs=1e-4)


def test_what_may_be_anything_teaches_nothing():
    logits = torch.randn(1, 4, 2, 2, requires_grad=True)
    target = torch.full((1, 2, 2), UNCERTAIN, dtype=torch.uint8)
    loss = marginal_cross_entropy(logits, target, torch.tensor([[False, True, True, True]])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and logits.grad.abs().max() < 1e-6


def test_marginal_gradient_moves_only_between_possible_and_impossible():
    # Uncertain between background and organ 2: their ratio stays, organ 1 goes down.
    logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
    target = torch.tensor([[[UNCERTAIN]]], dtype=torch.uint8)
    marginal_cross_entropy(logits, target, torch.tensor([[False, False, True]])).sum().backward()
    # d/dz_c of -log(p0 + p2) = p_c - p_c [c possible] / (p0 + p2) = 1/3 - 1/2 or 1/3
    assert logits.grad.flatten().tolist() == pytest.approx([-1 / 6, 1 / 3, -1 / 6], abs=1e-6)


def test_hand_worked_soft_dice():
    logits = logits_of([[0.6, 0.4], [0.1, 0.9]])  # truth: background, organ
    target = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    loss = soft_dice_loss(logits, target, torch.zeros(1, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(1 - 2 * 0.9 / ((0.4 + 0.9) + 1), abs=1e-6)


def test_soft_dice_leaves_out_slices_that_do_not_annotate_the_organ():
    logits, target, _ = random_sample(1, uncertain=False)
    target[1][target[1] == 2] = UNCERTAIN  # the second case does not annotate organ 2
    unannotated = torch.zeros(2, 5, dtype=torch.bool)
    unannotated[1, 2] = True
    p = logits.softmax(dim=1).double().numpy()
    terms = []
    for c in range(1, 5):
        overlap = p_size = truth_size = 0.0
        for n in range(2):
            if unannotated[n, c]:
                continue
            truth = target[n].numpy() == c
            overlap += p[n, c][truth].sum()
            p_size += p[n, c].sum()
            truth_size += truth.sum()
        if truth_size:
            terms.append(1 - 2 * overlap / (p_size + truth_size))
    assert soft_dice_loss(logits, target, unannotated).item() == pytest.approx(np.mean(terms), abs=1e-5)


def test_soft_dice_of_slices_without_organs_is_0_and_has_a_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = soft_dice_loss(logits, torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(1, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_pseudo_labels_are_the_likeliest_of_what_a_pixel_may_be():
    logits = logits_of([[0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    known = torch.tensor([[[2, UNCERTAIN, UNCERTAIN]]], dtype=torch.uint8)
    unannotated = torch.tensor([[False, False, True]])  # an uncertain pixel is background or organ 2
    assert pseudo_labels(logits, known, unannotated).tolist() == [[[2, 0, 2]]]
    # Of background and organ 2 the likelier has 2 / 3 and 6 / 7; the first pixel's label is known, not guessed.
    assert pseudo_labels(logits, known, unannotated, 0.7).tolist() == [[[2, UNCERTAIN, 2]]]


class Constant(torch.nn.Module):
    """A branch that answers with the image, shifted: (N, 1, H, W) to (N, 3, H, W)."""

    SHIFT = torch.tensor([0.1, 0.2, 0.0])

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor(weights).view(1, 3, 1, 1))
        self.seen = []

    def forward(self, images):
        self.seen.append((images.clone(), self.training, torch.is_grad_enabled()))
        return images * self.weights + self.SHIFT.view(1, 3, 1, 1)


@pytest.mark.parametrize("cutmix", [False, True])
def test_equation_3_against_loops(cutmix):
    branches = [Constant([1.0, -0.5, 0.3]), Constant([-0.4, 0.8, 0.1])]
    images = torch.randn(4, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    everything_open = torch.tensor([[False, True, True]]).expand(4, 3)
    unlabelled = Examples(images, torch.full((4, 5, 6), UNCERTAIN, dtype=torch.uint8), everything_open)
    truth = torch.randint(0, 3, (4, 5, 6), generator=torch.Generator().manual_seed(1))
    labelled = Examples(images + 1, truth.byte(), torch.zeros(4, 3, dtype=torch.bool))
    boxes = torch.tensor([[0, 0, 3, 3], [1, 2, 4, 6], [2, 0, 5, 5], [0, 1, 2, 2]]) if cutmix else None
    supervised, cps = gradients(branches, labelled, unlabelled, boxes, 0.5, 0.0, 0.0, nullcontext)

    weights = [branch.weights.detach().clone().requires_grad_() for branch in branches]
    expected = torch.zeros(2, 2)  # branch; supervised, CPS
    for n, (y, x) in itertools.product(range(4), np.ndindex(5, 6)):
        top, left, bottom, right = boxes[n].tolist() if cutmix else (0, 0, 0, 0)
        source = n ^ 1 if top <= y < bottom and left <= x < right else n
        for own, other in ((0, 1), (1, 0)):
            answer = [images[source, 0, y, x] * w.flatten() + Constant.SHIFT for w in weights]
            log_p = F.log_softmax((images[n, 0, y, x] + 1) * weights[own].flatten() + Constant.SHIFT, dim=0)
            terms = torch.stack([log_p[truth[n, y, x]], F.log_softmax(answer[own], dim=0)[answer[other].argmax()]])
            expected[own] = expected[own] - terms / (4 * 5 * 6)
    assert (supervised.item(), cps.item()) == pytest.approx(expected.mean(dim=0).tolist(), abs=1e-5)
    (expected[:, 0] + 0.5 * expected[:, 1]).sum().backward()
    for branch, by_hand in zip(branches, weights, strict=True):  # labels carry no gradient to the branch they are of
        torch.testing.assert_close(branch.weights.grad, by_hand.grad)
        (first, training, grad), (_, *supervision), (mixed, *cross) = branch.seen
        assert torch.equal(first, images) and not training and not grad  # pseudo-labels: unmixed images
        assert supervision == cross == [True, True] and branch.training
        assert torch.equal(mixed, images) != cutmix
