"""Batches: which slices a step has, and that disk and device memory give the same ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training_data import PLAIN, add_case, batch, config, phantom_store, sampler
from training.augmentations import augment
from training.batch import each
from training.distributed import share_of_batch
from training.loading import loader
from training.resident import ResidentBatches
from training.sampling import Sampler
from training.store import UNCERTAIN

ALL_DRAWN = dict(organ_share=0.3, noise_hu=10.0, blur=0.5, zoom=1.2, warp_px=2.0, phase_share=0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return phantom_store(tmp_path_factory.mktemp("store"), 32, [12, 17, 24, 32], labelled=3, unlabelled=1)


def arrays(values):
    """Of nested tuples, all arrays as numpy's."""
    return [np.asarray(values)] if not isinstance(values, tuple) else [a for value in values for a in arrays(value)]


def equal(first, second):
    return all(np.array_equal(*pair) for pair in zip(arrays(first), arrays(second), strict=True))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_batch_depends_on_seed_and_step_alone(store, labelled):
    settings = config(store, store, **ALL_DRAWN)
    first = sampler(store, settings, labelled)
    plans = [first.plan(step) for step in range(10)]
    again = sampler(store, settings, labelled)
    for step in (9, 3, 7, 0, 3):  # another instance, another order
        assert equal(again.plan(step), plans[step])
    other_seed = sampler(store, config(store, store, **ALL_DRAWN, seed=1), labelled)
    assert not any(equal(other_seed.plan(step), plans[step]) for step in range(10))


def test_an_augmentation_leaves_the_numbers_of_the_others_alone(store):
    quiet, loud = (sampler(store, config(store, store, noise_hu=sd_hu)).plan(0).draws for sd_hu in (0.0, 10.0))
    assert not equal(quiet.noise, loud.noise)
    assert equal(quiet._replace(noise=()), loud._replace(noise=()))


def test_augmentations_do_not_share_their_random_numbers(store):
    """Both take a uniform number for each slice first: in one stream each slice with noise would be turned one way."""
    draws = sampler(store, config(store, store, noise_hu=10.0, labelled_per_batch=400)).plan(0).draws
    noisy, turned_left = draws.noise.sd_hu > 0, draws.view.matrix[:, 1, 0] > 0
    assert 0.4 < (noisy == turned_left).mean() < 0.6


