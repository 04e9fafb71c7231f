"""All trials, one after the other, into results/reliability.json: `python -m tests.reliability`.

Each is a command of its own too: `python -m tests.reliability.kills --help`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.reliability.trial import RESULTS, ROOT

TRIALS = (
    "hostile", "dicom", "kills", "disks", "container_memory", "long_run", "determinism", "metamorphic", "locked",
    "suite",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__.split("\n")[0])
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"of {', '.join(TRIALS)} (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="(default: results/reliability.json)")
    arguments = parser.parse_args()
    if unknown := {*arguments.trials} - {*TRIALS}:
        parser.error(f"no such trial: {', '.join(sorted(unknown))}")
    status = 0
    for name in arguments.trials or TRIALS:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"tests.reliability.{name}", "-o", str(arguments.output.resolve())]
        status |= subprocess.run(command, cwd=ROOT).returncode
    return int(bool(status))


if __name__ == "__main__":
    sys.exit(main())
