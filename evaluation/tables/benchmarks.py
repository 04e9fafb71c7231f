"""Tables of time and memory: our program, the naive one and others', the network, whole processes by size of the scan.

results/benchmark_NAME.json       benchmarks.NAME; on a GPU benchmark_NAME_cuda.json
"""

import itertools
import statistics
from collections.abc import Sequence

from evaluation import paper
from evaluation.tables.markdown import machine, markdown

PEER_COSTS = {"wall_s": "seconds", "cpu_s": "CPU seconds", "peak_rss_mib": "peak RSS, MiB"}


def cold_case(result: dict) -> str:
    """Our program against the naive one, whole processes."""
    rows = []
    for key, name, unit in (
        ("wall_s", "from start to mask", "s"),
        ("cpu_s", "CPU time", "s"),
        ("peak_rss_mib", "peak memory (RSS)", "MiB"),
        ("torch_reserved_mib", "torch's memory on the card", "MiB"),
    ):
        ratio = result["naive_over_ours"].get(key)
        ratios = f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
        cells = [_range([run[key] for run in result[who] if run[key] is not None], unit) for who in ("ours", "naive")]
        if any(cells):
            rows.append([name, *cells, ratios])
    differing = result["differing_share"]
    others = {"naive": "from the naive one", "ours_float32": "from our own in float32"}
    shares = ", ".join(f"in {100 * differing[key]:.3f} % {other}" for key, other in others.items() if key in differing)
    return (
        f"{markdown([f'{_size(result)}, {_cpus(result)}', 'ours', 'naive', 'naive / ours'], rows)}\n"
        f"Median (range) of {len(result['ours'])} cold processes each, in turns. Voxels in which our mask, made in "
        f"{result['dtype']}, differs: {shares}. {_measured_on(result, 'cold_case')}\n"
    )


def cold_case_stages(result: dict) -> str:
    """Seconds of each stage of both programs; ours reads the scan while it starts up."""
    names = list(dict.fromkeys(name for who in ("naive", "ours") for run in result[who] for name in run["seconds"]))
    rows = [[name, *(_stage(result[who], name) for who in ("ours", "naive"))] for name in names]
    return (
        f"{markdown(['seconds (median)', 'ours', 'naive'], rows)}\n"
        f"Ours reads while it starts up. {_measured_on(result, 'cold_case')}\n"
    )


def cold_case_timeline(result: dict) -> str:
    """What our program does when, from one run's samples every 0.1 s; and what imports take."""
    profile = result["profile"]
    offset_s = profile["before_monitor_s"]
    first_s = offset_s + profile["samples"][0]["time_s"]
    rows = [["0.0", f"{first_s:.1f}", "the process starts", "", ""]]
    for stage, group in itertools.groupby(profile["samples"], lambda sample: sample["stage"]):
        samples = list(group)
        end_s = next((s["time_s"] for s in profile["samples"] if s["time_s"] > samples[-1]["time_s"]), None)
        times = (samples[0]["time_s"], samples[-1]["time_s"] if end_s is None else end_s)
        cpu = statistics.fmean(sample["cpu_percent"] for sample in samples)
        rss = max(sample["rss_mib"] for sample in samples)
        rows.append([*(f"{offset_s + s:.1f}" for s in times), stage or "between", f"{cpu:.0f}", f"{rss:.0f}"])
    end_s = profile["wall_s"]
    rows.append([f"{end_s - profile['after_monitor_s']:.1f}", f"{end_s:.1f}", "the process ends", "", ""])
    imports = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in list(profile["import_s"].items())[:6])
    return (
        f"{markdown(['from, s', 'to, s', 'what runs', 'CPU, %', 'largest RSS, MiB'], rows)}\n"
        f"One run; 100 % is one CPU. Imports, timed alone: {imports}. {_measured_on(result, 'cold_case')}\n"
    )


