"""The tables of README, docs and benchmarks, from committed result files: `python -m evaluation.study --write`.

`<!-- table: NAME -->` ... `<!-- end -->` in a Markdown file is filled with the table NAME; `--check` fails when
one is out of date. NAME or NAME.PART is of the result file NAME.json, as these commands write it:

    results/crossvalidation.json      training.crossvalidate: {"organs": ..., "folds": ...}
    results/table3_miniature.json     training.table3: {"with_unlabelled": {"organs": ...}, "without_unlabelled": ...}
    results/benchmark_NAME.json       benchmarks.NAME; on a GPU benchmark_NAME_cuda.json
    results/reliability.json          tests.reliability: {"trials": {NAME: {"rows": [{"what", "tried", "lost"}]}}}
"""

import argparse
import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from app.labels import ORGANS
from app.progress import one_line
from evaluation import paper
from evaluation.output import say, write_text

ROOT = Path(__file__).resolve().parents[1]
FILES = ("README.md", "docs/results.md", "docs/reliability.md", "benchmarks/README.md")
ERROR_EXIT, STALE_EXIT = 2, 1

_BLOCK = re.compile(r"^(<!-- table: (\S+) -->\n)(.*?)^(<!-- end -->)$", re.MULTILINE | re.DOTALL)


class StudyError(Exception):
    """A result file or a block that cannot be used. `str` is one line."""


def crossvalidation(result: dict) -> str:
    """DSC per organ on held-out patients, mean ± SD over them, and the paper's."""
    ours = result["organs"]
    organs = _scored(ours)
    rows = [[organ, _mean_and_sd(ours[organ]), *_paper(organ)] for organ in organs]
    rows.append(["**Average**", f"**{ours['mean']['mean']:.3f}**", *_paper_average(organs)])
    patients = sorted(one_line(name) for fold in result["folds"] for name in fold["dsc"])
    table = _markdown(["DSC", "ours, held-out patients", *_PAPER_HEADS], rows)
    return (
        f"{table}\n{_not_scored(organs)}Ours: {len(patients)} patients ({', '.join(patients)}) whom the scored network "
        f"never saw; mean ± SD over them. The paper's: 50 others. Scored with torch {result['torch']} on "
        f"{result['device']}; `python -m training.crossvalidate`.\n"
    )


def table3_miniature(result: dict) -> str:
    """The paper's Table 3, DSC with and without unlabelled data, beside ours on few patients at a small size."""
    arms = [result[arm]["organs"] for arm in ("with_unlabelled", "without_unlabelled")]
    organs = _scored(arms[0])
    if organs != _scored(arms[1]) or arms[0]["mean"]["n"] != arms[1]["mean"]["n"]:
        raise StudyError("with_unlabelled and without_unlabelled are not of the same organs and seeds")
    rows = [[organ, *(_mean_and_sd(arm[organ]) for arm in arms), *_paper(organ)] for organ in organs]
    averages = (f"**{arm['mean']['mean']:.3f}**" for arm in arms)
    rows.append(["**Average**", *averages, *_paper_average(organs)])
    table = _markdown(["DSC", "ours (w/ un)", "ours (w/o un)", *_PAPER_HEADS], rows)
    return (
        f"{table}\n{_not_scored(organs)}Ours: mean ± SD over {arms[0]['mean']['n']} seeds; torch {result['torch']} on "
        f"{result['device']}; `python -m training.table3`.\n"
    )


def cold_case(result: dict) -> str:
    """Our program against the naive one, whole processes."""
    rows = []
    for key, name, unit in (
        ("wall_s", "from start to mask", "s"),
        ("cpu_s", "CPU time", "s"),
        ("peak_rss_mib", "peak memory (RSS)", "MiB"),
        ("torch_reserved_mib", "torch's memory on the card", "MiB"),
    ):
        ratio = result["plain_over_ours"].get(key)
        ratios = f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
        cells = [_range([run[key] for run in result[who] if run[key] is not None], unit) for who in ("ours", "plain")]
        if any(cells):
            rows.append([name, *cells, ratios])
    differing = result["differing_share"]
    others = {"plain": "from the naive one", "ours_float32": "from our own in float32"}
    shares = ", ".join(f"in {100 * differing[key]:.3f} % {other}" for key, other in others.items() if key in differing)
    return (
        f"{_markdown([f'{_size(result)}, {_cpus(result)}', 'ours', 'naive', 'naive / ours'], rows)}\n"
        f"Median (range) of {len(result['ours'])} cold processes each, in turns. Voxels in which our mask, made in "
        f"{result['dtype']}, differs: {shares}. {_measured_on(result, 'cold_case')}\n"
    )


