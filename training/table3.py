"""The paper's Table 3, what unlabelled data add: `python -m training.table3 --store STORE [-- training flags]`.

The same labelled patients, steps and seeds in every arm: with unlabelled data (eq. 3), without (lambda 0), and with
them by weak-to-strong consistency: pseudo-labels that are sure, from slices that are not disturbed. Other patients
with labels are used without them, but for those of the fold, who validate: each arm's two branches are scored on them,
and so is the branches' ensemble. Started again, it goes on where it was.

By the clock (`-- --train-s 60`) the first run decides, and all others take as many steps.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np

from app.device import DeviceError
from app.network import DeepLabV3Plus
from evaluation.output import write_json
from training import results
from training.config import Config, parse
from training.ensemble import Ensemble
from training.split import split
from training.store import read_cases
from training.train import Run
from training.validate import validate

ARMS: dict[str, dict[str, Any]] = {
    "with_unlabelled": {},
    "without_unlabelled": {"lambda_": 0.0},
    "strong_views": {"strong_views": True, "min_confidence": 0.95},  # FixMatch's threshold, and UniMatch's
}


def arm_config(base: Config, labelled: list[str], arm: str, seed: int) -> Config:
    """Settings of one run.

    Args:
        base: Of all runs.
        labelled: Patients whose labels are used; of all others with organs only the images are. Empty: all.
        arm: Of ARMS.
        seed: Of the run.

    Raises:
        ValueError: A patient who shall be labelled is not in the store, or validates; or nobody does.
    """
    cases = read_cases(Path(base.store))
    with_labels = {case.patient for case in cases if case.annotated and not case.negative}
    division = split(cases, base)
    if not division.validation:
        raise ValueError("--fold must name a fold: nobody would validate")
    trainable = {case.patient for case in division.labelled}
    if unknown := set(labelled) - trainable:
        raise ValueError(f"no labels to train on of {', '.join(sorted(unknown))}")
    return dataclasses.replace(
        base,
        seed=seed,
        without_labels=",".join(sorted(with_labels - set(labelled))) if labelled else base.without_labels,
        out=str(Path(base.out) / f"{arm}_seed{seed}"),
        **ARMS[arm],
    )


def final_dsc(run: Run) -> dict[str, dict[str, float]]:
    """Train to the end; DSC per organ of the fold's patients: the mean of both branches', and their ensemble's.

    Raises:
        ValueError: It was paused, or was longer once.
    """
    run.train()
    if not run.finished or run.total_steps not in (None, run.step):
        raise ValueError(f"{run.path} is at step {run.step}, not at its end ({run.total_steps}): another --runs?")
    branches = run.validation["dsc"]
    organs = [name for name in branches[0] if name != "mean"]
    ensemble = cast(DeepLabV3Plus, Ensemble(run.branches))  # it segments as one
    both = validate(ensemble, Path(run.config.store), run.validation_cases, run.config, run.data)
    return {
        "mean": {name: float(np.mean([branch[name] for branch in branches])) for name in organs},
        "ensemble": {name: float(np.mean(values)) for name, values in both.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.table3", description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--labelled", default="", help="patients whose labels are used, A,B,C (default: all)")
    parser.add_argument("--runs", default="runs/table3", help="folder for the checkpoints")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-o", "--output", type=Path, default=Path("results/table3.json"))
    parser.add_argument("flags", nargs="*", help="of training.train, behind --")
    arguments = parser.parse_args()
    base = parse(["--fold", "0", *arguments.flags, "--store", arguments.store, "--out", arguments.runs])
    if not base.lambda_:
        parser.error("the arms with unlabelled data need a --lambda")
    labelled = [name for name in arguments.labelled.split(",") if name]
    arms: dict[str, dict] = {arm: {"seeds": {}, "ensembles": {}} for arm in arguments.arms}
    for seed in arguments.seeds:  # arms take turns: what is done early already compares
        for arm in arguments.arms:
            try:
                run = Run(arm_config(base, labelled, arm, seed))
                dsc = final_dsc(run)
            except (ValueError, OSError, DeviceError) as error:
                raise SystemExit(f"training.table3: {error}") from None
            if base.train_s:
                base = dataclasses.replace(base, train_s=0.0, epochs=run.step / run.steps_per_epoch)
            arms[arm]["seeds"][seed], arms[arm]["ensembles"][seed] = dsc["mean"], dsc["ensemble"]
            settings = {k: v for k, v in dataclasses.asdict(run.config).items() if k not in ("store", "out", "seed")}
            arms[arm] |= {"steps": run.step, "config": settings, "data": run.data}
            for kind, rows in (("organs", arms[arm]["seeds"]), ("ensemble", arms[arm]["ensembles"])):
                arms[arm][kind] = results.summary(list(rows.values()))
            if seed == arguments.seeds[0] or arm == arguments.arms[-1]:  # all that is written has as many seeds
                done = {name: values for name, values in arms.items() if values["seeds"]}
                write_json(arguments.output, {**results.provenance(run.device), **done})
            branch, both = (np.mean(list(organs.values())) for organs in dsc.values())
            print(f"{arm}, seed {seed}: {run.step} steps, mean DSC {branch:.4f}, ensemble {both:.4f}", flush=True)


if __name__ == "__main__":
    main()
