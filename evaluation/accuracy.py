"""DSC and NSD by FLARE22's rules: `python -m evaluation.accuracy PRED TRUTH -o scores.csv`.

Rules, tolerances, columns and names are those of the organizers' scripts (JunMa11/FLARE). Where those
stop (a truth on one slice) or look away (a case without prediction), this goes on and says so.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from app.labels import ORGANS
from evaluation.masks import MaskError, check_same_grid, read_mask
from evaluation.surface import check_masks, normalised_surface_dice

ALL_LABELS = tuple(organ.label for organ in ORGANS)
TOLERANCES_MM = {1: 5, 2: 3, 3: 3, 4: 5, 5: 2, 6: 2, 7: 2, 8: 2, 9: 2, 10: 3, 11: 5, 12: 7, 13: 3}  # by label
SCORED_ON_TRUTH_SLICES = {5, 6, 10}  # aorta, IVC, esophagus go on beyond the slices that were annotated
MINIMUM_DSC = 0.2  # below it NSD is 0 unseen (FLARE24's rule; FLARE23 has 0.1, the script published for FLARE22 none)
METRICS = ("DSC", "NSD")

INCOMPLETE_EXIT = 1  # some prediction was missing (scored as zeros) or could not be scored (empty cells)
ERROR_EXIT = 2  # nothing was scored


class Score(NamedTuple):
    """Of one organ in one case, each 0..1."""

    dsc: float
    nsd: float


Scores = dict[int, Score]  # of one case, by label; an organ that is not annotated has none


def dice_coefficient(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Twice the voxels in both over the sum of the voxels in each.

    Args:
        prediction, truth: 3-dimensional bool, of one shape.

    Returns:
        0..1; NaN if both are empty (`score_case` gives 1 there, by the organizers' rule).

    Raises:
        ValueError: The masks are not bool, not three-dimensional or not of one shape.
    """
    check_masks(prediction, truth)
    voxels = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(prediction & truth) / voxels) if voxels else float("nan")


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: tuple[float, float, float],
    labels: Collection[int] = ALL_LABELS,
    minimum_dsc: float = MINIMUM_DSC,
) -> Scores:
    """DSC and NSD of each organ.

    Args:
        prediction, truth: (z, y, x) uint8 labels, of one shape; the first axis is the organizers' third.
        spacing_mm: Of the truth, (z, y, x).
        labels: The organs annotated in the truth; the others are not scored.
        minimum_dsc: Where DSC is below, NSD is 0.

    Returns:
        Label -> Score, in the order of `labels`, not rounded. (1, 1) where both masks lack the organ, (0, 0)
        where one does.

    Raises:
        ValueError: The arrays are not uint8, not three-dimensional or not of one shape, or a label is unknown.
    """
    if prediction.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(f"labels must be uint8, got {prediction.dtype} and {truth.dtype}")
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        raise ValueError(f"labels must be two volumes of one shape, got {prediction.shape} and {truth.shape}")
    if unknown := set(labels) - set(ALL_LABELS):
        raise ValueError(f"no organ has label {min(unknown)}")
    foreground = _foreground_box(prediction | truth)
    prediction, truth = prediction[foreground], truth[foreground]
    prediction_boxes, truth_boxes = (ndimage.find_objects(mask, max_label=len(ORGANS)) for mask in (prediction, truth))
    scores = {}
    for label in labels:
        in_prediction, in_truth = prediction_boxes[label - 1], truth_boxes[label - 1]
        if in_prediction is None or in_truth is None:
            scores[label] = Score(1.0, 1.0) if in_prediction is in_truth else Score(0.0, 0.0)
            continue
        box = [slice(min(p.start, t.start), max(p.stop, t.stop)) for p, t in zip(in_prediction, in_truth, strict=True)]
        if label in SCORED_ON_TRUTH_SLICES:  # the top slice left out, as theirs; never the only one
            box[0] = slice(in_truth[0].start, max(in_truth[0].stop - 1, in_truth[0].start + 1))
        organ_prediction, organ_truth = (mask[tuple(box)] == label for mask in (prediction, truth))
        dsc = dice_coefficient(organ_prediction, organ_truth)
        if dsc < minimum_dsc:
            nsd = 0.0
        else:
            nsd = normalised_surface_dice(organ_prediction, organ_truth, spacing_mm, TOLERANCES_MM[label])
        scores[label] = Score(dsc, nsd)
    return scores


def _foreground_box(labels: np.ndarray) -> tuple[slice, ...]:
    """Box around all organs: finding each organ's own box in it takes a third of the time."""
    seen_along_z = labels.max(axis=0)
    profiles = (labels.max(axis=(1, 2)), seen_along_z.max(axis=1), seen_along_z.max(axis=0))
    occupied = [np.flatnonzero(profile) for profile in profiles]
    return tuple(slice(where[0], where[-1] + 1) if where.size else slice(0, 0) for where in occupied)


