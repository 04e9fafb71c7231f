"""Read a CT of any format: its voxels in HU, its spacing in mm. Training and inference both read with `read_ct`."""

from dataclasses import replace
from pathlib import Path

from app.dicomseries import Series
from app.dicomvolume import read_series
from app.errors import InputError
from app.hounsfield import put_on_hu_scale
from app.padding import fill_padding
from app.spacing import checked_spacing
from app.volume import Volume, read_volume


def read_ct(source: Path | Series) -> Volume:
    """Read a CT; errors as for `read_volume` (which label maps are read with) and `read_series`.

    Args:
        source: An image file, or a DICOM series.
    """
    volume = read_series(source) if isinstance(source, Series) else read_volume(source)
    try:
        in_mm = isinstance(source, Series)  # as the standard says
        geometry, warnings = (volume.geometry, ()) if in_mm else checked_spacing(volume.geometry)
        warnings += fill_padding(volume.hu) + put_on_hu_scale(volume.hu)
    except InputError as error:
        place = source.folder if isinstance(source, Series) else source
        raise InputError(f"{str(place)!r}: {error}") from None
    return replace(volume, geometry=geometry, warnings=volume.warnings + warnings)
