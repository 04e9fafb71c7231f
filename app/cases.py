"""Which files are cases, and what their masks are called."""

from dataclasses import dataclass
from pathlib import Path

from app.errors import UsageError
from app.formats import REFUSED, SUFFIXES

_CHANNEL = "_0000"  # nnU-Net's name for the first image channel, in FLARE's file names


@dataclass(frozen=True)
class Case:
    """One CT to segment: its name, its file, and where the mask goes."""

    name: str
    input: Path
    mask: Path


def find_cases(inputs: list[Path], outputs: Path) -> list[Case]:
    """Cases of the given folders and files, sorted by name.

    `X_0000.nii.gz` and `X.nii.gz` (also .nii, .mha, .nrrd) are the case X, whose mask is `X.nii.gz`. In a
    folder, hidden files and files of other kinds are passed over; a file that is named is always a case.

    Raises:
        UsageError: An input is missing, a folder has no case, or two inputs would write one mask.
    """
    try:
        return _find_cases(inputs, outputs)
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise UsageError(f"{error.filename}: {error.strerror}") from None


def _find_cases(inputs: list[Path], outputs: Path) -> list[Case]:
    files: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found = [path for path in given.iterdir() if _is_case(path)]
            if not found:
                raise UsageError(
                    f"no CT in {given}: put X_0000.nii.gz files there (.nii.gz, .nii, .mha, .nrrd). With docker, give "
                    "the folder's whole path: `-v inputs:/workspace/inputs` makes an empty named volume, "
                    '`-v "$PWD/inputs":/workspace/inputs` is the folder'
                )
            files += found
        elif given.is_symlink() or given.exists():
            files.append(given)
        else:
            raise UsageError(f"{given} does not exist; give a CT file or a folder of them with --inputs")

    cases: dict[str, Case] = {}
    for path in files:
        name = case_name(path)
        other = cases.setdefault(name, Case(name, path, outputs / f"{name}.nii.gz")).input
        if not _same_file(other, path):  # one file named twice is one case
            raise UsageError(f"{other} and {path} would both write {name}.nii.gz; rename one")
    for case in cases.values():
        if _same_file(case.mask, case.input):
            raise UsageError(f"the mask of {case.input} would replace it; choose another --outputs")
    return [cases[name] for name in sorted(cases)]


def shard(cases: list[Case], text: str) -> list[Case]:
    """Every Nth case, from the Kth: "K/N" with K from 0 to N - 1, as job indices count.

    Raises:
        UsageError: Not of that form.
    """
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise UsageError(f"--shard takes K/N with K = 0 .. N-1, for example 0/4; got {text}")
    return cases[int(k) :: int(n)]


def case_name(path: Path) -> str:
    """File name without its suffix and channel number."""
    name = path.name
    for suffix in (*SUFFIXES, *REFUSED):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
            break
    return name.removesuffix(_CHANNEL) or name


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return one == other


def _is_case(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower().endswith((*SUFFIXES, *REFUSED))
