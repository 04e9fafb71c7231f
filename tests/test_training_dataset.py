import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import training
from tests.training_data import PLAIN, add_case, config, phantom_store
from training.dataset import SliceDataset, batches, describe, split
from training.store import UNCERTAIN, read_cases


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return phantom_store(tmp_path_factory.mktemp("store"), 32, [12, 17, 24, 32], labelled=3, unlabelled=1)


def dataset(store, labelled=True, **changes):
    settings = config(store, store / "unused", **changes)
    cases = split(read_cases(store), settings)
    return SliceDataset(store, cases.labelled if labelled else cases.unlabelled, settings, labelled)


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_sample_depends_on_seed_and_position_alone(store, labelled):
    settings = dict(organ_share=0.3, noise_hu=10.0, blur=0.5, zoom=1.2)
    first = dataset(store, labelled, **settings)
    samples = [first[position] for position in range(40)]
    again = dataset(store, labelled, **settings)
    for position in (39, 3, 17, 0, 21, 3):  # another instance, another order
        assert equal(again[position], samples[position])
    other_seed = dataset(store, labelled, **settings, seed=1)
    assert not any(equal(other_seed[position], samples[position]) for position in range(40))


def test_an_epoch_is_one_pass_over_the_slices(store):
    data = dataset(store)
    assert len(data) == 12
    epochs = [[data._choose(e * 12 + i, np.random.default_rng(0))[0] for i in range(12)] for e in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_workers_and_processes_share_a_batch_without_changing_it(store):
    whole = dataset(store, workers=2)
    alone = list(batches(whole, 4, 2, 5))
    assert len(alone) == 3
    assert np.array_equal(alone[0]["hu"][1], whole[2 * 4 + 1]["hu"])  # goes on at step 2
    halves = [list(batches(dataset(store), 4, 2, 5, rank, 2)) for rank in range(2)]
    for step in range(3):
        for name in alone[step]:
            joined = np.concatenate([halves[rank][step][name] for rank in range(2)])
            assert np.array_equal(joined, alone[step][name])
    with pytest.raises(ValueError, match="does not divide among 3"):
        batches(whole, 4, 0, 1, 0, 3)


def test_folds_never_leak_a_patient(tmp_path):
    hu, labels = np.zeros((1, 16, 16), np.int16), np.ones((1, 16, 16), np.uint8)
    for patient in "abcd":
        add_case(tmp_path, patient, hu, labels)
        add_case(tmp_path, f"{patient}_slices", hu, labels, patient=patient)
        add_case(tmp_path, f"{patient}_late", hu, None, patient=patient)
    folds = tmp_path / "folds.json"
    folds.write_text(json.dumps([["a", "b"], ["c"], ["x"]]))
    settings = config(tmp_path, tmp_path, folds=str(folds), fold=0)
    for fold, held_out in ((0, {"a", "b"}), (1, {"c"})):
        cases = split(read_cases(tmp_path), dataclasses.replace(settings, fold=fold))
        trained_on = {case.patient for case in (*cases.labelled, *cases.unlabelled)}
        assert trained_on == set("abcd") - held_out
        assert [case.name for case in cases.validation] == sorted(held_out)  # whole labelled scans only
    everything = split(read_cases(tmp_path), dataclasses.replace(settings, fold=-1))
    assert len(everything.labelled) == 8 and len(everything.unlabelled) == 4 and not everything.validation
    with pytest.raises(ValueError, match="folds 0 to 2, not 3"):
        split(read_cases(tmp_path), dataclasses.replace(settings, fold=3))
    with pytest.raises(ValueError, match="no labelled scan of x"):
        split(read_cases(tmp_path), dataclasses.replace(settings, fold=2))


def test_the_committed_folds_hold_each_patient_once():
    folds = json.loads((Path(training.__file__).parent / "folds.json").read_text())
    patients = [patient for fold in folds for patient in fold]
    assert len(patients) == len(set(patients)) == 14


def test_without_labels_makes_patients_unlabelled(store):
    settings = config(store, store, without_labels="p0,p2")
    cases = split(read_cases(store), settings)
    assert [case.name for case in cases.labelled] == ["p1"]
    assert [case.name for case in cases.unlabelled] == ["p0", "p2", "p3"]
    item = SliceDataset(store, cases.unlabelled, settings, labelled=False)[0]
    assert (item["labels"] == UNCERTAIN).all() and item["missing"][1:].all() and not item["missing"][0]
    no_cps = split(read_cases(store), dataclasses.replace(settings, lambda_=0.0))
    assert [case.name for case in no_cps.labelled] == ["p1"] and not no_cps.unlabelled
    with pytest.raises(ValueError, match="no patient nobody"):
        split(read_cases(store), dataclasses.replace(settings, without_labels="p0,nobody"))


def test_cps_on_labelled_brings_what_is_known(store):
    settings = config(store, store, cps_on_labelled=True)
    cases = split(read_cases(store), settings)
    assert [case.name for case in cases.unlabelled] == ["p0", "p1", "p2", "p3"]
    data = SliceDataset(store, cases.unlabelled, settings, labelled=False)
    known = [(item["labels"] != UNCERTAIN).all() for item in map(data.__getitem__, range(16))]
    assert sum(known) == 12  # p3 alone knows nothing


def test_missing_organs_of_a_case(tmp_path):
    add_case(tmp_path, "a", np.zeros((1, 16, 16), np.int16), np.ones((1, 16, 16), np.uint8), annotated=(1, 2, 13))
    item = dataset(tmp_path)[0]
    assert np.flatnonzero(item["missing"]).tolist() == list(range(3, 13))


def test_small_slices_are_centred_in_air(tmp_path):
    hu = np.arange(20 * 24, dtype=np.int16).reshape(1, 20, 24)
    add_case(tmp_path, "a", hu, np.full((1, 20, 24), 3, np.uint8))
    item = dataset(tmp_path)[0]
    assert np.array_equal(item["hu"][6:26, 4:28], hu[0]) and np.array_equal(item["labels"] == 3, item["hu"] >= 0)
    assert (np.delete(item["hu"], np.s_[6:26], axis=0) == -1024).all()


def test_large_slices_give_windows_of_themselves(tmp_path):
    hu = np.arange(48 * 50, dtype=np.int16).reshape(1, 48, 50)
    add_case(tmp_path, "a", hu, (hu % 14).astype(np.uint8))
    data = dataset(tmp_path)
    starts = set()
    for position in range(20):
        item = data[position]
        y, x = divmod(int(item["hu"][0, 0]), 50)
        assert np.array_equal(item["hu"], hu[0, y : y + 32, x : x + 32])
        assert np.array_equal(item["labels"], item["hu"] % 14)
        starts.add((y, x))
    assert len(starts) > 10


def test_crops_drawn_by_organ_hold_it(tmp_path):
    phantom_store(tmp_path, 128, [12, 17, 24, 32], labelled=1)
    data = dataset(tmp_path, organ_share=1.0, frame_px=128, crop_size=32, **PLAIN)
    for position in range(60):
        _, organ = data._choose(position, np.random.default_rng([0, 0, position]))
        item = data[position]
        tx, ty = item["affine"][:, 2]
        x, y = (tx + 1) * 64, (ty + 1) * 64  # centre of the crop, pixels
        rows, columns = np.nonzero(item["labels"] == organ)
        assert (np.maximum(abs(columns - x), abs(rows - y)) <= 17).any()


def test_share_of_empty_slices(tmp_path):
    labels = np.zeros((40, 8, 8), np.uint8)
    labels[:10, 2:6, 2:6] = 1
    add_case(tmp_path, "a", np.zeros(labels.shape, np.int16), labels)
    for share, kept in ((0.0, 10), (0.5, 20), (0.2, 12), (1.0, 40)):
        assert len(dataset(tmp_path, empty_share=share)) == kept


def test_nothing_to_draw_from_is_an_error(store):
    settings = config(store, store)
    with pytest.raises(ValueError, match="no labelled slice"):
        SliceDataset(store, [], settings, labelled=True)
    with pytest.raises(ValueError, match="no unlabelled slice"):
        SliceDataset(store, [], settings, labelled=False)


def test_describe_is_plain_and_whole(store):
    cases = split(read_cases(store), config(store, store, without_labels="p0"))
    assert json.loads(json.dumps(describe(cases))) == {
        "labelled": ["p1", "p2"],
        "unlabelled": ["p0", "p3"],
        "validation": [],
        "patients": ["p0", "p1", "p2", "p3"],
        "annotated": list(range(1, 14)),
        "spacing_mm": [12.5, 12.5],
        "slice_mm": 5.0,
    }
