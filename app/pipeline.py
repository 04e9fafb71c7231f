"""One case from path to path: the only file that knows all the stages."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.cases import Case
from app.geometry import Geometry
from app.labels import ORGANS
from app.maskfile import write_mask
from app.measure import Measure, measure_organs
from app.monitor import ResourceMonitor
from app.preview import write_preview
from app.quality import OK, assess
from app.runjson import CaseEntry
from app.segment import Segmenter
from app.volume import Volume

log = logging.getLogger(__name__)


def segment_case(
    case: Case,
    volume: Volume,
    segmenter: Segmenter,
    monitor: ResourceMonitor,
    on_slices: Callable[[int, int], None],
    preview: Path | None = None,
) -> CaseEntry:
    """Segment one CT that has been read, and write its mask.

    Args:
        case: Names the mask's file.
        volume: The CT.
        segmenter: The network.
        monitor: Is told the stages.
        on_slices: Called with slices done and slices in all.
        preview: PNG to write, or None.

    Returns:
        What run.json says of the case: shapes, statistics, seconds per stage, organs, quality, checksums.

    Raises:
        app.errors.OutputError: The mask could not be written.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        with monitor.stage(name, case.name):
            yield
        seconds[name] = round(time.perf_counter() - start_s, 3)

    hu, geometry = volume.hu, volume.geometry
    warnings = list(volume.warnings)
    segmentation = segmenter.segment_volume(hu, geometry.spacing_mm, lambda done: on_slices(done, len(hu)), stage)
    labels = segmentation.labels
    with stage("assess"):
        measures = measure_organs(labels, hu, geometry.voxel_ml)
        quality = assess(labels, hu, geometry.spacing_mm, measures)
    if quality.verdict != OK:
        log.warning("%s: %s: %s", case.input, quality.verdict, "; ".join(quality.reasons))
    if preview is not None:
        with stage("preview"):
            try:
                write_preview(preview, hu, labels, geometry.spacing_mm)
            except (OSError, MemoryError) as error:  # the mask counts
                warnings.append(f"no preview: {error}" if str(error) else "no preview: not enough memory")
                log.warning("%s: %s", case.input, warnings[-1])
    with stage("write"):  # last: the record names a mask as soon as it is there
        mask_sha256 = write_mask(labels, geometry, case.mask)
    return {
        "shape_zyx": list(hu.shape),
        "spacing_mm_zyx": list(geometry.spacing_mm),
        "network_spacing_mm_yx": list(segmentation.network_spacing_mm),
        "slices_per_slab": segmentation.slices_per_slab,
        "slabs_per_look": segmentation.slabs_per_look,
        "mean_hu": segmentation.statistics_hu[0],
        "std_hu": segmentation.statistics_hu[1],
        "device": segmenter.used_device.type,
        "warnings": warnings,
        "seconds": seconds,
        "organs": {organ.abbreviation: _organ(measures[organ.label], geometry) for organ in ORGANS},
        "quality": {"verdict": quality.verdict, "reasons": list(quality.reasons)},
        "input_sha256": volume.sha256,
        "mask_sha256": mask_sha256,
    }


def _organ(measure: Measure, geometry: Geometry) -> dict[str, Any]:
    """What run.json says of an organ; its slices counted as the file counts them."""
    entry = measure._asdict()
    first, last, top = measure.first_slice, measure.last_slice, geometry.shape[0] - 1
    if first is not None and last is not None and geometry.flips[geometry.axes.index(0)]:
        entry |= {"first_slice": top - last, "last_slice": top - first}
    return entry
