"""Time and memory against the size of the scan, whole processes: `python -m benchmarks.scaling`.

More slices at one size, then other sizes, then one body in slices of several thicknesses. What is claimed: time is
linear in the slices that are not averaged to slabs, and the peak of memory is the int16 volume, the uint8 mask and
something that does not grow.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path

from benchmarks import machine
from benchmarks.process import run_app
from benchmarks.scan import EXAMPLE, make_scan

VOXEL_BYTES = 3  # int16 HU and uint8 label


def measure(shape_zyx: tuple[int, int, int], options: argparse.Namespace, slice_mm: float | None = None) -> dict:
    """One scan, one process."""
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        scan = Path(folder) / "scan_0000.nii.gz"
        make_scan(scan, shape_zyx, options.source, level=1, slice_mm=slice_mm)
        cost, record = run_app(scan, Path(folder) / "masks", options.weights, options.device, options.threads)
    volumes_mib = VOXEL_BYTES * math.prod(shape_zyx) / 2**20
    print(
        f"{shape_zyx}: {cost.wall_s:.1f} s, {cost.peak_rss_mib:.0f} MiB, of which volumes {volumes_mib:.0f}", flush=True
    )
    return {
        "shape_zyx": list(shape_zyx),
        **cost._asdict(),
        "volumes_mib": volumes_mib,
        "rest_mib": cost.peak_rss_mib - volumes_mib,
        "slices_per_slab": record["cases"][0]["slices_per_slab"],
        "peak_gpu_mib": record["monitor"]["peak_gpu_mib"],
        "torch_reserved_mib": record["monitor"]["peak_torch_reserved_mib"],
    }


def line(points: list[dict]) -> dict:
    """The least-squares line of seconds over slices, and how far the measurements lie from it."""
    slices, wall_s = [point["shape_zyx"][0] for point in points], [point["wall_s"] for point in points]
    per_slice_s, start_s = statistics.linear_regression(slices, wall_s)
    return {
        "start_s": start_s,
        "per_slice_s": per_slice_s,
        "r_squared": statistics.correlation(slices, wall_s) ** 2,
        "largest_deviation": max(abs(start_s + per_slice_s * n - s) / s for n, s in zip(slices, wall_s, strict=True)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = machine.parser("scaling", __doc__)
    add = parser.add_argument
    add("--slices", type=machine.count, nargs="+", default=[30, 75, 150, 300, 480], metavar="N",
        help="of scans of the first size (default: 30 75 150 300 480, which are 2.4 m)")  # fmt: skip
    add(
        "--sizes",
        type=machine.count,
        nargs="+",
        default=[512, 256, 768],
        metavar="PX",
        help="sides (default: 512 256 768)",
    )
    add("--slice-mm", type=machine.amount, nargs="*", default=[2.5, 1.25, 0.625], metavar="MM",
        help="thicknesses of the slices of a body of --length-mm (default: 2.5 1.25 0.625)")  # fmt: skip
    add("--length-mm", type=machine.amount, default=750, metavar="MM", help="(default: %(default)s)")
    add("--source", type=Path, default=EXAMPLE, help="CT whose slices are used (default: the shipped example)")
    options = parser.parse_args(arguments)
    first, *others = options.sizes
    middle = sorted(options.slices)[(len(options.slices) - 1) // 2]
    by_slices = [measure((slices, first, first), options) for slices in sorted(options.slices)]
    by_size = [measure((middle, size, size), options) for size in others]
    by_thickness = [
        {"slice_mm": mm, **measure((round(options.length_mm / mm), first, first), options, mm)}
        for mm in options.slice_mm
    ]
    result = {
        "by_slices": by_slices,
        "by_size": by_size,
        "by_thickness": by_thickness,
        "line": line(by_slices),
    }
    print(result["line"])
    machine.save("scaling", options, result)


if __name__ == "__main__":
    main()