def cold_case_stages(result: dict) -> str:
    """Seconds of each stage of both programs; ours reads the scan while it starts up."""
    names = list(dict.fromkeys(name for who in ("plain", "ours") for run in result[who] for name in run["seconds"]))
    rows = [[name, *(_stage(result[who], name) for who in ("ours", "plain"))] for name in names]
    return (
        f"{_markdown(['seconds (median)', 'ours', 'naive'], rows)}\n"
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
        f"{_markdown(['from, s', 'to, s', 'what runs', 'CPU, %', 'largest RSS, MiB'], rows)}\n"
        f"One run; 100 % is one CPU. Imports, timed alone: {imports}. {_measured_on(result, 'cold_case')}\n"
    )


def cold_case_organizers(result: dict) -> str:
    """The organizers' efficiency figures of both programs, and what the paper reports."""
    columns = [(who, key) for key in ("organizers", "organizers_above_idle") for who in ("ours", "plain")]
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
    return f"{_markdown(heads, rows)}\n{_measured_on(result, 'cold_case')}\n"


def network(result: dict) -> str:
    """Slices a second through the network and share of the matrix product's FLOP/s."""
    measurements = result["measurements"]
    batches = sorted({m["batch"] for m in measurements})
    rows = []
    for (dtype, form, layout), group in itertools.groupby(measurements, lambda m: (m["dtype"], m["form"], m["format"])):
        by_batch = {m["batch"]: f"{_number(m['slices_per_s'])} ({100 * m['peak_share']:.0f} %)" for m in group}
        cells = [by_batch.get(batch, "") for batch in batches]
        rows.append([f"{dtype}, {form}, {layout}", *cells])
    peaks = ", ".join(f"{_number(tflops)} in {dtype}" for dtype, tflops in result["matmul_tflops"].items())
    return (
        f"{_markdown(['slices a second', *(f'{batch} a pass' for batch in batches)], rows)}\n"
        f"{result['slice_px']}x{result['slice_px']} pixels, {result['slice_gflop']:.2f} GFLOP a slice; in brackets the "
        f"share of a large matrix product's TFLOP/s: {peaks}. {_measured_on(result, 'network')}\n"
    )


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
        f"{_markdown(heads, rows)}\n"
        f"By slices time is a line, {line['start_s']:.1f} s and {1e3 * line['per_slice_s']:.0f} ms a slice (R² "
        f"{line['r_squared']:.4f}; measurements at most {100 * line['largest_deviation']:.0f} % beside it), and memory "
        f"beside CT and mask stays within {min(rest):.0f} to {max(rest):.0f} MiB. {_measured_on(result, 'scaling')}\n"
    )


def reliability(result: dict) -> str:
    """What was tried, how often, how often it was lost, and the trial that tells more."""
    trials = result["trials"]
    rows = [
        [row["what"], *([str(row["tried"]), str(row["lost"])] if row["tried"] else ["not tried", ""]), f"`{name}`"]
        for name, trial in trials.items()
        for row in trial["rows"]
    ]
    machines = sorted({_machine(trial) for trial in trials.values()})
    return (
        f"{_markdown(['what', 'tried', 'lost', 'trial'], rows)}\n"
        "Lost is a promise broken; what each trial counts so, and its limits, stand at its head, its figures in "
        f"results/reliability.json. On {'; '.join(machines)}; `python -m tests.reliability TRIAL`.\n"
    )


TABLES: dict[str, Callable[[dict], str]] = {
    "crossvalidation": crossvalidation,
    "table3_miniature": table3_miniature,
    "reliability": reliability,
    **{
        f"benchmark_{name}{device}{part}": table
        for device in ("", "_cuda")
        for name, part, table in (
            ("cold_case", "", cold_case),
            ("cold_case", ".stages", cold_case_stages),
            ("cold_case", ".timeline", cold_case_timeline),
            ("cold_case", ".organizers", cold_case_organizers),
            ("network", "", network),
            ("scaling", "", scaling),
        )
    },
}

