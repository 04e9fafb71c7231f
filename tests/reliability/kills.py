"""SIGKILL, SIGTERM and Ctrl-C at random moments of a run of 5 cases: what stands is right, what is missing is resumed.

Two of the cases are DICOM series, the others NIfTI.

Of five moments two are drawn from the whole run, from its first folder to its end; two from the writing of a mask and
one from the time after the last mask, which are small parts of it. Counted as lost: a run after which a mask that is
there is not, byte for byte, the one of an undisturbed run; a stopped (not killed) run that ends with another status
than 130 or 143, or leaves a temporary file; a next run with --resume that does not end well, redoes or skips another
case than it should, or leaves a temporary file.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.reliability.runs import (
    CASES,
    finish,
    last_record,
    make_cases,
    masks,
    resumed,
    start,
    statuses,
    temporaries,
    wait_until,
    wrong_masks,
)
from tests.reliability.trial import Row, main, row

END_S = 0.05  # about what a run takes after its last mask
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def trial(folder: Path, kills: int = 30, terminations: int = 10, interrupts: int = 10, seed: int = 0) -> Iterator[Row]:
    inputs, weights = make_cases(folder, dicom=2)
    process = start(inputs, folder / "undisturbed", weights)
    wait_until(process, (folder / "undisturbed" / "logs").exists)
    start_s = time.monotonic()
    assert finish(process) == 0
    run_s = time.monotonic() - start_s
    right = masks(folder / "undisturbed")
    write_s = max(case["seconds"]["write"] for case in last_record(folder / "undisturbed")["cases"])
    rng = random.Random(seed)
    for number, count in ((signal.SIGKILL, kills), (signal.SIGTERM, terminations), (signal.SIGINT, interrupts)):
        problems, done_before, in_vain, left = [], [], 0, 0
        while (attempt := len(problems)) < count:
            outputs = folder / f"{number.name}{attempt}-{in_vain}"
            process = start(inputs, outputs, weights)
            wait_until(process, (outputs / "logs").exists)
            start_s = time.monotonic()
            if attempt % 5 == 4:
                wait_until(process, lambda outputs=outputs: len(masks(outputs)) == CASES)
                process.join(rng.uniform(0, END_S))
            elif attempt % 2:
                at_case = rng.randrange(CASES)
                wait_until(process, lambda outputs=outputs, at_case=at_case: _writing(outputs, at_case))
                process.join(rng.uniform(0, write_s))
            else:
                process.join(rng.uniform(0, run_s))
            if not process.is_alive():  # too late: this one does not count
                run_s = min(run_s, time.monotonic() - start_s)
                in_vain += 1
                continue
            os.kill(process.pid, number)
            status = finish(process)
            done = {name for name, state in statuses(outputs).items() if state == "done"}
            problem = wrong_masks(outputs, right)
            if status != STATUS[number] and not (status == 0 and len(done) == CASES):  # all was done already
                problem.append(f"ended with {status}")
            if number == signal.SIGKILL:
                left += bool(temporaries(outputs))
            else:
                problem += [f"leaves {name}" for name in temporaries(outputs)]
            unrecorded = len(masks(outputs)) - len(done)  # between a mask and its record there is one moment
            problem += [f"{unrecorded} masks without a record"] if unrecorded not in (0, 1) else []
            problems.append(problem + resumed(inputs, outputs, weights, right, done))
            done_before.append(len(done))
        facts = {f"stopped after {k} of {CASES} masks": done_before.count(k) for k in range(CASES + 1)}
        facts |= {"undisturbed run, s": round(run_s, 2)}
        facts |= {"left a temporary file for the next run to remove": left} if number == signal.SIGKILL else {}
        name = "Ctrl-C (SIGINT)" if number == signal.SIGINT else number.name
        what = f"{name} at a random moment of a {CASES}-case run (2 DICOM series), then `--resume`"
        yield row(what, problems, **facts)


def _writing(outputs: Path, at_case: int) -> bool:
    """Whether the mask of the case with this number is being written."""
    names = os.listdir(outputs)
    return sum(name.endswith(".nii.gz") for name in names) >= at_case and any(name[0] == "." for name in names)


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))
