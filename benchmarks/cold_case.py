"""One scan, from a cold start to its mask: our program against a naive one. `python -m benchmarks.cold_case`.

Whole processes in turns on the same CPUs with the same threads, as users start them; the files are in the page
cache. What is written down: wall clock, CPU time, peak memory, the seconds of each stage, the organizers' figures
(evaluation.efficiency), the voxels in which the masks differ, and what our program does in each 0.1 s.
"""

import argparse
import csv
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from app.device import slices_per_step
from app.inference import segment_volume
from app.segment import segment
from app.volume import read_volume
from app.weights import load_weights
from benchmarks import machine
from benchmarks.process import ROOT, Cost, app_command, measured, run_app
from benchmarks.scan import EXAMPLE, make_scan
from evaluation.efficiency.figures import IDLE_S, Recording, Samples, above_idle, figures_of, measure_idle, open_gpu

IMPORT_TIME = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$")


def run_ours(scan: Path, outputs: Path, options: argparse.Namespace) -> tuple[dict, dict]:
    """What the result file says of a run of our program, and its run.json."""
    with Recording(options.gpu) as recording:
        cost, record = run_app(scan, outputs, options.weights, options.device, options.threads)
    seconds = {"start-up": record["start_up_s"], **record["cases"][0]["seconds"]}
    reserved_mib = record["monitor"]["peak_torch_reserved_mib"]
    return entry(cost, recording.complete(), seconds, reserved_mib, options), record


def run_naive(scan: Path, mask: Path, options: argparse.Namespace) -> dict:
    """What the result file says of a run of the naive program."""
    command = [sys.executable, "-m", "benchmarks.naive", str(scan), str(mask), "--device", options.device]
    with Recording(options.gpu) as recording:
        cost, printed = measured([*command, "--weights", str(options.weights)], options.threads)
    own = json.loads(printed)
    return entry(cost, recording.complete(), own["seconds"], own["torch_reserved_mib"], options)


def entry(
    cost: Cost, samples: Samples, seconds: dict[str, float], reserved_mib: float | None, options: argparse.Namespace
) -> dict:
    """What the result file says of one run."""
    figures = figures_of(cost.wall_s, samples)
    return {
        **cost._asdict(),
        "seconds": seconds,
        "torch_reserved_mib": reserved_mib,
        "organizers": figures._asdict(),
        "organizers_above_idle": above_idle(cost.wall_s, samples, options.idle)._asdict(),
    }


def float32_mask(scan: Path, options: argparse.Namespace) -> np.ndarray:
    """The mask that our pipeline gives in float32, of the scan as it is."""
    weights, volume = load_weights(options.weights), read_volume(scan)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # its mantissa is no longer than float16's
    step = slices_per_step(device, 2048, weights.frame_px**2)
    network = weights.network(device, torch.float32)
    segment_slices = partial(segment, network, slices_per_step=step, frame_px=weights.frame_px)
    spacing_mm = volume.geometry.spacing_mm
    return segment_volume(segment_slices, volume.hu, spacing_mm, weights.spacing_mm, weights.slice_mm).labels


def profile(scan: Path, outputs: Path, options: argparse.Namespace) -> dict:
    """What our program does when: stages and use of CPU and memory every 0.1 s, and seconds of each package's import.

    The monitor sees the run from its entry to its end; what comes before and after is the process itself.
    """
    cost, record = run_app(scan, outputs, options.weights, options.device, options.threads)
    (table,) = outputs.glob("logs/*/monitor.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"time_s": "time_s", "cpu_percent": "process_cpu_percent", "rss_mib": "rss_mib"}
    samples = [
        {"stage": row["stage"], **{key: float(row[column] or 0) for key, column in columns.items()}} for row in rows
    ]
    empty, _ = measured(app_command("--help"), options.threads)
    before_s = min(empty.wall_s, cost.wall_s - record["monitor"]["duration_s"])
    return {
        "wall_s": cost.wall_s,
        "before_monitor_s": before_s,
        "after_monitor_s": cost.wall_s - record["monitor"]["duration_s"] - before_s,
        "samples": samples,
        "import_s": import_seconds(options.threads),
    }


def import_seconds(threads: int) -> dict[str, float]:
    """Seconds that importing takes by package, itself only, of the modules that segmenting a case needs."""
    code = "import app.__main__, app.pipeline"
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1", "OMP_NUM_THREADS": str(threads)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    seconds: dict[str, float] = defaultdict(float)
    for line in run.stderr.splitlines():
        if match := IMPORT_TIME.match(line):
            package = match[2].partition(".")[0]
            standard = package in sys.stdlib_module_names or package in ("site", "encodings")
            seconds["standard library" if standard else package] += int(match[1]) / 1e6
    return dict(sorted(((name, s) for name, s in seconds.items() if s >= 0.005), key=lambda item: -item[1]))


def ratio(naive: list[dict], ours: list[dict], key: str) -> dict[str, float]:
    """Naive over ours, run by run: median and range."""
    ratios = [one[key] / other[key] for one, other in zip(naive, ours, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def main(arguments: list[str] | None = None) -> None:
    parser = machine.parser("cold_case", __doc__)
    add = parser.add_argument
    add("--runs", type=machine.count, default=5, help="of each program, in turns (default: %(default)s)")
    add("--slices", type=machine.count, default=300)
    add("--size", type=machine.count, default=512, metavar="PX", help="side of a slice (default: %(default)s)")
    add("--source", type=Path, default=EXAMPLE, help="CT whose slices are used (default: the shipped example)")
    options = parser.parse_args(arguments)
    options.gpu = open_gpu(0) if options.device == "cuda" else None
    options.idle = measure_idle(options.gpu, IDLE_S)
    with_naive = importlib.util.find_spec("SimpleITK") is not None
    if not with_naive:
        print("SimpleITK is not installed: our program is measured, the naive one is not", file=sys.stderr)
    ours, naive, differing = [], [], {}
    with tempfile.TemporaryDirectory(prefix="cold_case-") as folder:
        scratch = Path(folder)
        scan = scratch / "scan_0000.nii.gz"
        make_scan(scan, (options.slices, options.size, options.size), options.source)
        for k in range(options.runs):
            run, record = run_ours(scan, scratch / f"ours{k}", options)
            ours.append(run)
            print(f"ours {run['wall_s']:7.2f} s", flush=True)
            if with_naive:
                naive.append(run_naive(scan, scratch / "naive.nii.gz", options))
                print(f"naive {naive[-1]['wall_s']:6.2f} s", flush=True)
        profiled = profile(scan, scratch / "profile", options)
        mask = read_volume(scratch / "ours0" / "scan.nii.gz").hu
        reference = float32_mask(scan, options)
        differing["ours_float32"] = float((mask != reference).mean())
        if with_naive:
            differing["naive"] = float((mask != read_volume(scratch / "naive.nii.gz").hu).mean())
        size_mib = scan.stat().st_size / 2**20
    ratios = {key: ratio(naive, ours, key) for key in Cost._fields} if naive else {}
    result = {
        "dtype": record["dtype"],
        "shape_zyx": [options.slices, options.size, options.size],
        "scan_mib": size_mib,
        "idle": options.idle._asdict(),
        "ours": ours,
        "naive": naive,
        "naive_over_ours": ratios,
        "differing_share": differing,
        "profile": profiled,
    }
    for key, values in ratios.items():
        print(f"{key:12} naive / ours {values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})")
    print(f"share of voxels that differ: {differing}")
    machine.save("cold_case", options, result)


if __name__ == "__main__":
    main()