_PAPER_HEADS = ("paper (w/ un)", "paper (w/o un)")


def _scored(organs: dict) -> list[str]:
    return [organ.abbreviation for organ in ORGANS if organ.abbreviation in organs]


def _paper(organ: str) -> list[str]:
    return [f"{value:.3f}" for value in paper.TABLE_3[organ]]


def _paper_average(organs: Sequence[str]) -> list[str]:
    """Over the organs that we have too."""
    return [f"**{sum(paper.TABLE_3[organ][k] for organ in organs) / len(organs):.3f}**" for k in (0, 1)]


def _mean_and_sd(statistics: dict) -> str:
    spread = "" if statistics["std"] is None else f" ± {statistics['std']:.3f}"
    return f"{statistics['mean']:.3f}{spread}"


def _not_scored(organs: Sequence[str]) -> str:
    missing = [organ.name for organ in ORGANS if organ.abbreviation not in organs]
    return f"Averages, the paper's too, are without what was not scored: {', '.join(missing)}. " if missing else ""


def _number(value: float) -> str:
    """Three digits, or as many as it has before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


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


def _cpus(result: dict) -> str:
    return f"{result['threads']} CPU{'s' if result['threads'] > 1 else ''}"


def _measured_on(result: dict, command: str) -> str:
    return f"{_machine(result)}; `python -m benchmarks.{command}`."


def _machine(result: dict) -> str:
    processor = f"{result['processor']} ({', '.join(result['flags']) or 'none of AVX2, AVX-512, AMX'})"
    card = "" if result["device"] == result["processor"] else f"{result['device']}, "
    return f"{card}{processor}, torch {result['torch']}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def make(name: str, results: Path) -> str:
    """The table NAME as Markdown; "" where its result file is not there yet.

    Raises:
        StudyError: There is no such table, or its result file does not hold what it should.
    """
    if name not in TABLES:
        raise StudyError(f"no table {name!r}; there are {', '.join(TABLES)}")
    path = results / f"{name.partition('.')[0]}.json"
    if not path.exists():
        return ""
    try:
        return TABLES[name](json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path}: not a result of its command ({type(error).__name__}: {error})") from None
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None


def filled(text: str, results: Path) -> str:
    """The Markdown with every block's table made anew.

    Raises:
        StudyError: As `make`, or a block is not closed.
    """
    if text.count("<!-- table: ") != len(_BLOCK.findall(text)):
        raise StudyError('a block "<!-- table: NAME -->" has no line "<!-- end -->"')

    def block(match: re.Match) -> str:
        table = make(match[2], results)
        return f"{match[1]}\n{table}\n{match[4]}" if table else f"{match[1]}{match[4]}"

    return _BLOCK.sub(block, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if --check found a table out of date, 2 if something cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.study", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("files", type=Path, nargs="*", metavar="FILE", help=f"Markdown files (default: {', '.join(FILES)})")
    add("--results", type=Path, default=ROOT / "results", metavar="DIR", help="result files (default: results/)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="fill the blocks of the files; without, print the tables")
    action.add_argument("--check", action="store_true", help="change nothing; fail if a block is out of date")
    arguments = parser.parse_args(argv)
    files = arguments.files or [path for path in (ROOT / name for name in FILES) if path.exists()]
    try:
        if not (arguments.write or arguments.check):
            for name in TABLES:
                for line in [name, "", *(make(name, arguments.results) or "no result file yet").split("\n")]:
                    say(line)
            return 0
        stale = []
        for path in files:
            before = path.read_text(encoding="utf-8")
            try:
                after = filled(before, arguments.results)
            except StudyError as error:
                raise StudyError(f"{path}: {error}") from None
            if after != before:
                stale.append(str(path))
                if arguments.write:
                    write_text(path, after)
    except (StudyError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return ERROR_EXIT
    if arguments.check and stale:
        say(f"error: tables out of date, run `python -m evaluation.study --write`: {', '.join(stale)}", sys.stderr)
        return STALE_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())
