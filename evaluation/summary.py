"""Scores of many cases in few figures: means and standard deviations, over cases and over organs."""

import math
from collections.abc import Mapping

import numpy as np

from app.labels import ORGANS
from evaluation.scoring import METRICS, Scores


def summarise(results: Mapping[str, Scores]) -> dict:
    """Means and population standard deviations, of the scores as they stand in the CSV.

    Args:
        results: Case name -> scores of the organs annotated there, at least one; at least one case.

    Returns:
        {"per_organ": {abbreviation: statistics over the cases that annotate it}, "over_organs": statistics of
        the organs' means, "over_cases": statistics of the cases' means, each over its own organs}; statistics
        are {"n": how many, "DSC" and "NSD": {"mean", "std"}}.
    """
    labels = sorted({label for case in results.values() for label in case})
    absent = (math.nan, math.nan)
    scores = np.array([[case.get(label, absent) for label in labels] for case in results.values()])  # (case, organ, 2)
    return {
        "per_organ": {ORGANS[label - 1].abbreviation: _statistics(scores[:, i]) for i, label in enumerate(labels)},
        "over_organs": _statistics(np.nanmean(scores, axis=0)),
        "over_cases": _statistics(np.nanmean(scores, axis=1)),
    }


def _statistics(scores: np.ndarray) -> dict:
    """Of (n, 2) scores, without the rows of NaN."""
    scores = scores[~np.isnan(scores[:, 0])]
    return {
        "n": len(scores),
        **{
            metric: {"mean": round(float(values.mean()), 6), "std": round(float(values.std()), 6)}
            for metric, values in zip(METRICS, scores.T, strict=True)
        },
    }


def format_table(summary: dict) -> list[str]:
    """The summary for the terminal, line by line."""
    lines = [f"{'mean +- std':<12}  {'DSC':<16}  {'NSD':<16}  {'n':>4}"]
    rows = {**summary["per_organ"], "over organs": summary["over_organs"], "over cases": summary["over_cases"]}
    for name, statistics in rows.items():
        if name == "over organs":
            lines.append("-" * len(lines[0]))
        cells = [f"{statistics[metric]['mean']:.4f} +- {statistics[metric]['std']:.4f}" for metric in METRICS]
        lines.append(f"{name:<12}  {cells[0]}  {cells[1]}  {statistics['n']:>4}")
    return lines