def test_an_epoch_is_one_pass_over_the_slices(store):
    drawn = sampler(store, config(store, store))
    assert len(drawn) == 12
    epochs = [[i for step in range(3) for i in drawn.plan(3 * e + step).slices.entry] for e in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_processes_share_a_batch_without_changing_it(store, workers):
    settings = config(store, store, **ALL_DRAWN)
    whole = [batch(store, settings, step) for step in range(2, 5)]
    halves = [
        list(loader(sampler(store, settings), store, share_of_batch(4, rank, 2), range(2, 5), workers, pin=False))
        for rank in range(2)
    ]
    for expected, *parts in zip(whole, *halves, strict=True):
        pairs = zip(*map(arrays, parts), strict=True)
        assert all(np.array_equal(np.concatenate(pair), a) for pair, a in zip(pairs, arrays(expected), strict=True))
    with pytest.raises(ValueError, match="does not divide among 3"):
        share_of_batch(4, 0, 3)


@pytest.mark.parametrize("labelled", [True, False])
def test_slices_in_the_devices_memory_are_those_of_the_store(store, labelled):
    settings = config(store, store, **ALL_DRAWN)
    mine = slice(1, 3)
    resident = ResidentBatches(sampler(store, settings, labelled), store, mine, torch.device("cpu"))
    for step in (0, 5):
        expected = each(lambda values: values[mine], batch(store, settings, step, labelled))
        assert equal(resident.batch(step), expected)


def test_of_a_case_without_labels_nothing_is_known(store):
    known = batch(store, config(store, store))
    assert not known.slices.unannotated.any() and (known.labels != UNCERTAIN).all()
    unknown = batch(store, config(store, store), labelled=False)
    assert (unknown.labels == UNCERTAIN).all()
    assert unknown.slices.unannotated[:, 1:].all() and not unknown.slices.unannotated[:, 0].any()


def test_organs_that_a_case_does_not_annotate(tmp_path):
    add_case(tmp_path, "a", np.zeros((1, 16, 16), np.int16), np.ones((1, 16, 16), np.uint8), annotated=(1, 2, 13))
    unannotated = batch(tmp_path, config(tmp_path, tmp_path)).slices.unannotated
    assert np.flatnonzero(unannotated[0]).tolist() == list(range(3, 13))


def test_smaller_slices_are_centred_in_air(tmp_path):
    hu = np.arange(20 * 24, dtype=np.int16).reshape(1, 20, 24)
    add_case(tmp_path, "a", hu, np.full((1, 20, 24), 3, np.uint8))
    add_case(tmp_path, "b", np.zeros((1, 32, 32), np.int16), np.zeros((1, 32, 32), np.uint8))
    settings = config(tmp_path, tmp_path, labelled_per_batch=2, empty_share=1.0)
    drawn = batch(tmp_path, settings)
    small_hu, small_labels = (v[drawn.slices.entry == 0][0].numpy() for v in (drawn.hu, drawn.labels))
    assert np.array_equal(small_hu[6:26, 4:28], hu[0]) and np.array_equal(small_labels == 3, small_hu >= 0)
    assert (np.delete(small_hu, np.s_[6:26], axis=0) == -1024).all()


def test_parts_of_larger_slices_lie_anywhere_in_them(tmp_path):
    hu = np.arange(48 * 50, dtype=np.int16).reshape(1, 48, 50) % 900
    add_case(tmp_path, "a", hu, np.ones(hu.shape, np.uint8))
    settings = config(tmp_path, tmp_path, labelled_per_batch=40, **PLAIN)
    shift_px = batch(tmp_path, settings).draws.view.shift_px
    assert (shift_px.abs() <= torch.tensor([9, 8])).all() and (shift_px.abs().amax(dim=0) > torch.tensor([7, 6])).all()


def test_crops_drawn_by_organ_hold_it(tmp_path):
    phantom_store(tmp_path, 128, [12, 17, 24, 32], labelled=1)
    settings = config(tmp_path, tmp_path, organ_share=1.0, labelled_per_batch=60, **PLAIN)
    drawn = batch(tmp_path, settings)
    _, labels = augment(drawn, settings)
    assert (drawn.slices.organ > 0).all() and len(drawn.slices.organ.unique()) > 8
    assert (labels == drawn.slices.organ[:, None, None]).flatten(1).any(dim=1).all()
    few = batch(
        tmp_path, config(tmp_path, tmp_path, organ_share=1.0, drawn_organs="RAG,8", labelled_per_batch=60, **PLAIN)
    )
    assert set(few.slices.organ.tolist()) == {7, 8}


def share(drawn, wanted):
    return np.mean([wanted(drawn, i) for step in range(100) for i in drawn.plan(step).slices.entry])


def test_shares_of_empty_negative_and_true_slices(tmp_path):
    labels = np.zeros((40, 8, 8), np.uint8)
    labels[:10, 2:6, 2:6] = 1
    add_case(tmp_path, "a", np.zeros(labels.shape, np.int16), labels, saturated_hu=275)
    for empty_share, kept in ((0.0, 10), (0.5, 20), (0.2, 12), (1.0, 40)):
        assert len(sampler(tmp_path, config(tmp_path, tmp_path, empty_share=empty_share))) == kept
    add_case(tmp_path, "head", np.zeros((5, 8, 8), np.int16), np.zeros((5, 8, 8), np.uint8))
    add_case(tmp_path, "b", np.zeros((1, 8, 8), np.int16), labels[:1])
    settings = config(tmp_path, tmp_path, empty_share=0.0, negative_share=0.4, true_hu_share=0.3)
    drawn = sampler(tmp_path, settings)
    assert len(drawn) == 10 + 5 + 1  # all slices of a head are kept
    # 0.4 and 0.3, and of the rest, which goes over all slices in turn, 5 and 1 of 16
    assert share(drawn, lambda d, i: d.entries[i][0].name == "head") == pytest.approx(0.4 + 0.3 * 5 / 16, abs=0.07)
    assert share(drawn, lambda d, i: d.entries[i][0].name == "b") == pytest.approx(0.3 + 0.3 / 16, abs=0.07)
    drawn = sampler(tmp_path, config(tmp_path, tmp_path, empty_share=0.0, negative_share=0.4, organ_share=0.4))
    assert share(drawn, lambda d, i: d.entries[i][0].name == "head") == pytest.approx(0.4 + 0.2 * 5 / 16, abs=0.07)
    organs = np.concatenate([drawn.plan(step).slices.organ for step in range(100)])
    assert np.mean(organs > 0) == pytest.approx(0.4, abs=0.07)


def test_heads_and_limbs_are_turned_and_scaled_more(tmp_path):
    for name, label in (("a", 1), ("head", 0)):
        add_case(tmp_path, name, np.zeros((1, 8, 8), np.int16), np.full((1, 8, 8), label, np.uint8))
    drawn = batch(tmp_path, config(tmp_path, tmp_path, labelled_per_batch=200))
    matrix, negative = drawn.draws.view.matrix, drawn.slices.negative
    degrees = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])).abs()
    zoom = torch.linalg.det(matrix).sqrt()
    assert degrees[~negative].max() <= 15 and degrees[negative].max() > 150
    torch.testing.assert_close(zoom[~negative], torch.ones_like(zoom[~negative]))
    assert 0.5 <= zoom[negative].min() < 0.6 and 1.7 < zoom[negative].max() <= 2


@pytest.mark.parametrize("labelled", [True, False])
def test_nothing_to_draw_from_is_an_error(labelled):
    with pytest.raises(ValueError, match=f"no {'' if labelled else 'un'}labelled slice"):
        Sampler([], config(Path("store"), Path("out")), labelled)
