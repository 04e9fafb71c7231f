"""The simulated contrast phases against worked numbers, pixel by pixel."""

import numpy as np
import pytest
import torch

from tests.training_data import config
from training.augmentations.contrast_phase import AORTA, UNENHANCED_HU, ContrastPhase, apply, draw
from training.batch import Slices

LIVER, SPLEEN, GALLBLADDER = 1, 3, 9


def scene():
    """A liver of 100 and 120 HU and a gallbladder in fat, with a rim of 50 HU that is half fat and half liver."""
    hu = torch.full((1, 40, 40), -100.0)
    organ = torch.zeros(1, 40, 40, dtype=torch.int64)
    hu[0, 9:21, 9:21] = 5  # the rim, 105 above fat
    hu[0, 10:20, 10:15], hu[0, 10:20, 15:20] = 100, 120
    organ[0, 10:20, 10:20] = LIVER
    hu[0, 28:32, 28:32], organ[0, 28:32, 28:32] = 15, GALLBLADDER
    hu[0, 36:, 36:] = 400  # bone, far away
    return hu, organ


def washed(share, label=LIVER):
    hu, organ = scene()
    washout = torch.zeros(1, 14)
    washout[0, label] = share
    return hu[0], organ[0], apply(hu, organ, ContrastPhase(washout))[0]


@pytest.mark.parametrize("share", [1.0, 0.5, -0.3])
def test_an_organ_moves_as_one(share):
    hu, organ, moved = washed(share)
    liver = organ == LIVER
    torch.testing.assert_close(moved[liver], hu[liver] - share * (110 - UNENHANCED_HU[LIVER]))  # mean 110


def test_the_rim_moves_by_its_share_and_nothing_else_does():
    hu, organ, moved = washed(1.0)
    rim = (hu == 5) & (organ == 0)
    torch.testing.assert_close(moved[rim], torch.full_like(moved[rim], 5 - 60 * 105 / 210))
    others = ~rim & (organ != LIVER)
    assert torch.equal(moved[others], hu[others])


def test_what_no_contrast_medium_reaches_stays():
    hu, _, moved = washed(1.0, GALLBLADDER)
    assert torch.equal(moved, hu)


def test_each_slice_of_a_batch_has_its_own_mean_and_washout():
    hu, organ = scene()
    batch_hu = torch.cat([hu, hu + (organ == LIVER) * 40, hu])
    washout = torch.zeros(3, 14)
    washout[:2, LIVER] = 1
    moved = apply(batch_hu, organ.expand(3, -1, -1), ContrastPhase(washout))
    torch.testing.assert_close(moved[1][organ[0] == LIVER], moved[0][organ[0] == LIVER])
    assert torch.equal(moved[2], batch_hu[2])


def drawn(phase_share, labelled=True):
    slices = Slices(np.arange(2000), *[None] * 7)
    return draw(np.random.default_rng(0), slices, config("store", "out", phase_share=phase_share), labelled).washout


def test_the_share_of_slices_and_what_they_get():
    washout = drawn(0.5)
    other_phase = washout.any(axis=1)
    assert 0.45 < other_phase.mean() < 0.55
    assert not washout[:, [0, 9, 11]].any()  # background, gallbladder, stomach
    assert np.array_equal(washout[:, 2], washout[:, 13])
    washout = washout[other_phase]
    assert np.corrcoef(washout[:, LIVER], washout[:, SPLEEN])[0, 1] > 0.7  # they wash out together
    assert 0.2 < (washout[:, AORTA] < -0.8).mean() < 0.4  # the arterial phase
    assert not drawn(0.0).any() and not drawn(0.5, labelled=False).any()
