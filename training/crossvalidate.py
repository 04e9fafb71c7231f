"""DSC of checkpoints on their folds' held-out patients: `python -m training.crossvalidate CHECKPOINT ... -o FILE`.

One checkpoint a fold; each is scored on patients that neither it nor the runs it started from have seen.
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from tqdm import tqdm

from app.device import DeviceError, choose_device
from app.network import DeepLabV3Plus
from evaluation.output import write_json
from training import checkpoint, results
from training.config import Config, from_dict
from training.split import check_unseen, split
from training.store import Case, read_cases
from training.validate import validate


def held_out(state: dict, config: Config) -> list[Case]:
    """Cases that a checkpoint may be scored on.

    Raises:
        ValueError: It was trained on everything, or a run that it came from saw one of them.
    """
    if config.fold == -1:
        raise ValueError("trained on all patients: nobody is held out")
    cases = split(read_cases(Path(config.store)), config).validation
    check_unseen(cases, checkpoint.stages(state), config.fold)
    return cases


def score(path: Path, store: str | None, device: torch.device) -> dict:
    """One fold's entry of the result file."""
    state = checkpoint.load(path)
    config = from_dict(state["config"])
    config = dataclasses.replace(config, store=store or config.store)
    cases = held_out(state, config)
    branch = checkpoint.best_branch(state)
    network = DeepLabV3Plus()
    network.load_state_dict(state["branches"][branch])
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's gap
    scores = {}
    for case in tqdm(cases, desc=f"fold {config.fold}", unit="case"):
        by_organ = validate(network, Path(config.store), [case], config, state["data"])
        scores[case.name] = {organ: values[0] for organ, values in by_organ.items()}
    return {
        "fold": config.fold,
        "branch": branch,
        "step": state["step"],
        "total_steps": state["total_steps"],
        "stages": checkpoint.stages(state),
        "dsc": scores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.crossvalidate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/crossvalidation.json"))
    parser.add_argument("--store", help="default: the one that each was trained with")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    arguments = parser.parse_args()
    try:
        device = choose_device(arguments.device)
    except DeviceError as error:
        raise SystemExit(f"training.crossvalidate: {error}") from None
    folds = []
    for path in arguments.checkpoints:
        try:
            folds.append(score(path, arguments.store, device))
        except (ValueError, OSError) as error:
            raise SystemExit(f"training.crossvalidate: {path}: {error}") from None
    if len({fold["fold"] for fold in folds}) < len(folds):
        raise SystemExit("training.crossvalidate: two checkpoints of one fold")
    rows = [row for fold in folds for row in fold["dsc"].values()]
    result = {**results.provenance(device), "organs": results.summary(rows), "folds": folds}
    write_json(arguments.output, result)
    print(f"{len(rows)} patients, mean DSC {result['organs']['mean']['mean']:.4f}: {arguments.output}")


if __name__ == "__main__":
    main()
