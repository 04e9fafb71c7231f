"""Faults that the test suite injects already, counted by running those tests.

Each of them is a test of its own that fails if the program breaks its promise; this trial only runs and counts them.
The container's are skipped where no Docker engine answers.
"""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from tests.reliability.trial import ROOT, Row, main

GROUPS = {  # what: (file, tests whose names hold one of these words)
    "GPU memory that runs out, at every step size (injected; no GPU)": (
        "tests/test_segment.py", "out_of_memory or no_slice_fits",
    ),
    "a GPU that fails between slices, or overflows (injected; no GPU)": (
        "tests/test_segment.py", "gpu_that_breaks or gpu_that_fails or beyond_float16",
    ),
    "NVML missing, failing midway, hanging, naming another card": (
        "tests/test_gpu_memory.py", "test",
    ),
    "weights that are damaged, changed, or code": (
        "tests/test_weights.py", "refused or code_in_a_file or mismatch or missing",
    ),
    "the image: organizers' line; any user, no capability, no network, read-only root; stop; save and load": (
        "tests/container/test_image.py", "test",
    ),
}  # fmt: skip


def trial(folder: Path) -> Iterator[Row]:
    for what, group in GROUPS.items():
        yield _counted(folder, what, *group)


def _counted(folder: Path, what: str, file: str, words: str) -> Row:
    report = folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        file,
        "-k",
        words,
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    tests, skipped, failed, errors = (int(suite.get(key)) for key in ("tests", "skipped", "failures", "errors"))
    facts = {"tests": f'{file} -k "{words}"'}
    if tests == 0 or run.returncode not in (0, 1, 5):
        raise RuntimeError(f"{' '.join(command)}: {run.stdout[-2000:]}")
    if skipped:
        facts["not tried"] = sorted({case.find("skipped").get("message") for case in suite if len(case)} - {None})
    return Row(what, tests - skipped, failed + errors, facts)


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))
