"""Shared fixtures: a weights file, and the command line run inside this process."""

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests run side by side

import pytest
import torch

from app.__main__ import main
from tests.scans import save_weights


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def weights_path(tmp_path_factory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "weights.pt")


class Outcome(NamedTuple):
    """Of a run of the command line."""

    status: int
    stderr: str


@pytest.fixture
def run_app(weights_path, capfd) -> Iterator[Callable[..., Outcome]]:
    """Call `main` with the arguments and, unless they are given, --device cpu and the random weights."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    on_signal = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments) -> Outcome:
        given = [str(argument) for argument in arguments]
        for option, value in (("--device", "cpu"), ("--weights", str(weights_path))):
            given += [] if option in given else [option, value]
        capfd.readouterr()
        try:
            status = main(given)
        except SystemExit as leaving:  # argparse
            status = leaving.code
        out, err = capfd.readouterr()
        assert out == ""
        return Outcome(status, err)

    yield run
    root.handlers[:], root.level = handlers, level
    for number, handler in on_signal.items():
        signal.signal(number, handler)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[..., Path]]:
    """Make a real file system of so many KiB; skips where that is not allowed."""
    mounted = []

    def make(kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("may not mount a file system")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
