"""The paper's Table 3 in miniature: `python -m training.table3 --store STORE --labelled A,B [-- training flags]`.

The same labelled patients, steps and seeds, with unlabelled data (lambda 0.5) and without (lambda 0).
All other patients with labels are used without them, but for those of the fold, which validate. At 128x128
prepare the store with --shrink 4: whole slices, as in the paper, only coarser. A crop of 128 pixels would
hide from the network where in the body it is. Started again, it goes on where it was.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from evaluation.output import write_json
from training import results
from training.config import Config, parse
from training.split import split
from training.store import read_cases
from training.train import Run

# What differs from the paper's settings, for want of its 100 GPU hours; flags behind "--" override it.
MINIATURE = (
    *("--fold", "0", "--crop-px", "128"),
    *("--labelled-per-batch", "8", "--unlabelled-per-batch", "8", "--epochs", "40", "--warmup-share", "0.05"),
    *("--optimiser", "adamw", "--lr", "0.001", "--weight-decay", "0.01", "--dice-weight", "1"),
)
ARMS = {"with_unlabelled": 0.5, "without_unlabelled": 0.0}  # lambda


def arm_config(base: Config, labelled: list[str], arm: str, seed: int) -> Config:
    """Settings of one run.

    Raises:
        ValueError: A patient who shall be labelled is not in the store, or validates; or nobody does.
    """
    cases = read_cases(Path(base.store))
    with_labels = {case.patient for case in cases if case.annotated}
    division = split(cases, base)
    if not division.validation:
        raise ValueError("--fold must name a fold: nobody would validate")
    trainable = {case.patient for case in division.labelled}
    if unknown := set(labelled) - trainable:
        raise ValueError(f"no labels to train on of {', '.join(sorted(unknown))}")
    return dataclasses.replace(
        base,
        seed=seed,
        lambda_=ARMS[arm],
        without_labels=",".join(sorted(with_labels - set(labelled))),
        out=str(Path(base.out) / f"{arm}_seed{seed}"),
    )


def final_dsc(config: Config) -> tuple[dict[str, float], dict]:
    """Train to the end; DSC per organ, mean of the fold's patients and of both branches, and who was trained on."""
    run = Run(config)
    run.train()
    branches = run.validation["dsc"]
    organs = [name for name in branches[0] if name != "mean"]
    return {name: float(np.mean([branch[name] for branch in branches])) for name in organs}, run.data


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.table3", description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--labelled", required=True, help="patients whose labels are used, A,B,C")
    parser.add_argument("--runs", default="runs/table3", help="folder for the checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-o", "--output", type=Path, default=Path("results/table3_miniature.json"))
    parser.add_argument("flags", nargs="*", help="of training.train, behind --")
    arguments = parser.parse_args()
    base = parse([*MINIATURE, *arguments.flags, "--store", arguments.store, "--out", arguments.runs])
    arms: dict[str, dict] = {arm: {"seeds": {}} for arm in ARMS}
    for seed in arguments.seeds:  # arms take turns: what is done early already compares
        for arm in ARMS:
            try:
                config = arm_config(base, arguments.labelled.split(","), arm, seed)
                arms[arm]["seeds"][seed], data = final_dsc(config)
            except (ValueError, OSError) as error:
                raise SystemExit(f"training.table3: {error}") from None
            settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("store", "out", "seed")}
            organs = results.summary(list(arms[arm]["seeds"].values()))
            arms[arm] |= {"organs": organs, "config": settings, "data": data}
    device = torch.device("cuda" if torch.cuda.is_available() and base.device != "cpu" else "cpu")
    result = {**results.provenance(device), **arms}
    write_json(arguments.output, result)
    for organ, score in arms["with_unlabelled"]["organs"].items():
        print(f"{organ:12} with {score['mean']:.4f}  without {arms['without_unlabelled']['organs'][organ]['mean']:.4f}")


if __name__ == "__main__":
    main()