def score_files(
    prediction_path: Path, truth_path: Path, labels: Collection[int] = ALL_LABELS, minimum_dsc: float = MINIMUM_DSC
) -> Scores:
    """`score_case` of two NIfTI files, rounded to the organizers' 4 decimals.

    Raises:
        MaskError: A file is no mask, or the two differ in geometry.
    """
    prediction, truth = read_mask(prediction_path), read_mask(truth_path)
    check_same_grid(prediction, truth)
    scores = score_case(prediction.labels, truth.labels, truth.spacing_mm, labels, minimum_dsc)
    # numpy's rounding, as theirs: 0.00015 becomes 0.0002 where Python's own round() gives 0.0001.
    return {label: Score(*(float(np.round(value, 4)) for value in score)) for label, score in scores.items()}


class Cases(NamedTuple):
    """What there is to score.

    Attributes:
        pairs: Case name (the truth's file name) -> (prediction, truth), sorted by name.
        missing: Cases without a prediction.
        extra: Predictions without a truth.
    """

    pairs: dict[str, tuple[Path, Path]]
    missing: list[str]
    extra: list[str]


def find_cases(prediction: Path, truth: Path) -> Cases:
    """Pair predictions with truths: folders by equal names ending in .nii.gz, or two single files.

    Raises:
        MaskError: A path does not exist, the truth folder holds no mask, or one path is a folder and one a file.
    """
    for path in (prediction, truth):
        if not path.exists():
            raise MaskError(f"{path}: no such file or folder")
    if prediction.is_dir() != truth.is_dir():
        raise MaskError(f"{prediction} and {truth}: give two folders or two files")
    if truth.is_file():
        return Cases({truth.name: (prediction, truth)}, [], [])
    predicted, annotated = ({path.name for path in folder.glob("*.nii.gz")} for folder in (prediction, truth))
    if not annotated:
        raise MaskError(f"{truth}: no .nii.gz file in this folder")
    pairs = {name: (prediction / name, truth / name) for name in sorted(annotated & predicted)}
    return Cases(pairs, sorted(annotated - predicted), sorted(predicted - annotated))


def score_cases(
    cases: Cases, labels: Collection[int] = ALL_LABELS, minimum_dsc: float = MINIMUM_DSC, workers: int = 1
) -> Iterator[tuple[str, Scores | MaskError]]:
    """Yield (case name, scores) sorted by name; a missing prediction scores zeros.

    What `score_files` raises is yielded in place of the scores, and the others go on. Each worker process
    holds one case at a time: memory grows with `workers`, not with the number of cases.

    Raises:
        MaskError: A worker was killed, most likely for its memory.
    """
    score = partial(_score_pair, labels=tuple(labels), minimum_dsc=minimum_dsc)
    scored = _map_in_order(score, list(cases.pairs.values()), workers)
    for name in sorted([*cases.pairs, *cases.missing]):
        yield name, next(scored) if name in cases.pairs else dict.fromkeys(labels, Score(0.0, 0.0))


def _score_pair(pair: tuple[Path, Path], labels: Collection[int], minimum_dsc: float) -> Scores | MaskError:
    try:
        return score_files(*pair, labels, minimum_dsc)
    except MaskError as error:
        return error


