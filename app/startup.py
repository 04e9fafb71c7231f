"""From the options to a network on its device. This imports torch, which takes seconds."""

import argparse
import logging
import platform
import sys
from importlib import metadata

import torch

from app.cpus import usable_cpus
from app.device import DeviceError, choose_device, compute_dtype, processor
from app.record import RunRecord
from app.runjson import RunContent
from app.segment import Segmenter
from app.weights import load_weights

PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "nvidia-ml-py", "psutil")

log = logging.getLogger("app")


def load_segmenter(options: argparse.Namespace, record: RunRecord) -> Segmenter:
    """The network on its device; both go into the record.

    Raises:
        DeviceError: The device that was asked for cannot be used.
        WeightsError: The weights cannot be used.
    """
    torch.set_num_threads(min(usable_cpus(), torch.get_num_threads()))  # torch's own number is OMP_NUM_THREADS, if set
    device = choose_device(options.device)
    weights = load_weights(options.weights)
    try:
        segmenter = Segmenter(weights, device, options.gpu_budget_mib, options.every_slice)
        if device.type == "cuda":
            segmenter.warm_up()
    except RuntimeError as error:
        problem = f"the network does not run on it ({(str(error) or type(error).__name__).splitlines()[0]})"
        if isinstance(error, torch.OutOfMemoryError):
            problem = "the network does not fit the GPU's free memory"
        if options.device == "cuda":
            raise DeviceError(f"--device cuda: {problem}") from None
        log.warning("THE GPU IS NOT USED: %s. Going on, slower, on the CPU.", problem)
        device = torch.device("cpu")
        segmenter = Segmenter(weights, device, options.gpu_budget_mib, options.every_slice)
    found: RunContent = {
        "command": sys.argv,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "dtype": str(compute_dtype(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "gpu_budget_mib": options.gpu_budget_mib,
        "weights": {
            "file": str(options.weights), "sha256": weights.sha256, "switched_off": list(weights.switched_off)
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }  # fmt: skip
    record.content.update(found)
    log.info(
        "on %s, %s, threads: %d, weights %s", found["device"], found["dtype"], found["threads"], weights.sha256[:12],
    )  # fmt: skip
    return segmenter


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
