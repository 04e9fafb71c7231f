"""Who is trained on with labels, who without, and who validates."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from training.config import Config
from training.store import Case


class Cases(NamedTuple):
    """A store's cases by what a run does with them."""

    labelled: list[Case]
    unlabelled: list[Case]
    validation: list[Case]


def split(cases: list[Case], config: Config) -> Cases:
    """Divide a store's cases by patient: all cases of a patient are on one side.

    Only labelled whole scans validate: single slices of a patient that is left out are left out too.

    Raises:
        ValueError: The fold is unknown or has no labelled scan in the store, or `without_labels` names no patient.
    """
    held_out = set()
    if config.fold != -1:
        folds = json.loads(Path(config.folds).read_text())
        if not 0 <= config.fold < len(folds):
            raise ValueError(f"{config.folds} has folds 0 to {len(folds) - 1}, not {config.fold}")
        held_out = set(folds[config.fold])
    without_labels = set(filter(None, config.without_labels.split(",")))
    if unknown := without_labels - {case.patient for case in cases}:
        raise ValueError(f"--without-labels: no patient {', '.join(sorted(unknown))} in the store")
    training = [
        dataclasses.replace(case, annotated=(), organ_pixels=[]) if case.patient in without_labels else case
        for case in cases
        if case.patient not in held_out
    ]
    labelled = [case for case in training if case.annotated]
    unlabelled = training if config.cps_on_labelled else [case for case in training if not case.annotated]
    validation = [case for case in cases if case.patient in held_out and case.annotated and case.name == case.patient]
    if held_out and not validation:
        raise ValueError(f"fold {config.fold}: no labelled scan of {', '.join(sorted(held_out))} in the store")
    return Cases(labelled, unlabelled if config.lambda_ else [], validation)


def check_unseen(cases: list[Case], stages: list[dict], fold: int) -> None:
    """Whether the cases of a fold, if there are any, may score what came from these runs (`checkpoint.stages`).

    Raises:
        ValueError: One of the runs saw a patient, or that cannot be told.
    """
    patients = {case.patient for case in cases}
    for stage in stages if patients else ():
        if stage["data"] is None and stage["config"]["fold"] != fold:
            raise ValueError("it started from a run of another fold")
        if seen := patients & set((stage["data"] or {}).get("patients", ())):
            raise ValueError(f"{', '.join(sorted(seen))} of fold {fold} were trained on in an earlier stage")


def describe(cases: Cases) -> dict:
    """What was trained on, as plain types, for checkpoints and exported weights."""
    training = [*cases.labelled, *cases.unlabelled]
    # What size organs have, and how thick their slices are, is learned from cases whose labels show some: with and
    # without unlabelled cases, networks are scored alike.
    bodies = [case for case in cases.labelled if not case.negative] or cases.labelled
    spacings = [spacing for case in bodies for spacing in case.spacing_mm[1:]]
    slice_mm = [case.spacing_mm[0] for case in bodies for _ in range(case.shape[0])]
    return {
        "labelled": [case.name for case in cases.labelled],
        "unlabelled": [case.name for case in cases.unlabelled],
        "validation": [case.name for case in cases.validation],
        "patients": sorted({case.patient for case in training}),
        "annotated": sorted({label for case in cases.labelled for label in case.annotated}),
        "spacing_mm": [min(spacings), max(spacings)],  # in plane
        "slice_mm": statistics.median(slice_mm),  # a few single slices, which tell their distance, do not move it
    }
