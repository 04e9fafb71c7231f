"""The door for a CT: whatever it comes as, its voxels are made HU or refused, the same for training and inference."""

from dataclasses import replace
from pathlib import Path

from app.errors import InputError
from app.hounsfield import put_on_hu_scale
from app.padding import fill_padding
from app.volume import Volume, read_volume


def read_ct(path: Path) -> Volume:
    """Read a CT; arguments, result and errors as for `read_volume`, which label maps are read with.

    Padding becomes air, and values on a scale that is certain become HU: the warnings say so.
    """
    volume = read_volume(path)
    try:
        warnings = fill_padding(volume.hu) + put_on_hu_scale(volume.hu)
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    return replace(volume, warnings=volume.warnings + warnings)
