"""The image under a memory limit: 600 slices of 512 x 512 in 4 GiB, and in limits that are too small for them.

Needs a Docker engine; FLARE_IMAGE names an image that is built already. Counted as lost: under 4 GiB no mask; under
less, anything but a right mask, an error in words, or the kernel's kill without a mask. The scan is the shipped
example over and over; a right mask agrees in 99.9 % of the voxels with the example's own, over and over. (Not in all:
pieces are dropped in 3-D, and the example's last slices now have neighbours.)
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.scan import EXAMPLE
from tests.container.test_image import docker, engine_answers
from tests.reliability.scans import agreement, segmented, shipped_segmenter
from tests.reliability.trial import ROOT, Row, main

LIMITS = ("4g", "600m", "400m", "250m")  # 600 slices of int16 alone are 300 MiB
KILLED, IN_WORDS = 137, 1


def trial(folder: Path, slices: int = 600) -> Iterator[Row]:
    what = f"512 x 512 x {slices} in the container at -m "
    if not engine_answers():
        yield Row(what + "4g and less", 0, 0, {"not tried": "no Docker engine answers"})
        return
    image = os.environ.get("FLARE_IMAGE", "team")
    if "FLARE_IMAGE" not in os.environ:
        subprocess.run(["docker", "build", "--quiet", "-t", image, str(ROOT)], check=True)
    example = nib.load(EXAMPLE)
    array = np.asarray(example.dataobj)
    times = (1, 1, -(-slices // array.shape[2]))
    long = np.tile(array, times)[..., :slices]
    expected = np.tile(segmented(shipped_segmenter(), folder, array, example.affine), times)[..., :slices]
    inputs = folder / "inputs"
    inputs.mkdir()
    nib.save(nib.Nifti1Image(long, example.affine), inputs / "long_0000.nii.gz")
    for limit in LIMITS:
        yield _under(limit, image, inputs, folder / f"outputs{limit}", expected, what)


def _under(limit: str, image: str, inputs: Path, outputs: Path, expected: np.ndarray, what: str) -> Row:
    outputs.mkdir()
    outputs.chmod(0o777)
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    mounts = ("-v", f"{inputs}:/workspace/inputs", "-v", f"{outputs}:/workspace/outputs")
    limits = ("-m", limit, "--memory-swap", limit, "--cpuset-cpus", cpus, "--network", "none")
    run = docker("run", "--rm", *limits, *mounts, image, check=False)
    errors = [line.partition(" ERROR ")[2] for line in run.stderr.splitlines() if " ERROR " in line]
    facts = {"status": run.returncode, "said": (errors or [""])[0]}
    path = outputs / "long.nii.gz"
    if path.exists():
        mask = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
        figure = agreement(mask, expected)
        facts |= figure
        lost = run.returncode != 0 or figure["voxels, %"] < 99.9
    else:
        in_words = run.returncode == IN_WORDS and bool(facts["said"])
        lost = limit == "4g" or not (in_words or run.returncode == KILLED)
    return Row(what + limit, 1, int(lost), facts)


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))
