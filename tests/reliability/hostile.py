"""Damaged, lying and swollen files against the reader, and hostile file names against the whole program.

Files: each is read in a process of its own that may take twice the volume it declares and 64 MiB besides, for 10 s.
An error in one line that names the file, or the right volume, is well; counted as lost: a crash, a hang, another
volume, more memory, a file opened that is not the file itself.
Names: of up to 255 bytes, with `..`, newlines, shell commands and bytes that are no text; some are links, and a mask's
place may be a link to a file elsewhere. Lost: a mask that is missing or wrong, anything new or changed outside the
outputs folder.
"""

import gzip
import resource
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from app.cases import case_name
from app.errors import InputError
from app.maskheader import VOXEL_OFFSET
from app.volume import read_volume
from tests.hostile import hostile_files, hostile_names, metaimage_bytes, nifti_bytes, nrrd_bytes
from tests.reliability.child import outcome_of
from tests.reliability.trial import Row, main, row

BASE_MIB = 64  # deflate makes up to 33 MB of the 32 KB that are read at a time, and zlib's answer is copied once
TIMEOUT_S = 10
NAMES_PER_RUN = 20


def trial(folder: Path, files: int = 2000, names: int = 200, seed: int = 0) -> Iterator[Row]:
    yield _files(folder, files, seed)
    yield _names(folder, names, seed)


# Files


def _files(folder: Path, count: int, seed: int) -> Row:
    problems, outcomes = [], dict.fromkeys(("refused", "read right", "read, right or not cannot be told"), 0)
    for name, raw, expected in hostile_files(count, seed):
        path = folder / name
        path.write_bytes(raw)
        outcome, problem = outcome_of(partial(_read, path, expected))
        if outcome:
            outcomes[outcome] += 1
        problems.append([f"{name}: {problem}"] if problem else [])
        path.unlink()
    limits = {"limit, MiB besides twice the volume": BASE_MIB, "limit, s": TIMEOUT_S}
    return row("damaged, lying and swollen files against the reader", problems, **outcomes, **limits, seed=seed)


def _read(path: Path, expected: np.ndarray | None) -> str:
    """In a child: "outcome" or "lost: why"."""
    opened = []
    allowed = {str(path), "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    volume_bytes = 0 if expected is None else 2 * expected.size
    most = psutil.Process().memory_info().vms + 2 * volume_bytes + BASE_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(TIMEOUT_S)
    try:
        hu = read_volume(path).hu
    except InputError as error:
        message = str(error)
        if not message.startswith(f"{str(path)!r}: ") or "\n" in message:
            return f"lost: its error is {message!r}"
        if "not enough memory" in message:
            return "lost: it took more memory than allowed"
        outcome = "refused"
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is a finding
        return f"lost: {type(error).__name__}: {error}"
    else:
        if expected is not None and not np.array_equal(hu, expected):
            return "lost: another volume than was written"
        outcome = "read, right or not cannot be told" if expected is None else "read right"
    elsewhere = [name for name in opened if name not in allowed and name.startswith("/") and "/proc/" not in name]
    return f"lost: it opened {elsewhere[0]}" if elsewhere else outcome


# Names


def _names(folder: Path, count: int, seed: int) -> Row:
    from tests.reliability.runs import finish, said_by, start  # torch: no fork of the above need carry it
    from tests.scans import save_weights, smooth_hu

    hu, weights = smooth_hu((2, 64, 64)), save_weights(folder / "weights.pt")
    (folder / "ct.nii").write_bytes(nifti_bytes(hu))
    precious = folder / "precious"
    precious.write_text("kept")
    names = [*hostile_names(count, seed)]
    problems = []
    right = None
    for first in range(0, count, NAMES_PER_RUN):
        inputs, outputs = folder / f"inputs{first}", folder / f"masks{first}"
        inputs.mkdir()
        outputs.mkdir()
        given = names[first : first + NAMES_PER_RUN]
        for name in given:
            _save(inputs / name, hu, link_to=folder / "ct.nii")
        (inputs / "up.nii").symlink_to("..")
        (inputs / "nowhere.nii").symlink_to("nowhere")
        (outputs / f"{case_name(Path(given[0]))}.nii.gz").symlink_to(precious)  # to be replaced, not followed
        before = _outside(folder, outputs)
        status = finish(start(inputs, outputs, weights))
        for name in given:
            path = outputs / f"{case_name(Path(name))}.nii.gz"
            voxels = gzip.decompress(path.read_bytes())[VOXEL_OFFSET:] if path.exists() else None
            right = right or voxels
            problems.append([] if voxels and voxels == right else [f"{name!r}: its mask is missing or wrong"])
        changed = _outside(folder, outputs) ^ before
        if status != 1 or changed:  # the link to nowhere fails, alone
            problems[-1].append(f"status {status}; changed outside the outputs: {sorted(map(str, changed))}")
    status = finish(start(folder / ("x" * 300 + ".nii.gz"), folder / "long", weights))
    said = said_by(folder / "long").read_text()
    problems.append([] if status == 2 and "File name too long" in said else [f"300 characters: {status}, {said!r}"])
    return row("hostile file names through the whole program", problems, **{"names a run": NAMES_PER_RUN}, seed=seed)


def _save(path: Path, hu: np.ndarray, link_to: Path) -> None:
    """The volume in the format that the name asks for; some of the plain ones are links."""
    if path.name.endswith((".mha", ".nrrd")):
        path.write_bytes({".mha": metaimage_bytes, ".nrrd": nrrd_bytes}[path.suffix](hu))
    elif path.name.endswith(".nii"):
        path.symlink_to(link_to)
    else:
        path.write_bytes(gzip.compress(nifti_bytes(hu)))


def _outside(folder: Path, outputs: Path) -> set[tuple[Path, int, int]]:
    """All there is in a folder, but for the outputs and their log: path, time, size."""
    found = (path for path in folder.rglob("*") if not str(path).startswith(str(outputs)))
    return {(path, path.lstat().st_mtime_ns, path.lstat().st_size) for path in found}


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))
