"""Organs that a network finds where none are: `python -m training.negatives WEIGHTS --store STORE`.

Millilitres in each of the store's heads, limbs and phantoms, before `remove_traces` takes less than 50 ml for none. A
case that was trained on says little; keep some out of a run's store to ask what it does in others.
"""

import argparse
import math
from pathlib import Path

from app.device import DeviceError, choose_device
from app.inference import segment_volume
from app.labels import ORGANS
from app.measure import measure_organs
from app.segment import Segmenter
from app.weights import WeightsError, load_weights
from training import checkpoint
from training.store import read_cases, read_pixels

BUDGET_MIB = 2048  # of a GPU, the program's default


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.negatives", description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="of training.export")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    arguments = parser.parse_args()
    try:
        weights = load_weights(arguments.weights)
        _, stages = checkpoint.load_branches(arguments.weights)
        cases = [case for case in read_cases(arguments.store) if case.negative]
        segmenter = Segmenter(weights, choose_device(arguments.device), BUDGET_MIB)
    except (WeightsError, DeviceError, ValueError, OSError) as error:
        raise SystemExit(f"training.negatives: {error}") from None
    if not cases:
        raise SystemExit(f"training.negatives: {arguments.store}: no case without organs in it")
    seen = {patient for stage in stages for patient in (stage["data"] or {}).get("patients", ())}
    for case in cases:
        hu, _ = read_pixels(arguments.store, case)
        labels = segment_volume(
            segmenter, hu, case.spacing_mm, weights.spacing_mm, weights.slice_mm,
            statistics_hu=(case.mean_hu, case.std_hu), keep_traces=True,
        ).labels  # fmt: skip
        measures = measure_organs(labels, hu, math.prod(case.spacing_mm) / 1000)
        found = {organ.abbreviation: measures[organ.label].ml for organ in ORGANS if measures[organ.label].ml}
        organs = ", ".join(f"{name} {ml:.1f}" for name, ml in found.items())
        when = "trained on" if case.patient in seen else "kept out"
        print(f"{case.name:24} {when:10} {sum(found.values()):8.1f} ml  {organs}", flush=True)


if __name__ == "__main__":
    main()
