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

GROUPS = {  # what: the mark of its tests (pyproject.toml)
    "GPU memory that runs out, at every step size (injected; no GPU)": "fault_gpu_memory",
    "a GPU that fails between slices, or overflows (injected; no GPU)": "fault_gpu",
    "NVML missing, failing midway, hanging, naming another card": "fault_nvml",
    "weights that are damaged, changed, or code": "fault_weights",
    "the image: organizers' line; any user, no capability, no network, read-only root; stop; save and load": (
        "container"
    ),
}


def trial(folder: Path) -> Iterator[Row]:
    for what, mark in GROUPS.items():
        yield _counted(folder / "report.xml", what, mark)


def _counted(report: Path, what: str, mark: str) -> Row:
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-m", mark]
    command = [sys.executable, "-m", "pytest", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    tests, skipped, failed, errors = (int(suite.get(key)) for key in ("tests", "skipped", "failures", "errors"))
    facts = {"tests": f"pytest -m {mark}"}
    if tests == 0 or run.returncode not in (0, 1, 5):
        raise RuntimeError(f"{' '.join(command)}: {run.stdout[-2000:]}")
    if skipped:
        facts["not tried"] = sorted({case.find("skipped").get("message") for case in suite if len(case)} - {None})
    return Row(what, tests - skipped, failed + errors, facts)


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))
