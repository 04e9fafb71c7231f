"""What every trial shares: its result, its command line, and its place in results/reliability.json."""

import argparse
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "reliability.json"


class Row(NamedTuple):
    """One promise and how often it was put to the test.

    Attributes:
        what: What was done, and what was counted as lost.
        tried: How many times; 0 where the machine did not allow it, with the reason in `facts["not tried"]`.
        lost: How many times the promise was broken.
        facts: Limits, figures, the first broken ones; ready for JSON.
    """

    what: str
    tried: int
    lost: int
    facts: dict


def row(what: str, problems: list[list[str]], **facts) -> Row:
    """A row from what went wrong at each try: an empty list for a try where nothing did."""
    broken = [problem for problem in problems if problem]
    if broken:
        facts["broken"] = [problem[0] for problem in broken[:5]]
    return Row(what, len(problems), len(broken), facts)


def main(module: str, trial: Callable[..., Iterable[Row]]) -> int:
    """Run one trial as a command. Its options are the trial's keyword arguments, all of them numbers.

    Args:
        module: `__spec__.name` of the trial.
        trial: Takes a folder to work in, and the options; gives its rows one by one.

    Returns:
        Exit status: 0, or 1 if anything was lost.
    """
    doc = inspect.getdoc(inspect.getmodule(trial)).split("\n")
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc[0])
    for name, parameter in list(inspect.signature(trial).parameters.items())[1:]:
        parser.add_argument(f"--{name}", type=int, default=parameter.default, help="(default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file that the result goes into, beside other trials'")
    options = vars(parser.parse_args())
    output = options.pop("output")
    start_s, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        for entry in trial(Path(folder), **options):
            print(f"{entry.tried:6d} tried {entry.lost:4d} lost  {entry.what}  {json.dumps(entry.facts)}", flush=True)
            rows.append(entry)
    seconds = round(time.perf_counter() - start_s, 1)
    if output is not None:
        _merge(output, module, options, seconds, rows)
    return int(any(entry.lost for entry in rows))


def _merge(output: Path, module: str, options: dict, seconds: float, rows: list[Row]) -> None:
    import torch  # not before: the trial of hostile files forks a small process thousands of times

    from benchmarks.machine import provenance
    from evaluation.output import write_json

    trials = json.loads(output.read_text())["trials"] if output.exists() else {}
    trials[module.rpartition(".")[2]] = {
        **provenance("cpu", torch.get_num_threads()),
        "python": sys.version.split()[0],
        "command": f"python -m {module}",
        "options": options,
        "seconds": seconds,
        "rows": [entry._asdict() for entry in rows],
    }
    write_json(output, {"trials": dict(sorted(trials.items()))})
