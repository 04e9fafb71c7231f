"""What a look leaves out, and what that costs, by how far looks lie apart: `python -m benchmarks.look CT...`.

Every scan is segmented slab by slab, without a look; then looks are simulated on its labels, which they would have
shown: slices left out, voxels of the mask that would be missing, and hand-labelled ones among those left out.
"""

from pathlib import Path

import numpy as np
import torch

from app.cases import Case, find_cases
from app.ct import read_ct
from app.errors import InputError, UsageError
from app.inference import segment_volume
from app.look import LOOK_MM, Look, is_of_use, looked_at, slabs_per_look, stretches_with_organs
from app.segment import Segmenter
from app.slabs import Slabs
from app.volume import read_volume
from app.weights import load_weights
from benchmarks import machine


def kept_slices(labels: np.ndarray, slices_per_slab: int, step: int) -> np.ndarray:
    """Which slices a look leaves in, bool (z,): a slab shows what the slice in its middle was given."""
    slabs = Slabs(labels, slices_per_slab)
    if not is_of_use(len(slabs), step):
        return np.ones(len(labels), bool)
    kept = np.zeros(len(labels), bool)
    for below, above in stretches_with_organs(_look(labels, slabs, index) for index in looked_at(len(slabs), step)):
        kept[slabs.slices_of(below.slab, above.slab)] = True
    return kept


def _look(labels: np.ndarray, slabs: Slabs, index: int) -> Look:
    slices = slabs.slices_of(index, index)
    return Look(index, bool(labels[(slices.start + slices.stop) // 2].any()), torch.empty(0))


def measure(case: Case, labels: Path | None, segmenter: Segmenter, looks_mm: list[float]) -> dict:
    """One scan: what is left out and lost at each distance between looks.

    Raises:
        app.errors.InputError: The scan or its label map cannot be used.
    """
    volume = read_ct(case.source)
    truth = read_volume(labels).hu if labels else np.zeros(volume.hu.shape, np.int16)
    if truth.shape != volume.hu.shape:
        raise InputError(f"{labels}: its shape is not that of {case.input}")
    before_filters: list[np.ndarray] = []

    def segment_all(hu: np.ndarray, statistics_hu: tuple[float, float], slices_per_slab: int, **_: int) -> np.ndarray:
        before_filters.append(segmenter(hu, statistics_hu, slices_per_slab=slices_per_slab))
        return before_filters[0].copy()

    spacing_mm, weights = volume.geometry.spacing_mm, segmenter.weights
    mask = segment_volume(segment_all, volume.hu, spacing_mm, weights.spacing_mm, weights.slice_mm)
    slab_mm = mask.slices_per_slab * spacing_mm[0]
    by_look = []
    for look_mm in looks_mm:
        kept = kept_slices(before_filters[0], mask.slices_per_slab, slabs_per_look(slab_mm, look_mm))
        by_look.append(
            {
                "look_mm": look_mm,
                "slices_left_out": int((~kept).sum()),
                "mask_voxels_lost": int(((mask.labels > 0)[~kept]).sum()),
                "annotated_voxels_lost": int((truth[~kept] > 0).sum()),
            }
        )
    return {
        "scan": case.name,
        "slices": len(truth),
        "slice_mm": spacing_mm[0],
        "annotated": labels is not None,
        "looks": by_look,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = machine.parser("look", __doc__)
    add = parser.add_argument
    add("scans", type=Path, nargs="+", help="CTs, or folders of them")
    add("--labels", type=Path, metavar="DIR", help="label maps CASE.nii.gz of those scans that have one")
    add("--look-mm", type=machine.amount, nargs="+", default=[12.0, LOOK_MM, 48.0, 72.0], metavar="MM",
        help="from one look to the next (default: 12 24 48 72)")  # fmt: skip
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    segmenter = Segmenter(load_weights(options.weights), torch.device(options.device), 2048)
    rows = []
    try:
        for case in find_cases(options.scans, Path("masks")):
            labels = options.labels / f"{case.name}.nii.gz" if options.labels else None
            rows.append(measure(case, labels if labels and labels.exists() else None, segmenter, options.look_mm))
            print(rows[-1], flush=True)
    except (InputError, UsageError) as error:
        parser.error(str(error))
    machine.save("look", options, {"weights": segmenter.weights.sha256, "scans": rows})


if __name__ == "__main__":
    main()
