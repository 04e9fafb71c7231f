"""Where organs are lost: `python -m evaluation.errors --labels DIR --masks DIR -o errors.json`.

Each organ's missed and extra voxels, sorted into kinds (`wrong_voxels`), in ml and as shares of its annotated volume
over all cases; and its worst slices, to look at. Unlike the scores, aorta, IVC and esophagus are counted in all slices.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from app.cases import case_name
from app.labels import ORGANS
from app.record import file_sha256, finished_masks
from evaluation.accuracy import pair_masks
from evaluation.masks import MaskError, check_same_grid, read_mask
from evaluation.organs import NOT_TOLD, annotated_organs
from evaluation.output import say, write_json
from evaluation.scoring import TOLERANCES_MM
from evaluation.tables.errors import errors as table
from evaluation.wrong_voxels import KINDS, WrongVoxels, wrong_voxels
from training.results import provenance

WORST_SLICES = 5  # of each organ, over all cases
INCOMPLETE_EXIT, ERROR_EXIT = 1, 2
_NAMES = ("background", *(organ.abbreviation for organ in ORGANS))


def case_errors(mask_path: Path, truth_path: Path, labels: Iterable[int]) -> dict[str, dict]:
    """Wrong voxels of each of the organs, by its abbreviation, with the edge as wide as the tolerance of its NSD.

    Raises:
        MaskError: A file is not a readable mask, or they differ in geometry.
    """
    mask, truth = read_mask(mask_path), read_mask(truth_path)
    check_same_grid(mask, truth)
    voxel_ml = float(np.prod(truth.spacing_mm)) / 1000
    return {
        _NAMES[label]: in_ml(
            wrong_voxels(mask.labels, truth.labels, label, truth.spacing_mm, TOLERANCES_MM[label]), voxel_ml
        )
        for label in labels
    }


def in_ml(wrong: WrongVoxels, voxel_ml: float) -> dict:
    """One organ of one case as the result file has it.

    Returns:
        Volumes in ml, those by label without the labels that nothing was given to or taken from; and the slices with
        the largest wrong volumes, the worst first: z counts from 0 in the order of the file.
    """
    missed, extra = (counts.sum(axis=1) * voxel_ml for counts in (wrong.missed, wrong.extra))
    worst = [int(z) for z in np.argsort(-missed - extra, kind="stable")[:WORST_SLICES] if missed[z] + extra[z]]
    return {
        "annotated_ml": wrong.annotated * voxel_ml,
        "missed_ml": dict(zip(KINDS, (wrong.missed.sum(axis=0) * voxel_ml).tolist(), strict=True)),
        "extra_ml": dict(zip(KINDS, (wrong.extra.sum(axis=0) * voxel_ml).tolist(), strict=True)),
        "given_to_ml": {_NAMES[i]: float(wrong.given_to[i] * voxel_ml) for i in np.flatnonzero(wrong.given_to)},
        "taken_from_ml": {_NAMES[i]: float(wrong.taken_from[i] * voxel_ml) for i in np.flatnonzero(wrong.taken_from)},
        "worst_slices": [{"z": z, "missed_ml": float(missed[z]), "extra_ml": float(extra[z])} for z in worst],
    }


def over_cases(cases: Mapping[str, dict]) -> dict:
    """One organ of several cases, each as of `in_ml`.

    Returns:
        Their volumes together as shares of the annotated volume, those by label with the largest first, None where
        no case has the organ; and the worst slices of all.
    """
    annotated_ml = sum(case["annotated_ml"] for case in cases.values())
    content: dict = {"cases": len(cases), "annotated_ml": annotated_ml}
    for what in ("missed", "extra", "given_to", "taken_from"):
        total_ml: Counter[str] = Counter()
        for case in cases.values():
            total_ml.update(case[f"{what}_ml"])
        names = KINDS if what in ("missed", "extra") else [name for name, _ in total_ml.most_common()]
        content[f"{what}_share"] = {name: total_ml[name] / annotated_ml if annotated_ml else None for name in names}
    worst = [{"case": name, **one} for name, case in cases.items() for one in case["worst_slices"]]
    content["worst_slices"] = sorted(worst, key=lambda one: -one["missed_ml"] - one["extra_ml"])[:WORST_SLICES]
    return content


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m evaluation.errors", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--labels", type=Path, required=True, metavar="DIR", help="label maps, named as the masks: CASE.nii.gz")
    add("--masks", type=Path, required=True, metavar="DIR", help="masks; where a run made them, its weights are noted")
    add("--organs", type=annotated_organs, default="1-13", metavar="LIST_OR_TSV",
        help="organs annotated in the label maps, as evaluation.accuracy takes them (default: all)")  # fmt: skip
    add("-o", "--output", type=Path, required=True, metavar="JSON", help="result file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if a case could not be used, 2 if none could."""
    arguments = parse_arguments(argv)
    cases: dict[str, dict] = {}
    failed = []
    try:
        pairs, without_truth = pair_masks(arguments.masks, arguments.labels)
        # What made which mask, by SHA-256
        weights_of = {mask: weights for runs in finished_masks(arguments.masks).values() for _, weights, mask in runs}
        for name, (mask_path, truth_path) in pairs.items():
            if mask_path is None:
                continue
            case = case_name(Path(name))
            try:
                labels = arguments.organs.of(name)
                if labels is None:
                    raise MaskError(f"{truth_path}: {NOT_TOLD}")
                organs = case_errors(mask_path, truth_path, labels)
            except MaskError as error:
                failed.append(case)
                say(f"error: {error}", sys.stderr)
                continue
            cases[case] = {"weights_sha256": weights_of.get(file_sha256(mask_path) or ""), "organs": organs}
            say(case)
        if not cases and not failed:
            raise MaskError(f"{arguments.masks}: no mask of a case of {arguments.labels}")
        if not cases:
            return ERROR_EXIT
        result = {**provenance(torch.device("cpu")), "failed": failed, "organs": _by_organ(cases), "cases": cases}
        write_json(arguments.output, result)
    except (MaskError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return ERROR_EXIT
    for line in ["", *table(result).rstrip("\n").split("\n")]:
        say(line)
    for words, names in (
        ("warning: masks without a label map", without_truth),
        ("warning: label maps without a mask, not counted", [name for name, pair in pairs.items() if pair[0] is None]),
        ("error: not counted", failed),
    ):
        if names:
            say(f"{words}: {', '.join(names)}", sys.stderr)
    return INCOMPLETE_EXIT if failed else 0


def _by_organ(cases: Mapping[str, dict]) -> dict[str, dict]:
    organs = {}
    for organ in ORGANS:
        name = organ.abbreviation
        if annotating := {
            case: content["organs"][name] for case, content in cases.items() if name in content["organs"]
        }:
            organs[name] = {"edge_mm": TOLERANCES_MM[organ.label], **over_cases(annotating)}
    return organs


if __name__ == "__main__":
    sys.exit(main())
