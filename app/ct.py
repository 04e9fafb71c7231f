"""The door for a CT: whatever it comes as, its voxels are checked to be HU, the same for training and inference."""

from dataclasses import replace
from pathlib import Path

from app.hounsfield import doubts
from app.volume import Volume, read_volume


def read_ct(path: Path) -> Volume:
    """Read a CT; arguments, result and errors as for `read_volume`, which label maps are read with."""
    volume = read_volume(path)
    return replace(volume, warnings=volume.warnings + doubts(volume.hu))
