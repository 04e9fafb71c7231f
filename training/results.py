"""What every result file says: with which code, on what machine; and means over patients or seeds."""

import datetime
import subprocess
from pathlib import Path

import numpy as np
import torch

from app.device import processor
from app.labels import ORGANS


def commit() -> str:
    """Git commit of this tree, "-changed" behind it if the code differs from it; "unknown" without git."""
    command = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        revision = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*command, "diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.stdout.strip() + ("-changed" if changes.returncode else "")


def provenance(device: torch.device) -> dict:
    """Commit, date and machine."""
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "torch": torch.__version__,
    }


def summary(rows: list[dict[str, float]]) -> dict[str, dict]:
    """Organ to mean, standard deviation (of the rows, n - 1; None for one) and count, over the rows that have it.

    "mean" is last: the mean of the organs' means.
    """
    organs = {}
    for organ in ORGANS:
        values = [row[organ.abbreviation] for row in rows if organ.abbreviation in row]
        if values:
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            organs[organ.abbreviation] = {"mean": float(np.mean(values)), "std": std, "n": len(values)}
    organs["mean"] = {"mean": float(np.mean([organ["mean"] for organ in organs.values()])), "n": len(rows)}
    return organs