def _map_in_order(function: Callable, items: Sequence, workers: int) -> Iterator:
    if min(workers, len(items)) <= 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(min(workers, len(items))) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool:
            raise MaskError("a worker was killed: too little memory? Try fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, do not score the rest first


def summarise(results: Mapping[str, Scores], labels: Collection[int]) -> dict:
    """Means and population standard deviations, of the scores as they stand in the CSV.

    Args:
        results: Case name -> scores of the same `labels`; at least one case.
        labels: The organs scored.

    Returns:
        {"per_organ": {abbreviation: statistics over cases}, "over_organs": statistics of the organs' means,
        "over_cases": statistics of the cases' means}; statistics are {"DSC" and "NSD": {"mean", "std"}}.
    """
    scores = np.array([[case[label] for label in labels] for case in results.values()])  # (cases, organs, 2)
    return {
        "per_organ": {ORGANS[label - 1].abbreviation: _statistics(scores[:, i]) for i, label in enumerate(labels)},
        "over_organs": _statistics(scores.mean(axis=0)),
        "over_cases": _statistics(scores.mean(axis=1)),
    }


def _statistics(scores: np.ndarray) -> dict:
    """Of (n, 2) scores."""
    return {
        metric: {"mean": round(float(values.mean()), 6), "std": round(float(values.std()), 6)}
        for metric, values in zip(METRICS, scores.T, strict=True)
    }


def write_csv(path: Path, results: Mapping[str, Scores]) -> None:
    """The organizers' columns, 4 decimals; the cells of an organ that was not scored stay empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["Name"] + [f"{organ.abbreviation}_{metric}" for metric in METRICS for organ in ORGANS])
        for name, scores in results.items():
            cells = [scores.get(organ.label, ("", "")) for organ in ORGANS]
            writer.writerow([name] + [f"{cell[i]:.4f}" if cell[i] != "" else "" for i in (0, 1) for cell in cells])


def format_table(summary: dict) -> str:
    """The summary for the terminal."""
    lines = [f"{'mean +- std':<12}  {'DSC':<16}  {'NSD':<16}"]
    rows = {**summary["per_organ"], "over organs": summary["over_organs"], "over cases": summary["over_cases"]}
    for name, statistics in rows.items():
        if name == "over organs":
            lines.append("-" * len(lines[0]))
        cells = [f"{statistics[metric]['mean']:.4f} +- {statistics[metric]['std']:.4f}" for metric in METRICS]
        lines.append(f"{name:<12}  {cells[0]}  {cells[1]}")
    return "\n".join(lines)


def parse_organs(text: str) -> tuple[int, ...]:
    """Labels, ranges, abbreviations or names, separated by commas, to sorted labels: "1-11,LK" leaves the duodenum out.

    Raises:
        argparse.ArgumentTypeError: A part is none of these.
    """
    by_name = {name.lower(): organ.label for organ in ORGANS for name in (organ.abbreviation, organ.name)}
    labels = set()
    for part in text.lower().split(","):
        first, _, last = part.strip().partition("-")
        if part.strip() in by_name:
            labels.add(by_name[part.strip()])
        elif first.isdecimal() and (last or first).isdecimal() and 1 <= int(first) <= int(last or first) <= len(ORGANS):
            labels.update(range(int(first), int(last or first) + 1))
        else:
            known = ", ".join(organ.abbreviation for organ in ORGANS)
            raise argparse.ArgumentTypeError(f"no organ {part.strip()!r}; there are 1 to {len(ORGANS)}: {known}")
    return tuple(sorted(labels))


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m evaluation.accuracy", description=__doc__.split("\n")[0])
    parser.add_argument("prediction", type=Path, metavar="PRED", help="folder of masks (.nii.gz), or one mask")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="the same of the ground truth, under the same names")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="CSV", help="scores; the .json beside it: means"
    )
    parser.add_argument(
        "--organs", type=parse_organs, default=ALL_LABELS, metavar="LIST",
        help="organs annotated in the truth, e.g. 1-11,13 or Liver,RK (default: all); the others' cells stay empty",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: one per core)")
    parser.add_argument(
        "--minimum-dsc", type=float, default=MINIMUM_DSC, metavar="DSC",
        help="NSD is 0 where DSC is below (default: %(default)s; 0 for the script published for FLARE22)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.output.suffix != ".csv":
        parser.error(f"-o must end in .csv, got {arguments.output}")
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, got {arguments.workers}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if a prediction was missing or could not be scored, 2 if nothing was scored."""
    arguments = parse_arguments(argv)
    try:
        cases = find_cases(arguments.prediction, arguments.truth)
        results: dict[str, Scores] = {}
        failed: list[str] = []
        for name, scores in score_cases(cases, arguments.organs, arguments.minimum_dsc, arguments.workers):
            if isinstance(scores, MaskError):
                failed.append(name)
                print(f"error: {scores}", file=sys.stderr)
                continue
            results[name] = scores
            dsc, nsd = np.mean(list(scores.values()), axis=0)
            print(
                f"{name}  DSC {dsc:.4f}  NSD {nsd:.4f}{'  no prediction' if name in cases.missing else ''}", flush=True
            )
        if not results:
            return ERROR_EXIT
        summary = summarise(results, arguments.organs)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_csv(arguments.output, dict(sorted([*results.items(), *((name, {}) for name in failed)])))
        companion = {
            "cases": len(results),
            "missing": cases.missing,
            "failed": failed,
            "extra": cases.extra,
            "not_annotated": [organ.abbreviation for organ in ORGANS if organ.label not in arguments.organs],
            "minimum_dsc": arguments.minimum_dsc,
            **summary,
        }
        arguments.output.with_suffix(".json").write_text(json.dumps(companion, indent=2) + "\n", encoding="utf-8")
    except (MaskError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR_EXIT
    print(f"\n{format_table(summary)}")
    if companion["not_annotated"]:
        print(f"not annotated, not scored: {', '.join(companion['not_annotated'])}")
    if cases.extra:
        print(f"warning: predictions without a truth: {', '.join(cases.extra)}", file=sys.stderr)
    if cases.missing:
        print(f"error: no prediction, scored 0: {', '.join(cases.missing)}", file=sys.stderr)
    if failed:
        print(f"error: not scored, not in the means: {', '.join(failed)}", file=sys.stderr)
    return INCOMPLETE_EXIT if cases.missing or failed else 0


if __name__ == "__main__":
    sys.exit(main())