def cold_case_organizers(result: dict) -> str:
    """The organizers' efficiency figures of both programs, and what the paper reports."""
    columns = [(who, key) for key in ("organizers", "organizers_above_idle") for who in ("ours", "naive")]
    rows = []
    for key, name, printed in (
        ("seconds", "Time, s", paper.SECONDS_PER_CASE),
        ("gpu_mib", "GPU_Mem, MiB", paper.MAX_GPU_MB),
        ("auc_gpu_mib_s", "AUC_GPU_Time, MiB s", paper.AUC_GPU_MB_S),
        ("auc_cpu_percent_s", "AUC_CPU_Time, % s", paper.AUC_CPU_PERCENT_S),
        ("auc_ram_mib_s", "AUC_RAM_Time, MiB s", None),
    ):
        values = [[run[of][key] for run in result[who] if run[of][key] is not None] for who, of in columns]
        medians = [_number(statistics.median(column)) if column else "" for column in values]
        rows.append([name, *medians, "" if printed is None else _number(printed)])
    heads = ["median", "ours", "naive", "ours, idle taken off", "naive, idle taken off", "paper (another machine)"]
    return f"{markdown(heads, rows)}\n{_measured_on(result, 'cold_case')}\n"


def network(result: dict) -> str:
    """Slices a second through the network and share of the matrix product's FLOP/s."""
    measurements = result["measurements"]
    batches = sorted({m["batch"] for m in measurements})
    rows = []
    for (dtype, form, layout), group in itertools.groupby(measurements, lambda m: (m["dtype"], m["form"], m["format"])):
        by_batch = {m["batch"]: _number(m["slices_per_s"]) + _in_brackets(m["peak_share"]) for m in group}
        cells = [by_batch.get(batch, "") for batch in batches]
        rows.append([f"{dtype}, {form}, {layout}", *cells])
    peaks = ", ".join(f"{_number(tflops)} in {dtype}" for dtype, tflops in result["matmul_tflops"].items())
    return (
        f"{markdown(['slices a second', *(f'{batch} a pass' for batch in batches)], rows)}\n"
        f"{result['slice_px']}x{result['slice_px']} pixels, {result['slice_gflop']:.2f} GFLOP a slice; in brackets the "
        f"share of a large matrix product's TFLOP/s: {peaks}. {_measured_on(result, 'network')}\n"
    )


def memory(result: dict) -> str:
    """What the memory budget allows for the context and a step, and what a card took."""
    allowed = result["allowed"]
    rows = [["context, MiB", _number(result["context_mib"]), str(allowed["context_mib"])]]
    for step in result["steps"]:
        name = f"{step['slices']} slices a step, bytes a pixel"
        rows.append([name, _number(step["bytes_per_px"]), str(allowed["step_bytes_per_px"])])
    return f"{markdown(['memory', 'measured', 'allowed'], rows)}\n{_measured_on(result, 'memory')}\n"


def scaling(result: dict) -> str:
    """Seconds and memory of whole processes by size of the scan."""
    points = [*result["by_slices"], *result["by_size"], *result.get("by_thickness", [])]
    columns = {
        "wall_s": "seconds",
        "peak_rss_mib": "peak RSS, MiB",
        "volumes_mib": "CT and mask, MiB",
        "rest_mib": "all else, MiB",
        "peak_gpu_mib": "the card in use, MiB",
    }
    columns = {key: head for key, head in columns.items() if points[0][key] is not None}
    rows = [[_size(point), *(_number(point[key]) for key in columns)] for point in points]
    line, rest = result["line"], [point["rest_mib"] for point in result["by_slices"]]
    heads = [f"scan, {_cpus(result)}", *columns.values()]
    return (
        f"{markdown(heads, rows)}\n"
        f"By slices time is a line, {line['start_s']:.1f} s and {1e3 * line['per_slice_s']:.0f} ms a slice (R² "
        f"{line['r_squared']:.4f}; measurements at most {100 * line['largest_deviation']:.0f} % beside it), and memory "
        f"beside CT and mask stays within {min(rest):.0f} to {max(rest):.0f} MiB. {_measured_on(result, 'scaling')}\n"
    )


