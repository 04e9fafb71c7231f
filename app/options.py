"""The options of the command line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from app import __version__
from app.formats import SUFFIXES

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "deeplabv3plus_resnet18.pt"
INPUTS = Path("/workspace/inputs")

Number = TypeVar("Number", int, float)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, each under the name of its flag; `arguments` are those of the process if None.

    Raises:
        SystemExit: --help, --version or wrong use, which argparse has told the user.
    """
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Segment 13 abdominal organs in CT: X_0000.nii.gz or a folder X of DICOM slices in, X.nii.gz out, "
        "in the same geometry. Below a folder every CT is a case, named by its place: a/b/X.nii.gz gives a_b_X.nii.gz, "
        "the DICOM series in a/b gives a_b.nii.gz; of several in one folder, a_b_<series number>.nii.gz each.",
        epilog="Exit status: 0 all done; 1 some case failed, the others are done; 2 wrong use; 130 Ctrl-C; "
        "143 SIGTERM. Logs are in OUTPUTS/logs/<run>/. For research use; not a medical device.",
    )
    add = parser.add_argument
    add("--inputs", type=Path, nargs="+", metavar="DIR_OR_FILE", default=[INPUTS],
        help=f"CT files ({', '.join(SUFFIXES)}, DICOM) or folders of them (default: {INPUTS})")  # fmt: skip
    add("--outputs", type=Path, metavar="DIR", default=Path("/workspace/outputs"),
        help="folder for masks and logs, made if absent (default: %(default)s)")  # fmt: skip
    add("--weights", type=Path, metavar="FILE", default=WEIGHTS, help="trained branch (default: the shipped one)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto takes the GPU if it works")
    add("--gpu-budget-mib", type=positive(int), metavar="MIB", default=2048,
        help="for all this process takes on the GPU, CUDA context included (default: %(default)s)")  # fmt: skip
    add("--monitor-interval-s", type=positive(float), metavar="S", default=0.1,
        help="time between samples of memory and CPU use (default: %(default)s)")  # fmt: skip
    add("--every-slice", action="store_true", help="give the network every slice, as the paper: no slabs, no look")
    add("--resume", action="store_true", help="skip cases whose mask is there, made from this input by these weights")
    add("--shard", metavar="K/N", default="0/1", help="only every Nth case from the Kth; K = 0 .. N-1")
    add("--preview", action="store_true", help="a picture of each mask over its CT, beside the logs")
    add("--quiet", action="store_true", help="only warnings and errors")
    add("--version", action="version", version=__version__)
    add("--debug", action="store_true", help="a traceback with each error")
    return parser.parse_args(arguments)


def positive(kind: type[Number]) -> Callable[[str], Number]:
    """The type of an option that takes a number above 0; the message of wrong use says "invalid positive int value"."""

    def convert(text: str) -> Number:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return convert
