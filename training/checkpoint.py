"""Checkpoints on disk: all state of a run, and where its branches came from. Plain types, `weights_only=True`.

format      2
config      dictionary of `training.config.Config`
data        `training.split.describe`: who was trained on
branches    state dictionaries of DeepLabV3Plus, one a branch
optimisers  their optimisers' states; of a compact checkpoint and of a mean none
step, total_steps  the second None if the run ended by the clock
trained_s   seconds in the training loop
validation  the last one: {"step": n, "dsc": [{"Liver": 0.95, ..., "mean": 0.8}, one a branch]}, or None
mean_of     of `training.average`, whose weights it is the mean of: ["seed 1", ...]; of a run None
stages      runs that `init` came from, oldest first: {"config", "data", "step", "validation", "mean_of"} each
date        UTC, when it was written
"""

import datetime
import pickle
from pathlib import Path

import torch
from torch import Tensor

from evaluation.output import whole_file
from training.config import OF_ONE_MACHINE

FILE_NAME = "checkpoint.pt"
FORMAT = 2  # a reader of another format says so and stops: runs last days, and nobody needs old ones
_STAGE = ("config", "data", "step", "validation", "mean_of")


def save(state: dict, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    for unfinished in path.parent.glob(".*.part"):  # of a run that was killed while it saved; they are large
        unfinished.unlink(missing_ok=True)
    with whole_file(path) as file:
        torch.save({**state, "format": FORMAT, "date": now}, file)


def _read(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:  # torch raises any of them
        raise ValueError(f"{path} is damaged, or no file of torch's") from error
    return state if isinstance(state, dict) else {}


def load(path: Path) -> dict:
    """Read a checkpoint.

    Raises:
        ValueError: Not a checkpoint, or one of another format.
    """
    state = _read(path)
    if "branches" not in state:
        raise ValueError(f"{path} is not a checkpoint of training.train")
    _check_format(path, state)
    return state


def _check_format(path: Path, state: dict) -> None:
    if state.get("format") != FORMAT:
        raise ValueError(f"{path} is a checkpoint of another version (format {state.get('format', 1)}, not {FORMAT})")


def compact(state: dict) -> dict:
    """A checkpoint to carry: branches in float16, no optimisers. It can be exported, scored and started from.

    Raises:
        ValueError: A branch does not fit float16.
    """
    return {**state, "branches": [halved(branch) for branch in state["branches"]], "optimisers": []}


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions in float16.

    Raises:
        ValueError: A value is too large for it, or not a number.
    """
    convolutions = {name for name, value in state.items() if value.ndim == 4} | {"classifier.bias"}
    smaller = {name: value.half() if name in convolutions else value for name, value in state.items()}
    broken = [name for name, value in smaller.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f"not finite in float16: {', '.join(broken)}")
    return {name: value.contiguous().cpu() for name, value in smaller.items()}


def load_branches(path: Path) -> tuple[list[dict[str, Tensor]], list[dict]]:
    """Branches of a checkpoint, or the one of exported weights, and the runs that made them, oldest first.

    Raises:
        ValueError: Neither a checkpoint nor exported weights.
    """
    state = _read(path)
    if "branches" in state:
        _check_format(path, state)
        return state["branches"], stages(state)
    if "state_dict" not in state:
        raise ValueError(f"{path} is neither a checkpoint of training.train nor weights of training.export")
    return [state["state_dict"]], state["info"]["training"]["stages"]


def stages(state: dict) -> list[dict]:
    """The runs that made a checkpoint, itself last, without what means nothing on another machine."""
    config = {key: value for key, value in state["config"].items() if key not in OF_ONE_MACHINE}
    return [*state["stages"], {**{key: state.get(key) for key in _STAGE}, "config": config}]


def best_branch(state: dict) -> int:
    """Index of the branch that validated best; 0 if there was no validation."""
    if state["validation"] is None:
        return 0
    means = [dsc["mean"] for dsc in state["validation"]["dsc"]]
    return means.index(max(means))
