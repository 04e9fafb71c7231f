"""Mean of the weights of runs of one stage: `python -m training.average A/checkpoint.pt B/checkpoint.pt ... -o FILE`.

Runs that went on from the same weights with other seeds end near each other, and the mean of their weights is often
better than any of them, at the cost of one network (model soups, Wortsman et al., ICML 2022). What they started from
may be among them.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from training import checkpoint


def average(paths: list[Path]) -> dict:
    """A checkpoint of each branch's mean, to export, to cross-validate or to start from; it cannot be resumed.

    Args:
        paths: Checkpoints with as many branches each; what they started from may be exported weights, which have one.

    Raises:
        ValueError: Fewer than two files, one run twice, or runs that differ in more than seed, lack a common start or
            know more organs than that.
    """
    if len(paths) < 2:
        raise ValueError("a mean takes two files at least")
    members = [checkpoint.load_branches(path) for path in paths]
    k = max(range(len(paths)), key=lambda k: len(members[k][1]))
    latest, (branches, (*before, stage)) = paths[k], members[k]
    if not before:
        raise ValueError(f"{latest} started from Kaiming: networks initialised differently have no useful mean")
    origins = []
    for path, (other, stages) in zip(paths, members, strict=True):
        if stages == before:
            if (before[-1]["data"] or stage["data"])["annotated"] != stage["data"]["annotated"]:
                raise ValueError(f"{latest} learned other organs than {path} knows: half of each is no mean")
            origins.append("the stage before")
        elif stages[:-1] == before and _but_for_seed(stages[-1]) == _but_for_seed(stage):
            origins.append(f"seed {stages[-1]['config']['seed']}")
        else:
            raise ValueError(f"{path} and {latest} are neither runs of one stage nor a run and what it started from")
        if [branch.keys() for branch in other] != [branch.keys() for branch in branches]:
            raise ValueError(f"{path} and {latest} hold different networks")
    if len(set(origins)) < len(origins):
        raise ValueError(f"one run twice: {', '.join(origins)}")
    return {
        **checkpoint.load(latest),
        "branches": [_mean(same) for same in zip(*(own for own, _ in members), strict=True)],
        "optimisers": [],
        "validation": None,
        "mean_of": sorted(origins),
    }


def _but_for_seed(stage: dict) -> tuple:
    return {**stage["config"], "seed": None}, stage["data"], stage["step"]


def _mean(branches: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    """Of parameters and of batch norm's statistics, float32; of counters the first one's."""
    return {
        name: torch.stack([branch[name].float() for branch in branches]).mean(dim=0)
        if value.is_floating_point()
        else value
        for name, value in branches[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.average", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", help="what they started from may be exported weights")
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint to write")
    arguments = parser.parse_args()
    try:
        state = average(arguments.checkpoints)
        checkpoint.save(state, arguments.output)
    except (ValueError, OSError) as error:
        raise SystemExit(f"training.average: {error}") from None
    print(f"{arguments.output}: mean of {', '.join(state['mean_of'])}")


if __name__ == "__main__":
    main()
