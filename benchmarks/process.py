"""Run a command alone and say what it cost: wall clock, CPU time, peak memory.

It is started by a small process of its own (this file as a program): Linux lets a process's peak memory begin with
that of whoever started it, and the benchmarks themselves are large.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Cost(NamedTuple):
    """Of one process and the children it waited for.

    Attributes:
        wall_s: From its start until it had ended.
        cpu_s: User and system, all threads.
        peak_rss_mib: Largest resident set, shared libraries included.
    """

    wall_s: float
    cpu_s: float
    peak_rss_mib: float


class CommandFailed(Exception):
    """The command's exit status was not 0; the message has its last words."""


def measured(command: list[str], threads: int) -> tuple[Cost, str]:
    """Run a command on as many CPUs as threads; its cost, and what it printed.

    Raises:
        CommandFailed: Its exit status is not 0.
        ValueError: This process may not use so many CPUs.
    """
    cpus = os.sched_getaffinity(0)
    if threads > len(cpus):
        raise ValueError(f"{threads} threads asked for, but only {len(cpus)} CPUs are there")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "FLARE_PYTHON": sys.executable}
    os.sched_setaffinity(0, sorted(cpus)[:threads])  # of this thread, for its child to inherit
    try:
        run = subprocess.Popen(
            [sys.executable, __file__, *command], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        os.sched_setaffinity(0, cpus)
    out, err = run.communicate()
    if run.returncode:
        raise CommandFailed(f"{' '.join(command)}: exit status {run.returncode}: {err.strip()[-2000:]}")
    *printed, cost = out.splitlines()
    return Cost(*json.loads(cost)), "\n".join(printed)


def app_command(*options: object) -> list[str]:
    """Our program, started as its users start it."""
    return ["sh", str(ROOT / "predict.sh"), *map(str, options)]


def run_app(scan: Path, outputs: Path, weights: Path, device: str, threads: int) -> tuple[Cost, dict]:
    """Segment one scan with our program, in a process of its own: the cost, and what its run.json says."""
    command = app_command("--inputs", scan, "--outputs", outputs, "--weights", weights, "--device", device, "--quiet")
    cost, _ = measured(command, threads)
    (record,) = outputs.glob("logs/*/run.json")
    return cost, json.loads(record.read_text())


def _main(command: list[str]) -> int:
    start_s = time.perf_counter()
    process = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(process, 0)
    wall_s = time.perf_counter() - start_s
    print(json.dumps(Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)), flush=True)
    return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
