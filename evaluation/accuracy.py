"""DSC and NSD by FLARE22's rules: `python -m evaluation.accuracy PRED TRUTH -o scores.csv`.

Columns and names are those of the organizers' scripts (JunMa11/FLARE); the rules are in `scoring`. The scripts pass
over a case without a prediction; here it scores 0 and is named.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.cpus import usable_cpus
from app.labels import ORGANS
from evaluation.masks import MaskError
from evaluation.organs import NOT_TOLD, AnnotatedOrgans, annotated_organs
from evaluation.output import say, write_csv, write_json
from evaluation.scoring import METRICS, MINIMUM_DSC, Score, Scores, score_files
from evaluation.summary import format_table, summarise

INCOMPLETE_EXIT = 1  # some prediction was missing (scored as zeros) or could not be scored (empty cells)
ERROR_EXIT = 2  # nothing was scored


class MaskPairs(NamedTuple):
    """What there is to score.

    Attributes:
        pairs: Case name (the truth's file name) -> (prediction or None, truth), sorted by name.
        extra: Predictions without a truth.
    """

    pairs: dict[str, tuple[Path | None, Path]]
    extra: list[str]


def pair_masks(prediction: Path, truth: Path) -> MaskPairs:
    """Pair predictions with truths: folders by equal names ending in .nii.gz, not hidden, or two single files.

    Raises:
        MaskError: A path does not exist, the truth folder holds no mask, or one path is a folder and one a file.
    """
    for path in (prediction, truth):
        if not path.exists():
            raise MaskError(f"{path}: no such file or folder")
    if prediction.is_dir() != truth.is_dir():
        raise MaskError(f"{prediction} and {truth}: give two folders or two files")
    if truth.is_file():
        return MaskPairs({truth.name: (prediction, truth)}, [])
    predicted, annotated = ({path.name for path in folder.glob("[!.]*.nii.gz")} for folder in (prediction, truth))
    if not annotated:
        raise MaskError(f"{truth}: no .nii.gz file in this folder")
    pairs = {name: (prediction / name if name in predicted else None, truth / name) for name in sorted(annotated)}
    return MaskPairs(pairs, sorted(predicted - annotated))


def score_cases(
    cases: MaskPairs, organs: AnnotatedOrgans, minimum_dsc: float = MINIMUM_DSC, workers: int = 1
) -> Iterator[tuple[str, Scores | MaskError]]:
    """Yield (case name, scores) sorted by name; a missing prediction scores zeros.

    Where a case cannot be scored, the error is yielded in place of the scores, and the others go on. Each worker
    process holds one case at a time: memory grows with `workers`, not with the number of cases.

    Raises:
        MaskError: A worker was killed, most likely for its memory.
    """
    work = [(*pair, organs.of(name)) for name, pair in cases.pairs.items()]
    yield from zip(cases.pairs, _map_in_order(partial(_score, minimum_dsc=minimum_dsc), work, workers), strict=True)


def _score(work: tuple[Path | None, Path, tuple[int, ...] | None], minimum_dsc: float) -> Scores | MaskError:
    prediction, truth, labels = work
    if labels is None:
        return MaskError(f"{truth}: {NOT_TOLD}")
    if prediction is None:
        return dict.fromkeys(labels, Score(0.0, 0.0))
    try:
        return score_files(prediction, truth, labels, minimum_dsc)
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


def _table(results: Mapping[str, Scores], failed: Sequence[str]) -> list[list[str]]:
    """The organizers' columns, 4 decimals; the cells of what was not scored are empty."""
    rows = [["Name"] + [f"{organ.abbreviation}_{metric}" for metric in METRICS for organ in ORGANS]]
    for name, scores in sorted([*results.items(), *((name, {}) for name in failed)]):
        cells = [scores.get(organ.label) for organ in ORGANS]
        rows.append([name] + [f"{cell[i]:.4f}" if cell else "" for i in range(len(METRICS)) for cell in cells])
    return rows


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m evaluation.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("prediction", type=Path, metavar="PRED", help="folder of masks (.nii.gz), or one mask")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="folder or file of ground truth, named alike")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="CSV", help="scores; the .json beside it: means"
    )
    parser.add_argument(
        "--organs", type=annotated_organs, default="1-13", metavar="LIST_OR_TSV",
        help="organs annotated in the truth, e.g. 1-11,13 or Liver,RK (default: all); the others' cells stay empty. "
        "Or a .tsv file whose first column names the cases or their files; its column 'annotated' holds their lists",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="processes (default: one per CPU)")
    parser.add_argument(
        "--minimum-dsc", type=float, default=MINIMUM_DSC, metavar="DSC",
        help="NSD is 0 where DSC is below (default: %(default)s; 0 for older versions of FLARE22's script)",
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
    results: dict[str, Scores] = {}
    missing, failed = [], []
    try:
        cases = pair_masks(arguments.prediction, arguments.truth)
        for name, scores in score_cases(cases, arguments.organs, arguments.minimum_dsc, arguments.workers):
            if isinstance(scores, MaskError):
                failed.append(name)
                say(f"error: {scores}", sys.stderr)
                continue
            results[name] = scores
            missing += [name] if cases.pairs[name][0] is None else []
            dsc, nsd = np.mean(list(scores.values()), axis=0)
            say(f"{name}  DSC {dsc:.4f}  NSD {nsd:.4f}{'  no prediction' if name in missing else ''}")
        if not results:
            return ERROR_EXIT
        annotated = set().union(*(arguments.organs.of(name) or () for name in cases.pairs))
        summary = {
            "cases": len(results),
            "missing": missing,
            "failed": failed,
            "extra": cases.extra,
            "not_annotated": [organ.abbreviation for organ in ORGANS if organ.label not in annotated],
            "minimum_dsc": arguments.minimum_dsc,
            **summarise(results),
        }
        write_csv(arguments.output, _table(results, failed))
        write_json(arguments.output.with_suffix(".json"), summary)
    except (MaskError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return ERROR_EXIT
    for line in ["", *format_table(summary)]:
        say(line)
    if summary["not_annotated"]:
        say(f"not annotated, not scored: {', '.join(summary['not_annotated'])}")
    for words, names in (
        ("warning: predictions without a truth", cases.extra),
        ("error: no prediction, scored 0", missing),
        ("error: not scored, not in the means", failed),
    ):
        if names:
            say(f"{words}: {', '.join(names)}", sys.stderr)
    return INCOMPLETE_EXIT if missing or failed else 0


if __name__ == "__main__":
    sys.exit(main())
