"""Tables of DSC, ours and the paper's.

results/crossvalidation.json                  training.crossvalidate: {"organs": ..., "folds": ...}
results/table3.json, table3_miniature.json    training.table3: {"with_unlabelled": {"organs": ...}, ...}
"""

from collections.abc import Sequence

from app.labels import ORGANS
from app.progress import one_line
from evaluation import paper
from evaluation.tables.markdown import TableError, markdown

_PAPER_HEADS = ("paper (w/ un)", "paper (w/o un)")
_ARM_HEADS = {
    "with_unlabelled": "ours (w/ un)",
    "without_unlabelled": "ours (w/o un)",
    "strong_views": "ours (w/ un, weak to strong)",
}


def crossvalidation(result: dict) -> str:
    """DSC per organ on held-out patients, mean ± SD over them, and the paper's."""
    ours = result["organs"]
    organs = _scored(ours)
    rows = [[organ, _mean_and_sd(ours[organ]), *_paper(organ)] for organ in organs]
    rows.append(["**Average**", f"**{ours['mean']['mean']:.3f}**", *_paper_average(organs)])
    patients = sorted(one_line(name) for fold in result["folds"] for name in fold["dsc"])
    table = markdown(["DSC", "ours, held-out patients", *_PAPER_HEADS], rows)
    return (
        f"{table}\n{_not_scored(organs)}Ours: {len(patients)} patients ({', '.join(patients)}) whom the scored network "
        f"never saw; mean ± SD over them. The paper's: 50 others. Scored with torch {result['torch']} on "
        f"{result['device']}; `python -m training.crossvalidate`.\n"
    )


def table3(result: dict) -> str:
    """The paper's Table 3, DSC with and without unlabelled data, beside ours; whichever arms were run."""
    arms = {name: result[name] for name in _ARM_HEADS if name in result}
    if not arms:
        raise TableError(f"none of the arms {', '.join(_ARM_HEADS)}")
    first = next(iter(arms.values()))["organs"]
    organs, seeds = _scored(first), first["mean"]["n"]
    if any((_scored(arm["organs"]), arm["organs"]["mean"]["n"]) != (organs, seeds) for arm in arms.values()):
        raise TableError("the arms are not of the same organs and seeds")
    rows = [[organ, *(_mean_and_sd(arm["organs"][organ]) for arm in arms.values()), *_paper(organ)] for organ in organs]
    averages = (f"**{arm['organs']['mean']['mean']:.3f}**" for arm in arms.values())
    rows.append(["**Average**", *averages, *_paper_average(organs)])
    if all("ensemble" in arm for arm in arms.values()):
        both = (f"{arm['ensemble']['mean']['mean']:.3f}" for arm in arms.values())
        rows.append(["Average of both branches' ensemble", *both, "", ""])
    table = markdown(["DSC", *(_ARM_HEADS[name] for name in arms), *_PAPER_HEADS], rows)
    return (
        f"{table}\n{_not_scored(organs)}Ours: mean of both branches, ± SD over {seeds} seed(s); torch "
        f"{result['torch']} on {result['device']}; `python -m training.table3`.\n"
    )


def _scored(organs: dict) -> list[str]:
    return [organ.abbreviation for organ in ORGANS if organ.abbreviation in organs]


def _paper(organ: str) -> list[str]:
    return [f"{value:.3f}" for value in paper.TABLE_3[organ]]


def _paper_average(organs: Sequence[str]) -> list[str]:
    """Over the organs that we have too."""
    return [f"**{sum(paper.TABLE_3[organ][k] for organ in organs) / len(organs):.3f}**" for k in (0, 1)]


def _mean_and_sd(statistics: dict) -> str:
    spread = "" if statistics["std"] is None else f" ± {statistics['std']:.3f}"
    return f"{statistics['mean']:.3f}{spread}"


def _not_scored(organs: Sequence[str]) -> str:
    missing = [organ.name for organ in ORGANS if organ.abbreviation not in organs]
    return f"Averages, the paper's too, are without what was not scored: {', '.join(missing)}. " if missing else ""
