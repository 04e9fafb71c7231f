import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import training
from tests.training_data import add_case, config, phantom_store
from training.split import describe, split
from training.store import read_cases


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return phantom_store(tmp_path_factory.mktemp("store"), 32, [17], labelled=3, unlabelled=1)


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
    assert not any(case.annotated for case in cases.unlabelled)
    no_cps = split(read_cases(store), dataclasses.replace(settings, lambda_=0.0))
    assert [case.name for case in no_cps.labelled] == ["p1"] and not no_cps.unlabelled
    on_labelled = split(read_cases(store), dataclasses.replace(settings, cps_on_labelled=True))
    assert [case.name for case in on_labelled.unlabelled] == ["p0", "p1", "p2", "p3"]
    with pytest.raises(ValueError, match="no patient nobody"):
        split(read_cases(store), dataclasses.replace(settings, without_labels="p0,nobody"))


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


def test_only_cases_with_organs_say_what_size_these_were_seen_at(tmp_path):
    hu = np.zeros((3, 16, 16), np.int16)
    add_case(tmp_path, "a", hu[:1], np.ones((1, 16, 16), np.uint8), (3.0, 0.7, 0.8))
    add_case(tmp_path, "head", hu, np.zeros(hu.shape, np.uint8), (8.5, 0.4, 1.2))
    add_case(tmp_path, "unlabelled", hu, None, (5.0, 0.5, 1.0))
    for lambda_ in (0.0, 0.5):
        described = describe(split(read_cases(tmp_path), config(tmp_path, tmp_path, lambda_=lambda_)))
        assert (described["spacing_mm"], described["slice_mm"]) == ([0.7, 0.8], 3.0)
