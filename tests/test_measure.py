"""Measures of organs against numpy's on each organ's own voxels."""

import numpy as np
import pytest

from app.labels import ORGANS
from app.measure import Measure, measure_organs


@pytest.fixture
def scan():
    """(labels, HU): labels 1 to 12 at random, organ 3 in two slices only, no left kidney (13)."""
    random = np.random.default_rng(4)
    labels = random.integers(0, 13, (6, 20, 30)).astype(np.uint8)
    labels[labels == 3] = 0
    labels[2, 4:8, 5] = labels[4, 1, 1:4] = 3
    return labels, random.integers(-1024, 3072, labels.shape).astype(np.int16)


def test_measures(scan):
    labels, hu = scan
    measures = measure_organs(labels, hu, 0.5)
    assert list(measures) == [organ.label for organ in ORGANS]
    for label in range(1, 13):
        values = hu[labels == label].astype(float)
        measure = measures[label]
        assert measure.voxels == len(values)
        assert measure.ml == 0.5 * len(values)
        assert (measure.mean_hu, measure.sd_hu) == pytest.approx((values.mean(), values.std()), abs=0.051)
    assert (measures[3].voxels, measures[3].first_slice, measures[3].last_slice) == (7, 2, 4)


def test_an_absent_organ(scan):
    assert measure_organs(*scan, 0.5)[13] == Measure(0, 0.0, None, None, None, None)


def test_an_organ_of_one_value_has_no_spread():
    labels = np.full((3, 8, 8), 5, np.uint8)
    hu = np.full(labels.shape, -1023, np.int16)
    assert measure_organs(labels, hu, 1.0)[5] == Measure(192, 192.0, -1023.0, 0.0, 0, 2)


def test_views_are_measured_as_they_are(scan):
    labels, hu = (array[:, ::-1, ::2] for array in scan)
    assert measure_organs(labels, hu, 0.1) == measure_organs(labels.copy(), hu.copy(), 0.1)