def look(result: dict) -> str:
    """What looks so far apart leave out of all scans together, and what that costs."""
    scans = result["scans"]
    annotated = sum(scan["annotated"] for scan in scans)
    rows = []
    for looks in zip(*(scan["looks"] for scan in scans), strict=True):
        shares = [look["slices_left_out"] / scan["slices"] for look, scan in zip(looks, scans, strict=True)]
        left_out = sum(look["slices_left_out"] for look in looks) / sum(scan["slices"] for scan in scans)
        lost = [f"{sum(look[key] for look in looks):,}" for key in ("mask_voxels_lost", "annotated_voxels_lost")]
        distance = f"{looks[0]['look_mm']:g} mm"
        rows.append(
            [distance, f"{100 * left_out:.0f} %", f"{100 * max(shares):.0f} %", sum(s > 0 for s in shares), *lost]
        )
    heads = ["from look to look", "slices left out", "of one scan, at most", "scans with any",
             "voxels of the mask lost", "annotated voxels lost"]  # fmt: skip
    return (
        f"{markdown(heads, rows)}\n"
        f"{len(scans)} scans, {annotated} of them with label maps. {_measured_on(result, 'look')}\n"
    )


def peers(result: dict) -> str:
    """Our program and what a user would run instead, on one scan; costs are medians."""
    programs = result["programs"]
    costs = {
        name: {key: statistics.median(run[key] for run in program["runs"]) for key in PEER_COSTS}
        for name, program in programs.items()
    }
    rows = []
    for name, program in programs.items():
        networks = f"{program['networks']} networks, " if program["networks"] > 1 else ""
        patch = f"{networks}{_by(program['patch_vox'])}" if program["patch_vox"] else "the body in a slice"
        spacing_mm = f"{_by(program['spacing_mm'])} mm" if program["spacing_mm"] else "the scan's"
        times = "" if name == "ours" else f"**{_number(costs[name]['wall_s'] / costs['ours']['wall_s'])}**"
        numbers = [_number(costs[name][key]) for key in PEER_COSTS]
        rows.append([program["title"], program["classes"], patch, spacing_mm, *numbers, times])
    heads = [_cpus(result), "organs", "patch", "spacing", *PEER_COSTS.values(), "seconds / ours"]
    packages = {name: version for program in programs.values() for name, version in program["packages"].items()}
    del packages["ours"]
    notes = [
        f"{result['scan']}: {_size(result)} voxels of {_by(result['spacing_zyx_mm'])} mm. Median of "
        f"{len(programs['ours']['runs'])} cold processes each, in turns.",
        f"The others have random weights and run in float32; ours ran in {programs['ours']['dtype']}.",
        *[f"{len(result[key])} {key}: {', '.join(result[key])}." for key in ("missing", "failed") if result[key]],
    ]
    if result["machine_cpus"] > result["threads"]:
        notes.append(f"TotalSegmentator and nnU-Net start a thread for each of the machine's {result['machine_cpus']}.")
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"{markdown(heads, rows)}\n{' '.join(notes)} {versions}. {_measured_on(result, 'peers')}\n"


def _number(value: float) -> str:
    """Three digits, or as many as it has before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _in_brackets(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:.0f} %)"


def _range(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    return f"{_number(statistics.median(values))} {unit} ({_number(min(values))} to {_number(max(values))})"


def _stage(runs: Sequence[dict], name: str) -> str:
    values = [run["seconds"][name] for run in runs if name in run["seconds"]]
    return f"{statistics.median(values):.2f}" if values else ""


def _size(result: dict) -> str:
    depth, height, width = result["shape_zyx"]
    thickness = f" of {result['slice_mm']:g} mm" if "slice_mm" in result else ""
    return f"{width}x{height}x{depth}{thickness}"


def _by(sizes_zyx: Sequence[float]) -> str:
    return "x".join(f"{size:g}" for size in reversed(sizes_zyx))


def _cpus(result: dict) -> str:
    return f"{result['threads']} CPU{'s' if result['threads'] > 1 else ''}"


def _measured_on(result: dict, command: str) -> str:
    return f"{machine(result)}; `python -m benchmarks.{command}`."
