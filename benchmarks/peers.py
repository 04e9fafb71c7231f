"""What a user would run instead, on the same scan and machine: `python -m benchmarks.peers`.

TotalSegmentator, nnU-Net and a MONAI bundle as their own command lines run them on a CPU, each in a cold process, after
ours. Their weights cannot be had offline: random ones are made before the clock starts (benchmarks.peer_models). They
stand in an environment of their own; what is not installed there is left out, and said so.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from app import __version__
from app.labels import ORGANS
from benchmarks import machine
from benchmarks.process import ROOT, CommandFailed, Cost, measured, run_app
from benchmarks.scan import EXAMPLE
from evaluation.masks import SAME_PLACE_VOXELS, corners_apart_mm
from evaluation.output import say

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
MODELS = ROOT / "benchmarks" / "peer_models.py"
MISSING_EXIT = 3  # of peer_models
INSTALL = "python3 -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt"


class Missing(Exception):
    """The peer is not installed."""


class PeerFailed(Exception):
    """The peer gave no mask of the scan."""


class Peer(NamedTuple):
    """A program, and how it is started.

    Attributes:
        title: As users write it.
        model: Of benchmarks.peer_models.
        command: After the folder of the peers' Python; {model}, {scan}, {inputs} and {outputs} are filled in.
            {inputs} is the folder of the scan, {outputs} one that is empty.
        environment: Variables, filled in alike.
    """

    title: str
    model: str
    command: tuple[str, ...]
    environment: tuple[str, ...] = ()


_TOTAL = ("TotalSegmentator", "-i", "{scan}", "-o", "{outputs}/mask.nii.gz", "--device", "cpu", "--ml")
_TOTAL_HOME = ("TOTALSEG_HOME_DIR={model}",)
_NNUNET = (
    "nnUNetv2_predict_from_modelfolder", "-i", "{inputs}", "-o", "{outputs}", "-m", "{model}", "-f", "0",
    "-device", "cpu",
)  # fmt: skip
_BUNDLE = (
    "python", "-m", "monai.bundle", "run", "--config_file", "{model}/inference.json", "--image", "{scan}",
    "--output_dir", "{outputs}",
)  # fmt: skip
PEERS = {
    "totalsegmentator": Peer("TotalSegmentator", "totalsegmentator", _TOTAL, _TOTAL_HOME),
    "totalsegmentator_fast": Peer("TotalSegmentator --fast", "totalsegmentator_fast", (*_TOTAL, "--fast"), _TOTAL_HOME),
    "nnunet": Peer("nnU-Net --disable_tta", "nnunet", (*_NNUNET, "--disable_tta")),
    "nnunet_mirroring": Peer("nnU-Net", "nnunet", _NNUNET),
    "monai": Peer("MONAI wholeBody_ct_segmentation", "monai", _BUNDLE),
    "monai_lowres": Peer("MONAI wholeBody_ct_segmentation, 3 mm", "monai_lowres", _BUNDLE),
}
DEFAULT = [name for name in PEERS if name != "nnunet_mirroring"]  # eight passes of the network a patch


def prepare(peer: Peer, python: Path, folder: Path) -> dict:
    """Make the peer's model; what peer_models says of it.

    Raises:
        Missing: The peers' Python or the peer's package is not there.
        PeerFailed: Its model could not be made.
    """
    try:
        run = subprocess.run([python, MODELS, peer.model, folder], capture_output=True, text=True)
    except OSError as error:
        raise Missing(f"{python}: {error.strerror}") from None
    last_words = _last_line(run.stderr)
    if run.returncode == MISSING_EXIT:
        raise Missing(last_words)
    if run.returncode:
        raise PeerFailed(f"its model was not made: {last_words}")
    return json.loads(run.stdout.splitlines()[-1])


def run_peer(peer: Peer, python: Path, model: Path, scan: Path, outputs: Path, threads: int) -> tuple[Cost, int]:
    """Segment the scan with a peer, whose mask is checked; the cost, and the number of labels in the mask.

    Raises:
        PeerFailed: Its exit status is not 0, or there is not one mask on the scan's grid.
    """
    outputs.mkdir()
    places = {"model": model, "scan": scan, "inputs": scan.parent, "outputs": outputs}
    program, *arguments = (part.format(**places) for part in peer.command)
    environment = [variable.format(**places) for variable in peer.environment]
    try:
        cost, _ = measured(["env", *environment, str(python.with_name(program)), *arguments], threads)
    except CommandFailed as error:
        raise PeerFailed(_last_line(str(error))) from None
    return cost, mask_labels(outputs, scan)


def mask_labels(outputs: Path, scan: Path) -> int:
    """Number of labels in the one mask of the folder, background too.

    Raises:
        PeerFailed: There is none or more than one, or it is damaged or not on the scan's grid.
    """
    paths = sorted(outputs.rglob("*.nii.gz"))
    if len(paths) != 1:
        raise PeerFailed(f"it wrote {len(paths)} masks")
    try:
        mask, ct = nib.Nifti1Image.from_filename(paths[0]), nib.Nifti1Image.from_filename(scan)
        x, y, z = ct.shape
        apart_mm = corners_apart_mm(mask.affine, ct.affine, (x, y, z))
        labels = len(np.unique(np.asarray(mask.dataobj)))
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise PeerFailed(f"its mask cannot be read: {error}") from None
    if mask.shape != ct.shape or not apart_mm <= SAME_PLACE_VOXELS * min(ct.header.get_zooms()):
        raise PeerFailed("its mask is not on the scan's grid")
    return labels


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def measure(
    ours: dict, peers: Sequence[str], options: argparse.Namespace, scratch: Path
) -> tuple[dict[str, dict], dict[str, str], dict[str, str]]:
    """Runs of our program, of which `ours` tells, and the peers, in turns. Nothing is measured after ours has failed.

    Returns:
        What the result file says of each program, why others were left out, and why others failed, by name.
    """
    scan = scratch / "inputs" / "scan_0000.nii.gz"  # as nnU-Net wants it named, in a folder of its own
    scan.parent.mkdir()
    shutil.copyfile(options.scan, scan)
    python = options.python.absolute()  # not resolved: a link into the environment tells Python which it is
    programs: dict[str, dict] = {"ours": {**ours, "runs": []}}
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in peers:
        try:
            facts = prepare(PEERS[name], python, scratch / name)
            programs[name] = {"title": PEERS[name].title, **facts, "runs": []}
        except Missing as error:
            missing[name] = str(error)
        except PeerFailed as error:
            failed[name] = str(error)
    if missing:
        say(f"left out: {', '.join(f'{name} ({why})' for name, why in missing.items())}; {INSTALL}", sys.stderr)
    for k in range(options.runs):
        for name in list(programs):
            outputs = scratch / f"{name}-{k}"
            try:
                if name == "ours":
                    cost, record = run_app(scan, outputs, options.weights, options.device, options.threads)
                    labels = mask_labels(outputs, scan)
                    programs[name]["dtype"] = record["dtype"]
                else:
                    cost, labels = run_peer(PEERS[name], python, scratch / name, scan, outputs, options.threads)
            except (PeerFailed, CommandFailed) as error:
                failed[name] = _last_line(str(error))
                del programs[name]
                if name == "ours":
                    return programs, missing, failed
                continue
            programs[name]["runs"].append({**cost._asdict(), "labels": labels})
            say(f"{name} {cost.wall_s:.1f} s, {cost.cpu_s:.1f} CPU s, {cost.peak_rss_mib:.0f} MiB")
    return programs, missing, failed


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if a program failed, 2 if the scan cannot be used."""
    parser = machine.parser("peers", __doc__, devices=("cpu",))
    add = parser.add_argument
    add("--peers", nargs="+", choices=PEERS, default=DEFAULT, metavar="NAME",
        help=f"of {', '.join(PEERS)} (default: all but nnunet_mirroring)")  # fmt: skip
    add("--scan", type=Path, default=EXAMPLE, help=".nii.gz (default: the shipped example)")
    add("--runs", type=machine.count, default=1, help="of each program, in turns (default: %(default)s)")
    add("--python", type=Path, default=PYTHON, help="that has the peers (default: .venv-peers/bin/python)")
    options = parser.parse_args(arguments)
    try:
        if not options.scan.name.endswith(".nii.gz"):
            raise ValueError("not a .nii.gz")
        ct = nib.Nifti1Image.from_filename(options.scan)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        say(f"error: {options.scan}: {error}", sys.stderr)
        return 2
    ours = {"title": "ours", "packages": {"ours": __version__}, "classes": len(ORGANS), "networks": 1}
    ours |= {"spacing_mm": None, "patch_vox": None}
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        programs, missing, failed = measure(ours, options.peers, options, Path(scratch))
    for name, why in failed.items():
        say(f"error: {name}: {why}", sys.stderr)
    result = {
        "scan": options.scan.name,
        "shape_zyx": ct.shape[::-1],
        "spacing_zyx_mm": [float(mm) for mm in ct.header.get_zooms()[::-1]],
        "machine_cpus": os.cpu_count(),
        "programs": programs,
        "missing": missing,
        "failed": failed,
    }
    if "ours" in programs:
        machine.save("peers", options, result)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
