import numpy as np
import pytest
import torch

from training.cutmix import inside, mix, random_boxes


def test_boxes_cover_a_quarter_to_a_half_of_the_slice():
    boxes = random_boxes(np.random.default_rng(0), 200, 96, 128)
    top, left, bottom, right = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= 96).all() and (right <= 128).all()
    area = ((bottom - top) * (right - left)).double() / (96 * 128)
    assert area.min() > 0.24 and area.max() < 0.51 and area.std() > 0.05
    assert {int(left.min()), int(top.min())} == {0} and right.max() == 128 and bottom.max() == 96


def test_mask_against_loops():
    boxes = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 4]])
    mask = inside(boxes, 3, 4)
    for n, y, x in np.ndindex(2, 3, 4):
        top, left, bottom, right = boxes[n].tolist()
        assert mask[n, y, x] == (top <= y < bottom and left <= x < right)


def test_partners_exchange_boxes_and_labels_move_with_images():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 3, 4)
    labels = images[:, 0].long()
    mask = inside(torch.tensor([[0, 0, 1, 2], [1, 1, 3, 4], [0, 0, 3, 4], [0, 0, 0, 0]]), 3, 4)
    mixed = mix(images, mask)
    assert mixed[0, 0].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert mixed[1, 0].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert (mixed[2] == 3).all() and (mixed[3] == 3).all()
    assert torch.equal(mix(labels, mask), mixed[:, 0].long())


def test_halves_of_a_batch_mix_as_the_whole():
    images, mask = torch.randn(8, 1, 4, 4), torch.rand(8, 4, 4) < 0.5
    halves = [mix(images[part], mask[part]) for part in (slice(0, 4), slice(4, 8))]
    assert torch.equal(mix(images, mask), torch.cat(halves))


def test_an_odd_batch_has_no_pairs():
    with pytest.raises(RuntimeError):
        mix(torch.zeros(3, 1, 2, 2), torch.zeros(3, 2, 2, dtype=torch.bool))
