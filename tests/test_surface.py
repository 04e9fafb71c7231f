"""NSD: worked by hand, and equal to google-deepmind/surface-distance on masks of every kind."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surface_distance import lookup_tables

from evaluation.surface import normalised_surface_dice, surface_areas_mm2
from tests.surface_oracle import library_nsd

SPACINGS_MM = [
    (1, 1, 1),
    (0.5, 0.5, 2.5),
    (3, 2, 1),
    np.float32((0.644531, 0.78125, 2.5)),
    np.float32((0.7, 0.9, 5)),
]


def draw(*rows):
    """One slice of a mask, `#` inside: (1, rows, columns) bool."""
    return np.array([[character == "#" for character in row] for row in rows])[None]


def test_single_voxels_two_apart():
    # Each voxel has 8 surface elements of equal area, at its corners. Along x the corners of the one lie at
    # 2 and 3, of the other at 4 and 5: the inner half is 1 voxel from the other's, the outer half 2 voxels.
    truth = draw("......", "......", "..#...", "......")
    prediction = draw("......", "......", "....#.", "......")
    spacing_mm = (3, 2, 1.5)
    assert normalised_surface_dice(prediction, truth, spacing_mm, 1.4) == 0
    assert normalised_surface_dice(prediction, truth, spacing_mm, 1.5) == pytest.approx(0.5)
    assert normalised_surface_dice(prediction, truth, spacing_mm, 2.9) == pytest.approx(0.5)
    assert normalised_surface_dice(prediction, truth, spacing_mm, 3) == pytest.approx(1)


def test_square_moved_by_one_column():
    # Elements lie on the corners of the voxels, 1 mm apart, in two layers (above and below the slice) of 3x3:
    #     c e c    c: one voxel of the block inside, a cut corner: sqrt(3) / 8
    #     e f e    e: two, a bevelled edge: sqrt(2) / 2
    #     c e c    f: four, a flat face: 1
    # The middle and the last column of the truth are the first and the middle one of the prediction: distance 0.
    # The column left over is 1 mm away.
    truth = draw("......", ".##...", ".##...", "......")
    prediction = draw("......", "..##..", "..##..", "......")
    c, e, f = sqrt(3) / 8, sqrt(2) / 2, 1
    shared = 2 * ((e + f + e) + (c + e + c))
    whole = 2 * (4 * c + 4 * e + f)
    assert normalised_surface_dice(prediction, truth, (1, 1, 1), 0) == pytest.approx(shared / whole)
    assert normalised_surface_dice(prediction, truth, (1, 1, 1), 0.99) == pytest.approx(shared / whole)
    assert normalised_surface_dice(prediction, truth, (1, 1, 1), 1) == pytest.approx(1)


def test_faces_weigh_by_their_area_in_mm2():
    # Voxels 10 mm high and 1 mm wide and deep: their faces measure 1 mm2 on top and 10 mm2 at the sides. A bevel
    # cuts off half of both faces that meet at the edge: it is the hypotenuse of their halves.
    areas_mm2 = surface_areas_mm2((10, 1, 1))
    assert areas_mm2[0b00001111] == pytest.approx(1)  # flat, on top
    assert areas_mm2[0b00000011] == pytest.approx(sqrt(5**2 + 0.5**2))  # along the third axis: top and side
    assert areas_mm2[0b00010001] == pytest.approx(sqrt(5**2 + 5**2))  # along the first: two sides
    assert areas_mm2[0] == areas_mm2[255] == 0


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_area_of_every_code_equals_the_library(spacing_mm):
    expected = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    np.testing.assert_allclose(surface_areas_mm2(spacing_mm), expected, rtol=1e-12)


@st.composite
def masks(draw_value, shape):
    """Random, empty, full, one-voxel, one-slice and box masks."""
    mask = np.zeros(shape, bool)
    kind = draw_value(st.sampled_from(["random", "empty", "full", "voxel", "slice", "box"]))
    random = np.random.default_rng(draw_value(st.integers(0, 2**32 - 1)))
    if kind == "random":
        mask = random.random(shape) < draw_value(st.sampled_from([0.03, 0.3, 0.5, 0.9]))
    elif kind == "full":
        mask[...] = True
    elif kind == "voxel":
        mask[tuple(random.integers(shape))] = True
    elif kind == "slice":
        axis = draw_value(st.integers(0, 2))
        at = [slice(None)] * 3
        at[axis] = random.integers(shape[axis])
        mask[tuple(at)] = random.random(mask[tuple(at)].shape) < 0.7
    elif kind == "box":
        corners = np.sort(random.integers(0, np.array(shape) + 1, (2, 3)), axis=0)
        mask[tuple(slice(*pair) for pair in corners.T)] = True
    return mask


@st.composite
def pairs_of_masks(draw_value):
    shape = draw_value(st.tuples(*[st.integers(1, 9)] * 3))
    return draw_value(masks(shape)), draw_value(masks(shape))


@settings(max_examples=250, deadline=None)
@given(
    pair=pairs_of_masks(),
    spacing_mm=st.sampled_from(SPACINGS_MM) | st.tuples(*[st.floats(0.25, 6, width=32)] * 3),
    tolerance_mm=st.sampled_from([0, 1, 2, 3, 5, 7, 2.5]) | st.floats(0, 10),
)
def test_equals_the_library(pair, spacing_mm, tolerance_mm):
    ours = normalised_surface_dice(*pair, spacing_mm, tolerance_mm)
    assert ours == pytest.approx(library_nsd(*pair, spacing_mm, tolerance_mm), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("order", ["C", "F"])
def test_any_memory_layout(order):
    random = np.random.default_rng(0)
    prediction, truth = (np.array(random.random((6, 7, 8)) < 0.3, order=order) for _ in range(2))
    expected = library_nsd(prediction, truth, (1, 2, 3), 2)
    assert normalised_surface_dice(prediction, truth, (1, 2, 3), 2) == pytest.approx(expected)
    turned = normalised_surface_dice(prediction[::-1].T, truth[::-1].T, (3, 2, 1), 2)
    assert turned == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "spacing_mm", "message"),
    [
        (np.zeros((3, 3, 3), np.uint8), (1, 1, 1), "bool"),
        (np.zeros((3, 3), bool), (1, 1, 1), "3-dimensional"),
        (np.zeros((3, 3, 4), bool), (1, 1, 1), "shape"),
        (np.zeros((3, 3, 3), bool), (1, 1), "spacing_mm"),
        (np.zeros((3, 3, 3), bool), (1, 0, 1), "spacing_mm"),
    ],
)
def test_wrong_arguments(prediction, spacing_mm, message):
    with pytest.raises(ValueError, match=message):
        normalised_surface_dice(prediction, np.zeros((3, 3, 3), bool), spacing_mm, 1)
