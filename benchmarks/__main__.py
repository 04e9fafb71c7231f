"""All benchmarks, one after the other: `python -m benchmarks [--device cuda] [--minutes 3]`.

With --minutes each is made shorter, what tells most comes first, and what the time does not reach is named.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import amount, count, result_path
from benchmarks.process import ROOT

# In the order of their worth to somebody whose time is short, each with what makes it short.
SHORT = {
    "memory": ("--steps", "1", "8", "16"),
    "cold_case": ("--runs", "2"),
    "network": ("--batches", "1", "8", "--min-time-s", "0.2"),
    "gpu_tests": (),
    "scaling": ("--slices", "75", "300", "480", "--sizes", "512", "--slice-mm"),
}
SMALL_ON_CPU = {  # the rehearsal of a visit to a GPU: what runs, not how fast
    "cold_case": ("--runs", "1", "--slices", "4", "--size", "128"),
    "network": ("--batches", "1", "--size", "64", "--matrix", "256", "--min-time-s", "0.01"),
    "scaling": ("--slices", "2", "4", "--sizes", "128", "--slice-mm"),
}


def command(name: str, device: str, threads: int, results: Path | None, short: bool) -> list[str]:
    """Command line of one benchmark."""
    if name == "gpu_tests":  # of files that have some: others may need packages that are not there
        marked = [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if "mark.gpu\n" in path.read_text()]
        return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *marked]
    line = [sys.executable, "-m", f"benchmarks.{name}", "--device", device, "--threads", str(threads)]
    if results:
        line += ["-o", str(results.resolve() / result_path(name, device).name)]
    return [*line, *((SHORT if device == "cuda" else SMALL_ON_CPU)[name] if short else ())]


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all done, 1 some failed or were not reached."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=count, default=2, help="(default: %(default)s)")
    parser.add_argument("--minutes", type=amount, help="shorter benchmarks, on a CPU toys; none after so many minutes")
    parser.add_argument("--results", type=Path, help="folder for the result files (default: results/)")
    options = parser.parse_args(arguments)
    if options.minutes and options.device == "cpu" and not options.results:
        parser.error("on a CPU --minutes is a rehearsal, of scans too small to tell a speed: give it --results")
    end_s = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    failed = []
    # A process each: what one leaves on the card, the next would count.
    for name in SHORT:
        if options.device == "cpu" and name in ("memory", "gpu_tests"):
            continue
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            failed.append(f"{name}: not reached")
            continue
        line = command(name, options.device, options.threads, options.results, bool(options.minutes))
        print(f"== {name}", flush=True)
        try:
            run = subprocess.run(line, cwd=ROOT, timeout=None if left_s == float("inf") else left_s)
            if run.returncode:
                failed.append(f"{name}: exit status {run.returncode}")
        except subprocess.TimeoutExpired:
            failed.append(f"{name}: out of time")
    for problem in failed:
        print(problem, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
