"""Damaged DICOM series against the reader: a volume that is right, or one line of error that names the folder.

Each series is read in a process of its own that may take twice the volume and 64 MiB besides, for 60 s (compressed
ones are decoded in another process, for GDCM crashes now and then). What is done to it: a slice inside the stack is
missing, is there twice with other pixels, lies elsewhere, comes from another series; a file is cut, overwritten,
emptied, or has bits flipped, in its header or its pixels. Counted as lost: a crash, a hang, an error of several
lines or without the folder, and another volume than was written, where no pixel itself was damaged: pixels have no
checksum in DICOM, and neither has a value in a header that still makes sense.
"""

import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pydicom

from app.dicomseries import find_series
from app.dicomvolume import read_series
from app.errors import InputError
from tests.dicom_series import Series
from tests.hostile import flip_bits
from tests.reliability.child import outcome_of
from tests.reliability.trial import Row, main, row

BASE_MIB = 64
TIMEOUT_S = 60
SLICES = 8
CODECS = ("jpeg", "j2k", "jpegls", "rle")


def trial(folder: Path, plain: int = 400, compressed: int = 120, seed: int = 0) -> Iterator[Row]:
    rng = random.Random(seed)
    hu = np.random.default_rng(seed).normal(0, 200, (SLICES, 24, 32)).clip(-1000, 1000).astype(np.int16)
    source = Series(hu=hu).write(folder / "source")
    right = _volume(source)
    other = Series(hu=hu[::-1] + 1, number=2).write(folder / "other")
    yield _tries(folder, "damaged, incomplete and mixed-up DICOM series", plain, DAMAGES, source, other, right, rng)
    for codec in CODECS:
        (folder / codec).mkdir()
        for path in source:
            tool = Path(sys.executable).with_name("gdcmconv")
            subprocess.run([tool, f"--{codec}", path, folder / codec / path.name], check=True, capture_output=True)
    damages = {f"{codec}: {name}": damage for codec in CODECS for name, damage in (("bits", _flip), ("cut", _cut))}
    yield _tries(folder, "damaged compressed DICOM series", compressed, damages, source, other, right, rng)


def _tries(folder, what, count, damages, source, other, right, rng) -> Row:
    problems, outcomes = [], dict.fromkeys(("refused", "read right", "read, damage that cannot be told"), 0)
    for attempt in range(count):
        name = rng.choice([*damages])
        place = folder / "tried" / f"series{attempt}"
        codec = name.partition(":")[0]
        place.mkdir(parents=True)
        files = [Path(shutil.copy(folder / codec / path.name if codec in CODECS else path, place)) for path in source]
        may_differ = damages[name](rng, files, other)
        outcome, problem = outcome_of(partial(_read, place, None if may_differ else right))
        if outcome:
            outcomes[outcome] += 1
        problems.append([f"{name}: {problem}"] if problem else [])
        shutil.rmtree(place)
    limits = {"limit, MiB besides twice the volume": BASE_MIB, "limit, s": TIMEOUT_S}
    return row(what, problems, **outcomes, **limits)


def _inner(rng: random.Random, files: list[Path]) -> Path:
    """Not an end of the stack: without one the series is a shorter one, and nothing tells."""
    return files[rng.randrange(1, len(files) - 1)]


# What is done to the files of a series. Each returns whether another volume may come out of it.


def _missing(rng, files, other) -> bool:
    _inner(rng, files).unlink()
    return False


def _replaced(rng, files, other) -> bool:
    shutil.copy(rng.choice(other), _inner(rng, files))
    return False


def _overwritten(rng, files, other) -> bool:
    _inner(rng, files).write_bytes(rng.choice((b"", b"not found\n", bytes(3000))))
    return False


def _twice(rng, files, other) -> bool:
    image = pydicom.dcmread(path := _inner(rng, files))
    image.PixelData = bytes(reversed(image.PixelData))
    image.save_as(path.with_name("twice"))
    return False


def _moved(rng, files, other) -> bool:
    image = pydicom.dcmread(path := _inner(rng, files))
    image.ImagePositionPatient[rng.randrange(3)] += rng.choice((-7, 0.3, 2, 500))
    image.save_as(path)
    return False


def _cut(rng, files, other) -> bool:
    path = _inner(rng, files)
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])
    return False


def _flip(rng, files, other) -> bool:
    path = _inner(rng, files)
    path.write_bytes(flip_bits(rng, path.read_bytes(), rng.choice((1, 1, 3, 30))))
    return True


def _renamed(rng, files, other) -> bool:
    for number, path in enumerate(rng.sample(files, len(files))):
        path.rename(path.with_name(f"{number} {path.name}"))
    return False


DAMAGES: dict[str, Callable[[random.Random, list[Path], list[Path]], bool]] = {
    "missing": _missing,
    "twice": _twice,
    "moved": _moved,
    "of another series": _replaced,
    "overwritten": _overwritten,
    "cut": _cut,
    "bits": _flip,
    "renamed": _renamed,
}


def _volume(files: list[Path]) -> np.ndarray:
    (series,), _ = find_series(files)
    return read_series(series).hu


def _read(folder: Path, expected: np.ndarray | None) -> str:
    """In a child: "outcome" or "lost: why"."""
    most = psutil.Process().memory_info().vms + BASE_MIB * 2**20 + 4 * SLICES * 24 * 32
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    signal.alarm(TIMEOUT_S)
    try:
        found, _ = find_series(folder.iterdir())
        if not found:
            return "refused"
        volumes = [read_series(series).hu for series in found]
    except InputError as error:
        message = str(error)
        if not message.startswith(f"{str(folder)!r}: ") or "\n" in message or "not enough memory" in message:
            return f"lost: its error is {message!r}"
        return "refused"
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is a finding
        return f"lost: {type(error).__name__}: {error}"
    if expected is None:
        return "read, damage that cannot be told"
    return "read right" if np.array_equal(volumes[0], expected) else "lost: another volume than was written"


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))
