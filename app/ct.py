"""The door for a CT: whatever it comes as, its voxels are checked to be HU, the same for training and inference."""

from dataclasses import replace
from pathlib import Path

from app.dicomseries import Series
from app.dicomvolume import read_series
from app.hounsfield import doubts
from app.volume import Volume, read_volume


def read_ct(source: Path | Series) -> Volume:
    """Read a CT; errors as for `read_volume` (which label maps are read with) and `read_series`.

    Args:
        source: An image file, or a DICOM series.
    """
    volume = read_series(source) if isinstance(source, Series) else read_volume(source)
    return replace(volume, warnings=volume.warnings + doubts(volume.hu))
