"""The files of an efficiency run, by the organizers' names and columns: their load_json.py reads them."""

from collections.abc import Sequence
from pathlib import Path

from evaluation import paper
from evaluation.efficiency.case import Measurement
from evaluation.efficiency.figures import INTERVAL_S, Figures, Idle, above_idle, mean
from evaluation.output import whole_file, write_csv, write_json

COLUMNS = ("Name", "Time", "GPU_Mem", "AUC_GPU_Time", "CPU_Utilization", "AUC_CPU_Time", "RAM", "AUC_RAM_Time")


def write_case(folder: Path, measurement: Measurement, idle: Idle) -> None:
    """`<stem>.json`, whose first four keys are the organizers', and three curves. Raises OSError."""
    samples = measurement.samples
    content = {
        "gpu_memory": samples.gpu_mib,
        "cpu_list": samples.cpu_percent,
        "RAM_list": samples.ram_mib,
        "time": measurement.figures.seconds,
        "run": measurement.run,
        "program_s": measurement.program_s,
        "idle": idle._asdict(),
        "error": measurement.error,
    }
    write_json(folder / f"{measurement.stem}.json", content)
    for name, label, values, idle_value in (
        ("GPU", "GPU memory (MB)", samples.gpu_mib, idle.gpu_mib),
        ("CPU", "CPU utilisation (%)", samples.cpu_used_percent, idle.cpu_percent),
        ("RAM", "RAM (MB)", samples.ram_mib, idle.ram_mib),
    ):
        _plot(folder / f"{measurement.stem}_{name}-Time.png", label, values, idle_value)


def _plot(path: Path, label: str, values: Sequence[float], idle: float | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([INTERVAL_S * (k + 1) for k in range(len(values))], values, color="#0b5c8a", label="run")
    if idle is None:
        axes.text(0.5, 0.5, "no GPU", transform=axes.transAxes, ha="center", va="center")
    else:
        axes.axhline(idle, color="#888888", linewidth=1, linestyle="--", label="idle machine")
        axes.legend(frameon=False)
    axes.set(xlabel="Time (s)", ylabel=label, xlim=(0, None), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as file:
        figure.savefig(file, dpi=100, format="png")


def write_table(path: Path, measurements: Sequence[Measurement]) -> None:
    """The organizers' columns and rounding, sorted by name; a failed case and a missing GPU have empty cells."""
    digits = (2, 0, 0, 2, 2, 2, 0)
    rows: list[Sequence] = [COLUMNS]
    for measurement in sorted(measurements):
        cells = [
            "" if value is None or measurement.error else round(float(value), places)
            for value, places in zip(measurement.figures, digits, strict=True)
        ]
        rows.append([f"{measurement.stem}.nii.gz", *cells])
    write_csv(path, rows)


def format_table(measurements: Sequence[Measurement], idle: Idle) -> list[str]:
    """Lines for the terminal: each case and the mean, as the organizers see it and above the idle machine."""
    heads = ("s", "GPU MB", "AUC GPU", "CPU %", "AUC CPU", "RAM MB", "AUC RAM")
    width = max([len(measurement.stem) for measurement in measurements] + [24])
    lines = [f"{'':<{width}}  {'in program':>10}  " + "  ".join(f"{head:>9}" for head in heads)]

    def add(name: str, figures: Figures, program_s: float | None = None) -> None:
        cells = [
            "-" if value is None else f"{value:.2f}" if k == 0 else f"{value:.0f}" for k, value in enumerate(figures)
        ]
        inside = "" if program_s is None else f"{program_s:.2f}"
        lines.append(f"{name:<{width}}  {inside:>10}  " + "  ".join(f"{cell:>9}" for cell in cells))

    net = [above_idle(measurement.figures.seconds, measurement.samples, idle) for measurement in measurements]
    for measurement, figures in zip(measurements, net, strict=True):
        add(measurement.stem, measurement.figures, measurement.program_s)
        add("  without the idle machine", figures)
    if len(measurements) > 1:
        add("mean", mean([measurement.figures for measurement in measurements]))
        add("  without the idle machine", mean(net))
    published = Figures(
        paper.SECONDS_PER_CASE, paper.MAX_GPU_MB, paper.AUC_GPU_MB_S, None, paper.AUC_CPU_PERCENT_S, None, None
    )
    add("the paper (mean)", published)
    return lines
