"""What the constants of the memory budget are on this card: `python -m benchmarks.memory` (a GPU only).

The context is what the whole card uses once CUDA, cuDNN and the network are there, less what torch's allocator holds
and what the card used before. A step is measured for several numbers of slices: the largest allocation less the
network's, per pixel. `app.device` has the constants: CONTEXT_MIB, STEP_BYTES_PER_PX, MAX_SLICES_PER_STEP.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from app.device import CONTEXT_MIB, MIB, STEP_BYTES_PER_PX
from app.gpu_memory import GpuMemory
from app.segment import segment
from app.weights import load_weights
from benchmarks import machine


class Meters(NamedTuple):
    """How memory is read: the card's by NVML, and torch's on it."""

    card_mib: Callable[[], float]
    reserved_bytes: Callable[[], int]
    largest_bytes: Callable[[], int]
    reset_largest: Callable[[], None]
    empty: Callable[[], None]


def cuda_meters() -> Meters:
    """Of the first card; opens no CUDA context.

    Raises:
        SystemExit: There is no card.
    """
    try:
        card = GpuMemory(0)
    except Exception as error:  # noqa: BLE001 - NVML's own errors, or its package is missing
        raise SystemExit(f"benchmarks.memory: no NVIDIA card: {error}") from None
    cuda, card_mib = torch.cuda, lambda: card.used_mib() or 0.0  # of a card by number it is never None
    return Meters(
        card_mib, cuda.memory_reserved, cuda.max_memory_allocated, cuda.reset_peak_memory_stats, cuda.empty_cache
    )


def measure(weights: Path, device: torch.device, meters: Meters, steps: list[int], size_px: int) -> dict:
    """Context and bytes a pixel, by slices a step."""
    loaded, before_mib = load_weights(weights), meters.card_mib()
    network = loaded.network(device, torch.float16 if device.type == "cuda" else torch.float32)
    hu = np.random.default_rng(0).normal(0, 200, (max(steps), size_px, size_px)).astype(np.int16)

    def run(slices: int) -> None:
        segment(network, hu[:slices], (0.0, 200.0), slices, size_px)

    run(1)
    meters.empty()
    context_mib = meters.card_mib() - before_mib - meters.reserved_bytes() / MIB
    rows = []
    for slices in steps:
        meters.empty()
        meters.reset_largest()
        resting_bytes = meters.largest_bytes()
        run(slices)
        bytes_per_px = (meters.largest_bytes() - resting_bytes) / (slices * size_px**2)
        rows.append({"slices": slices, "bytes_per_px": bytes_per_px, "reserved_mib": meters.reserved_bytes() / MIB})
        print(f"{slices:3} slices a step: {bytes_per_px:.0f} bytes a pixel (allowed {STEP_BYTES_PER_PX})", flush=True)
    print(f"context: {context_mib:.0f} MiB (allowed {CONTEXT_MIB})")
    return {"context_mib": context_mib, "slice_px": size_px, "steps": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = machine.parser("memory", __doc__, devices=("cuda",))
    parser.add_argument("--steps", type=machine.count, nargs="+", default=[1, 2, 4, 8, 16, 32], metavar="N",
        help="slices a step (default: 1 2 4 8 16 32)")  # fmt: skip
    parser.add_argument(
        "--size", type=machine.count, default=512, metavar="PX", help="side of a slice (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    measured = measure(options.weights, device, cuda_meters(), sorted(options.steps), options.size)
    allowed = {"context_mib": CONTEXT_MIB, "step_bytes_per_px": STEP_BYTES_PER_PX}
    machine.save("memory", options, {"allowed": allowed, **measured})


if __name__ == "__main__":
    main()
