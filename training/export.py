"""One branch of a checkpoint as the image takes it: `python -m training.export CHECKPOINT -o FILE`.

    {"format": 1, "state_dict": {...}, "info": {...}}, plain types only, so that it loads with weights_only=True

Convolutions are float16, which halves the file; batch norm's few numbers stay float32, some are too small
for float16. `app.weights` reads it.
"""

import argparse
import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor

from app.labels import ORGANS
from app.preprocess import WINDOW_HU
from app.weights import CLASSES, FORMAT
from evaluation.output import whole_file, write_text
from training import checkpoint
from training.results import commit

OFF_BIAS = -1e4  # of the logit of an organ that is switched off; fits float16


def export(path: Path, branch: int | None = None) -> dict:
    """What a weights file holds.

    Args:
        path: Checkpoint of training.train.
        branch: Which one; None takes the one that validated best, the first if none did.

    Raises:
        ValueError: Not a checkpoint, no such branch, or weights that float16 cannot hold.
    """
    state = checkpoint.load(path)
    branch = checkpoint.best_branch(state) if branch is None else branch
    if not 0 <= branch < len(state["branches"]):
        raise ValueError(f"{path} has branches 0 to {len(state['branches']) - 1}, not {branch}")
    stages = checkpoint.stages(state)
    data, validation = state["data"], state["validation"]
    switched_off = [organ.label for organ in ORGANS if organ.label not in data["annotated"]]
    return {
        "format": FORMAT,
        "state_dict": checkpoint.halved(switch_off(state["branches"][branch], switched_off)),
        "info": {
            "classes": list(CLASSES),
            "window_hu": list(WINDOW_HU),
            "frame_px": state["config"]["crop_px"],
            "spacing_mm": data["spacing_mm"],
            "slice_mm": data["slice_mm"],
            "switched_off": switched_off,
            "training": {
                "config": stages[-1]["config"],
                "cases": len(data["labelled"]) + len(data["unlabelled"]),
                "patients": data["patients"],
                "steps": state["step"],
                "date": state["date"],
                "commit": commit(),
                "branch": branch,
                "validation_dsc": validation and validation["dsc"][branch],
                "stages": stages,  # all runs, the first from Kaiming, this one last
            },
        },
    }


def switch_off(state: dict[str, Tensor], labels: list[int]) -> dict[str, Tensor]:
    """The branch, unable to say these labels: what no training case annotates was never learned."""
    state = {name: value.clone() for name, value in state.items()}
    state["classifier.weight"][labels] = 0
    state["classifier.bias"][labels] = OFF_BIAS
    return state


def write(content: dict, path: Path) -> str:
    """Write a weights file and FILE.sha256 beside it, as `sha256sum` does. Returns the digest."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    with whole_file(path) as file:
        file.write(buffer.getbuffer())
    write_text(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n")
    return digest


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("weights/deeplabv3plus_resnet18.pt"))
    parser.add_argument("--branch", type=int, help="default: the one that validated best, the first if none did")
    arguments = parser.parse_args()
    try:
        content = export(arguments.checkpoint, arguments.branch)
        digest = write(content, arguments.output)
    except (ValueError, OSError) as error:
        raise SystemExit(f"training.export: {error}") from None
    info = content["info"]
    print(f"{arguments.output}: branch {info['training']['branch']}, {info['training']['steps']} steps, {digest}")


if __name__ == "__main__":
    main()
