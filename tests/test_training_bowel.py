"""Painted bowel loops against worked scenes: where they may be, what they hold, and what they must not touch."""

import numpy as np
import torch

from training.bowel import GAP_PX, STOMACH, STOMACH_WALL_PX, WALL_HU, draw_loops, fill

LIVER = 1
FAT, AIR, BONE = -100.0, -1000.0, 700.0


def scene():
    """Fat with a liver at rows and columns 10..19, a stomach at 30..49, air above row 4, bone in the last rows."""
    hu, organ = torch.full((1, 64, 64), FAT), torch.zeros(1, 64, 64, dtype=torch.int64)
    hu[0, :4], hu[0, 60:] = AIR, BONE
    hu[0, 10:20, 10:20], organ[0, 10:20, 10:20] = 110, LIVER
    hu[0, 30:50, 30:50], organ[0, 30:50, 30:50] = 20, STOMACH
    return hu, organ


def filled(first=5.0, second=-5.0, stomach=False, hu=None):
    """The scene with fields that are the same everywhere, the first filling of 300 HU and the second of 10."""
    scan, organ = scene()
    hu = scan if hu is None else hu
    loops = torch.tensor([first, second]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    return organ[0], fill(hu, organ, loops, torch.tensor([[300.0, 10.0]]), torch.tensor([stomach]), scan)[0]


def near(mask, px):
    """Pixels within a square of half side `px` around the mask, one by one."""
    rows, columns = np.nonzero(mask.numpy())
    out = np.zeros(mask.shape, bool)
    for y, x in zip(rows, columns, strict=True):
        out[max(0, y - px) : y + px + 1, max(0, x - px) : x + px + 1] = True
    return torch.from_numpy(out)


def test_a_loop_fills_the_fat_and_keeps_off_organs_air_and_bone():
    hu, organ = scene()
    _, painted = filled()
    expected = (hu[0] == FAT) & ~near(organ[0] > 0, GAP_PX)
    assert expected.any() and torch.equal(painted != hu[0], expected)
    assert (painted[expected] == 300).all()


def test_where_the_field_is_low_there_is_wall_and_below_zero_nothing():
    hu, _ = scene()
    changed = filled(first=0.1)[1]
    assert set(changed[changed != hu[0]].tolist()) == {WALL_HU}
    assert torch.equal(filled(first=-0.1)[1], hu[0])


def test_the_second_filling_lies_over_the_first():
    assert filled(second=5.0)[1][25, 5] == 10


def test_the_stomach_is_filled_but_for_its_wall():
    hu, organ = scene()
    _, painted = filled(first=-5.0, stomach=True)
    lumen = (organ[0] == STOMACH) & ~near(organ[0] != STOMACH, STOMACH_WALL_PX)
    assert lumen.sum() == (20 - 2 * STOMACH_WALL_PX) ** 2
    assert torch.equal(painted != hu[0], lumen) and (painted[lumen] == 300).all()


def test_fillings_have_the_noise_of_the_scan():
    scan, _ = scene()
    noise = torch.randn(scan.shape, generator=torch.Generator().manual_seed(0)) * 8
    _, painted = filled(hu=scan + noise, stomach=True)
    where = filled(stomach=True)[1] == 300
    torch.testing.assert_close(painted[where], 300 + noise[0][where], rtol=0, atol=1e-3)


def test_each_slice_of_a_batch_has_its_own():
    hu, organ = scene()
    loops = torch.stack([torch.full((2, 3, 3), 5.0), torch.full((2, 3, 3), -5.0)])
    fillings, stomach = torch.tensor([[300.0, 300.0], [50.0, 50.0]]), torch.tensor([False, True])
    first, second = fill(hu.expand(2, -1, -1), organ.expand(2, -1, -1), loops, fillings, stomach, hu)
    assert first[25, 5] == 300 and first[40, 40] == 20
    assert second[25, 5] == FAT and second[40, 40] == 50


def test_the_share_of_slices_and_what_they_get():
    drawn = [draw_loops(np.random.default_rng(k), 0.5, 512) for k in range(1000)]
    on = [sample for sample in drawn if np.isfinite(sample["loops"]).all()]
    off = [sample for sample in drawn if (sample["loops"] == -np.inf).all()]
    assert len(on) + len(off) == 1000 and 450 < len(on) < 550
    assert not any(sample["stomach"] for sample in off)
    assert 0.4 < np.mean([sample["stomach"] for sample in on]) < 0.6
    share = np.mean([(sample["loops"] > 0).mean() for sample in on])
    assert 0.1 < share < 0.4  # of the field, by filling
    fillings = np.concatenate([sample["filling_hu"] for sample in on])
    assert fillings.min() >= -10 and fillings.max() <= 600 and 0.3 < (fillings > 130).mean() < 0.5
