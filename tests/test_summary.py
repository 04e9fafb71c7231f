"""Means over cases and organs, by hand and by plain numpy."""

import numpy as np
import pytest

from app.labels import ORGANS
from evaluation.scoring import Score
from evaluation.summary import format_table, summarise


def test_cases_with_other_organs_worked_by_hand():
    a, b, c = {1: Score(0.5, 0.25), 2: Score(1, 0.75)}, {1: Score(0.75, 0.5)}, {2: Score(0.5, 0.25), 13: Score(0, 0)}
    summary = summarise({"a": a, "b": b, "c": c})
    assert {organ: statistics["n"] for organ, statistics in summary["per_organ"].items()} == {
        "Liver": 2,
        "RK": 2,
        "LK": 1,
    }
    assert summary["per_organ"]["Liver"]["DSC"] == {"mean": 0.625, "std": 0.125}  # of a and b
    assert summary["per_organ"]["LK"]["DSC"] == {"mean": 0, "std": 0}
    over_organs, over_cases = summary["over_organs"], summary["over_cases"]
    assert over_organs["n"] == 3 and over_organs["DSC"]["mean"] == pytest.approx((0.625 + 0.75 + 0) / 3, abs=1e-6)
    assert over_cases["n"] == 3 and over_cases["DSC"]["mean"] == pytest.approx((0.75 + 0.75 + 0.25) / 3, abs=1e-6)
    liver, *_, organs, cases = [line.split()[-1] for line in format_table(summary)[1:]]
    assert (liver, organs, cases) == ("2", "3", "3")


@pytest.mark.parametrize("n_cases", [1, 9, 64])
def test_the_same_organs_everywhere_are_plain_means(n_cases):
    random = np.random.default_rng(n_cases)
    labels = sorted(random.choice(np.arange(1, 14), 11, replace=False).tolist())
    scores = np.round(random.random((n_cases, len(labels), 2)), 4)
    cases = {
        str(k): {label: Score(*map(float, s)) for label, s in zip(labels, case, strict=True)}
        for k, case in enumerate(scores)
    }
    summary = summarise(cases)
    columns = {ORGANS[label - 1].abbreviation: scores[:, i] for i, label in enumerate(labels)}
    for entry, values in (
        *((summary["per_organ"][organ], column) for organ, column in columns.items()),
        (summary["over_organs"], scores.mean(axis=0)),
        (summary["over_cases"], scores.mean(axis=1)),
    ):
        for metric, of_metric in zip(("DSC", "NSD"), values.T, strict=True):
            assert entry[metric] == {"mean": round(of_metric.mean(), 6), "std": round(of_metric.std(), 6)}
