"""Discs of soft tissue in air, where the box is known."""

import numpy as np
import pytest

from app.body import body_box

AIR_HU, FAT_HU, MUSCLE_HU = -1024, -100, 60


def disc(shape, centre, radius_px):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius_px**2


def scan(depth=3, size=256, centre=(110, 130), radius_px=60):
    hu = np.full((depth, size, size), AIR_HU, np.int16)
    hu[:, disc(hu.shape[1:], centre, radius_px + 20)] = FAT_HU
    hu[:, disc(hu.shape[1:], centre, radius_px)] = MUSCLE_HU
    return hu


def test_soft_tissue_with_its_margin():
    rows, columns = body_box(scan(), 16)
    for part, centre in ((rows, 110), (columns, 130)):
        assert (part.stop - part.start) % 16 == 0
        assert centre - 60 - 48 < part.start <= centre - 60 - 13  # 16 px less what lies between the looked-at pixels
        assert centre + 60 + 13 <= part.stop < centre + 60 + 48


def test_table_noise_and_another_body_are_left_out():
    alone = body_box(scan(), 16)
    hu = scan()
    hu[:, 230:234] = 200  # a table top
    hu[0, 10:250:20, 10:250:20] = 300
    hu[:, disc(hu.shape[1:], (40, 30), 15)] = MUSCLE_HU  # a hand
    assert body_box(hu, 16) == alone


def test_each_slice_counts():
    hu = scan(depth=4)
    hu[2] = scan(radius_px=80)[0]
    assert body_box(hu, 16) == body_box(hu[2:3], 16)


@pytest.mark.parametrize("lowest_hu", [-125, -100])
def test_a_scan_that_was_clipped_has_the_same_box(lowest_hu):
    assert body_box(np.maximum(scan(), lowest_hu), 16) == body_box(scan(), 16)


@pytest.mark.parametrize("centre", [(5, 250), (130, 130), (250, 5)])
def test_no_smaller_than_asked_for_and_inside_the_slice(centre):
    for part, middle in zip(body_box(scan(centre=centre, radius_px=40), 160), centre, strict=True):
        assert part.start >= 0 and part.stop <= 256 and part.stop - part.start == 160
        assert part.start <= middle < part.stop


def test_slices_smaller_than_asked_for_stay_whole():
    assert body_box(scan(), 512) == (slice(0, 256), slice(0, 256))


@pytest.mark.parametrize("value", [AIR_HU, MUSCLE_HU])
@pytest.mark.parametrize("size", [(50, 70), (1, 333)])
def test_nothing_but_air_and_nothing_but_tissue(value, size):
    assert body_box(np.full((2, *size), value, np.int16), 16) == (slice(0, size[0]), slice(0, size[1]))
