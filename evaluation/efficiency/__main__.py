"""The command line: watch the idle machine, then measure one case at a time."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

import evaluation.efficiency
from app.cases import find_cases
from app.errors import UsageError
from evaluation.efficiency.case import FOLDER, Measurement, command_subject, image_subject, measure_case
from evaluation.efficiency.figures import IDLE_S, measure_idle, open_gpu
from evaluation.efficiency.files import format_table, write_case, write_table
from evaluation.output import say

BUSY_PERCENT = 10  # of the CPU, beyond idling: more is another program at work
SOME_FAILED, WRONG_USE = 1, 2


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.efficiency",
        description=evaluation.efficiency.__doc__,
        epilog="Exit status: 0 all cases done; 1 some case failed; 2 wrong use. Keep the machine otherwise idle.",
    )
    add = parser.add_argument
    add("image", metavar="IMAGE", nargs="?", help="image NAME (:latest) or its archive NAME.tar.gz; not with --command")
    add("inputs", type=Path, metavar="INPUTS", help="folder of CT files, or one file")
    add("outputs", type=Path, metavar="OUTPUTS", help=f"folder for masks; the measurements go to {FOLDER}/ in it")
    add("--command", metavar="CMD", help='a bare command instead, e.g. "python -m app"; --inputs, --outputs are added')
    add("--gpu", type=int, metavar="N", help="number of the card, nvidia-smi's (default: 0, if there is one)")
    add("--idle-s", type=float, default=IDLE_S, metavar="S", help="how long to watch the idle machine (default: 5)")
    arguments = parser.parse_intermixed_args(argv)
    if (arguments.image is None) == (arguments.command is None):
        parser.error("give either IMAGE or --command, then INPUTS and OUTPUTS")
    if not arguments.idle_s > 0:
        parser.error(f"--idle-s must be positive, got {arguments.idle_s:g}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if a case failed, 2 if nothing could be run."""
    arguments = parse_arguments(argv)
    outputs = arguments.outputs.resolve()
    folder = outputs / FOLDER
    gpu = open_gpu(arguments.gpu or 0)
    number = (arguments.gpu or 0) if gpu else None
    try:
        if arguments.gpu is not None and gpu is None:
            raise UsageError(f"--gpu {arguments.gpu}: no such card, or no driver")
        cases = find_cases([arguments.inputs], outputs)
        if arguments.image is not None:
            subject = image_subject(arguments.image, number)
        else:
            subject = command_subject(arguments.command, number)
        folder.mkdir(parents=True, exist_ok=True)
        idle = measure_idle(gpu, arguments.idle_s)
    except (UsageError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return WRONG_USE
    say(
        f"idle machine: {'no GPU' if idle.gpu_mib is None else f'GPU {idle.gpu_mib:.0f} MB'}, "
        f"CPU {idle.cpu_percent:.1f} %, RAM {idle.ram_mib:.0f} MB"
    )
    floor_percent = 100 / (psutil.cpu_count() + 1)  # what the organizers' formula makes of no use at all
    if idle.cpu_percent > floor_percent + BUSY_PERCENT:
        say(
            f"warning: this machine is not idle (doing nothing reads {floor_percent:.1f} %): "
            "time and CPU figures are not to be relied on",
            sys.stderr,
        )
    measurements: list[Measurement] = []
    failed: list[str] = []
    for case in cases:
        try:
            measurement = measure_case(case, outputs, subject, gpu)
            measurements.append(measurement)
            write_case(folder, measurement, idle)
            write_table(folder / f"{subject.team}_Efficiency.csv", measurements)
            problem = measurement.error
        except OSError as error:  # e.g. a full disk: what earlier cases wrote stands
            problem = str(error)
        if problem:
            failed.append(case.name)
            say(f"error: {case.name}: {problem}", sys.stderr)
        else:
            say(f"{case.name}: {measurement.figures.seconds:.2f} s")
    if gpu:
        gpu.close()
    if done := [measurement for measurement in measurements if not measurement.error]:
        for line in ["", *format_table(done, idle)]:
            say(line)
    say("")
    say(f"measurements in {folder}")
    if failed:
        say(f"error: failed: {', '.join(failed)}", sys.stderr)
    return SOME_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
