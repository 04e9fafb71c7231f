"""Time and memory over slices, drawn from the result file: `python -m benchmarks.plot`."""

import argparse
import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.machine import result_path

OUTPUT = Path(__file__).with_name("scaling.svg")


def draw(result: dict) -> Figure:
    """Two panels: seconds with their line, and peak memory above what CT and mask take."""
    points, line = result["by_slices"], result["line"]
    slices = [point["shape_zyx"][0] for point in points]
    figure = Figure(figsize=(8, 3), layout="constrained")
    time, memory = figure.subplots(1, 2)
    time.plot(slices, [point["wall_s"] for point in points], "o", label="measured")
    time.plot(slices, [line["start_s"] + line["per_slice_s"] * n for n in slices], "-", label="line")
    time.set(ylabel="seconds")
    memory.plot(slices, [point["peak_rss_mib"] for point in points], "o-", label="peak RSS")
    memory.plot(slices, [point["volumes_mib"] for point in points], "-", label="CT (int16) and mask (uint8)")
    memory.plot(slices, [point["rest_mib"] for point in points], "o-", label="all else")
    memory.set(ylabel="MiB")
    height, width = points[0]["shape_zyx"][1:]
    for panel in (time, memory):
        panel.set(xlabel=f"slices of {width}x{height}", xlim=(0, None), ylim=(0, None))
        panel.legend(fontsize="small")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("result", type=Path, nargs="?", default=result_path("scaling", "cpu"))
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="(default: benchmarks/scaling.svg)")
    options = parser.parse_args(arguments)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "scaling", "svg.fonttype": "none"})  # equal files each time
        draw(json.loads(options.result.read_text())).savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
