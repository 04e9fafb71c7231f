"""Memory and CPU over time, with the stages of the run under them, as one SVG."""

import base64
import io
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from evaluation.report.views import Picture

matplotlib.rcParams.update(
    {"svg.hashsalt": "report", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)

POINTS = 1200  # a curve of more samples is thinned to about this many maxima
GPU_TOLERANCE_MB = 2048  # FLARE22's, for the whole card
BACKGROUND_STAGES = ("read", "resume")  # alone, they keep the main thread waiting
STAGE_COLOURS = {
    "start-up": "#9aa5b1", "read": "#8ecae6", "resume": "#8ecae6", "preprocess": "#ffca7a", "segment": "#2a6f97",
    "postprocess": "#b56576", "write": "#6a994e", "preview": "#c9ada7",
}  # fmt: skip
OTHER_STAGE = "#d9d9d9"
LEGEND: dict[str, Any] = {
    "loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 4, "frameon": False, "borderaxespad": 0.1,
}  # fmt: skip


def curves(samples: Sequence[dict], cases: Sequence[str]) -> Picture | None:
    """None without samples. A panel for the GPU only where there was one.

    Args:
        samples: Rows of monitor.csv.
        cases: Names; the picture has their numbers, from 1, since matplotlib's font lacks most scripts.
    """
    if len(samples) < 2:
        return None
    has_gpu = any(row["gpu_used_mib"] is not None for row in samples)
    ratios = [1.2] * has_gpu + [1.2, 1, 0.5]
    figure = Figure(figsize=(10, sum(ratios) * 1.75), layout="constrained")
    FigureCanvasSVG(figure)
    panels = list(figure.subplots(len(ratios), sharex=True, height_ratios=ratios))
    if has_gpu:
        _gpu_panel(panels.pop(0), samples)
    memory, cpu, stages = panels
    _curve(memory, samples, "rss_mib", "this run", "#2a6f97")
    _curve(memory, samples, "host_ram_used_mib", "whole host", "#9aa5b1")
    memory.set_ylabel("RAM (MB)")
    _curve(cpu, samples, "cpu_percent", "whole host", "#9aa5b1")
    cpu.set(ylabel="CPU (%)", ylim=(0, 105))
    used = cpu.twinx()
    _curve(used, samples, "process_cpu_percent", "this run, in cores", "#2a6f97", scale=0.01)
    used.set_ylabel("cores")
    used.spines["right"].set_visible(True)
    for axes in (memory, cpu):
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
    handles = [*cpu.get_legend_handles_labels()[0], *used.get_legend_handles_labels()[0]]
    cpu.legend(handles=handles, **LEGEND)
    memory.legend(**LEGEND)
    _stage_panel(stages, samples, cases)
    for axes in (memory, used):
        axes.set_ylim(0, None)
    stages.set(xlabel="Time (s)", xlim=(0, samples[-1]["time_s"]))
    return _svg(figure, _words(samples, has_gpu))


def _gpu_panel(axes: Axes, samples: Sequence[dict]) -> None:
    _curve(axes, samples, "gpu_used_mib", "whole card", "#9aa5b1")
    _curve(axes, samples, "torch_reserved_mib", "PyTorch, reserved", "#8ecae6")
    _curve(axes, samples, "torch_allocated_mib", "PyTorch, in use", "#2a6f97")
    axes.axhline(GPU_TOLERANCE_MB, color="#bb3e03", linewidth=1, linestyle="--", label="FLARE22's tolerance")
    axes.set(ylabel="GPU memory (MB)", ylim=(0, None))
    axes.grid(axis="y", color="#eeeeee")
    axes.legend(**LEGEND)


def _curve(axes: Axes, samples: Sequence[dict], column: str, label: str, colour: str, scale: float = 1) -> None:
    points = [(row["time_s"], row[column] * scale) for row in samples if row[column] is not None]
    if points:
        axes.plot(*_thinned(np.array(points)).T, color=colour, label=label, linewidth=1.2)


def _thinned(points: np.ndarray) -> np.ndarray:
    """Of (n, 2) times and values, the largest value of each bin of equally many."""
    size = -(-len(points) // POINTS)
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    return np.array([part[np.argmax(part[:, 1])] for part in bins])


def _stage_panel(axes: Axes, samples: Sequence[dict], cases: Sequence[str]) -> None:
    """Upper row: the main thread; lower row: reading ahead. A stage lasts until the next sample."""
    numbers = {name: str(number) for number, name in enumerate(cases, start=1)}
    end_s = samples[-1]["time_s"]
    seen = dict.fromkeys(STAGE_COLOURS, False)
    for name, case, start_s, stop_s in stage_spans(samples):
        row = 0 if name in BACKGROUND_STAGES else 1
        colour = STAGE_COLOURS.get(name, OTHER_STAGE)
        axes.broken_barh([(start_s, stop_s - start_s)], (row + 0.06, 0.88), color=colour, linewidth=0)
        seen[name] = True
        if name == "segment" and stop_s - start_s > 0.02 * end_s:
            middle_s = (start_s + stop_s) / 2
            axes.text(middle_s, 1.5, numbers.get(case, ""), ha="center", va="center", color="white", fontsize=8)
    names = [name for name, was_seen in seen.items() if was_seen]
    handles = [Patch(color=STAGE_COLOURS.get(name, OTHER_STAGE), label=name) for name in names]
    axes.legend(handles=handles, **LEGEND | {"ncols": 8, "handlelength": 1})
    axes.set(yticks=[0.5, 1.5], yticklabels=["reading", "main"], ylim=(0, 2))
    axes.tick_params(axis="y", length=0)


def stage_spans(samples: Sequence[dict]) -> list[tuple[str, str, float, float]]:
    """(stage, case, start in s, end in s) of what ran; stages that ran at the same time overlap."""
    spans = []
    ends = [row["time_s"] for row in samples[1:]] + [samples[-1]["time_s"]]
    stages = dict.fromkeys(name for row in samples for name in row["stage"].split("+") if name)
    for stage in stages:

        def case_of(pair: tuple[dict, float], stage: str = stage) -> str | None:
            running, cases = pair[0]["stage"].split("+"), pair[0]["case"].split("+")
            if stage not in running:
                return None
            if stage in BACKGROUND_STAGES:
                return cases[-1]
            return cases[0] if len(cases) == len(running) else ""  # start-up has no case, what is read has one

        for case, group in groupby(zip(samples, ends, strict=True), key=case_of):
            pairs = list(group)
            if case is not None:
                spans.append((stage, case, pairs[0][0]["time_s"], pairs[-1][1]))
    return spans


def waiting_s(samples: Sequence[dict]) -> float:
    """How long the main thread had nothing to do but wait for a CT."""
    pairs = pairwise(samples)
    return sum(after["time_s"] - row["time_s"] for row, after in pairs if row["stage"] in BACKGROUND_STAGES)


def _words(samples: Sequence[dict], has_gpu: bool) -> str:
    def most(column: str) -> float:
        return max((row[column] for row in samples if row[column] is not None), default=0)

    gpu = f"GPU memory up to {most('gpu_used_mib'):.0f} MB, " if has_gpu else ""
    return (
        f"Curves over {samples[-1]['time_s']:.1f} s: {gpu}RAM of this run up to {most('rss_mib'):.0f} MB, "
        f"CPU of the host up to {most('cpu_percent'):.0f} %; under them the stages of the run"
    )


def _svg(figure: Figure, alt: str) -> Picture:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    return Picture(f"data:image/svg+xml;base64,{data}", (width, height), alt)
