"""Which files are cases, and what their masks are called."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from app.dicomheader import looks_like_dicom
from app.dicomseries import Series, find_series, series_sha256
from app.errors import UsageError
from app.formats import DICOM_SUFFIXES, REFUSED, SUFFIXES
from app.record import FinishedMasks, file_sha256, finished_masks

_CHANNEL = "_0000"  # nnU-Net's name for the first image channel, in FLARE's file names


@dataclass(frozen=True)
class Case:
    """One CT to segment.

    Attributes:
        name: Of the case.
        input: Its file, or the folder of its DICOM series.
        mask: Where the mask goes.
        series: The DICOM series, or None.
    """

    name: str
    input: Path
    mask: Path
    series: Series | None = None

    @property
    def source(self) -> Path | Series:
        """What `read_ct` takes."""
        return self.series or self.input

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read for it."""
        return self.series.files if self.series else (self.input,)


def find_cases(inputs: list[Path], outputs: Path, note: Callable[[str], None] = lambda line: None) -> list[Case]:
    """Cases of the given files and folders, and of the folders below, sorted by name.

    Images: `X_0000.nii.gz` and `X.nii.gz` (also .nii, .mha, .nrrd) are the case X; `a/b/X.nii.gz` below the given
    folder is `a_b_X`. DICOM: each axial CT series, found by its content, is a case named by its folder, `a_b`; where a
    folder holds several, by the series number too, `a_b_3`. A file that is named is always a case. Below a folder,
    hidden files, other kinds of files, the outputs and their earlier masks are passed over.

    Args:
        inputs: Files and folders.
        outputs: Where the masks will be; may be, or lie in, a folder of inputs.
        note: Is told, in one line for each input, what DICOM objects are passed over.

    Raises:
        UsageError: An input is missing, a folder has no case, or two inputs would write one mask.
    """
    try:
        return _find_cases(inputs, outputs, note)
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise UsageError(f"{error.filename}: {error.strerror}") from None


def input_sha256(case: Case) -> str | None:
    """Checksum of a case's input as it is now, comparable with `Volume.sha256`; None if it cannot be read."""
    sums = [digest for path in case.files if (digest := file_sha256(path))]
    if len(sums) < len(case.files):
        return None
    return series_sha256(sums) if case.series else sums[0]


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
    for suffix in (*SUFFIXES, *REFUSED, *DICOM_SUFFIXES):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
            break
    return name.removesuffix(_CHANNEL) or name


def _find_cases(inputs: list[Path], outputs: Path, note: Callable[[str], None]) -> list[Case]:
    found: list[Case] = []
    named_dicom: list[Path] = []
    for given in inputs:
        if given.name == "DICOMDIR" and given.is_file():  # the files that it lists are found by their content
            given = given.parent
        if given.is_dir():
            found += _cases_below(given, outputs, note)
        elif _may_be_dicom(given):
            named_dicom.append(given)
        elif given.is_symlink() or given.exists():
            found.append(_image_case(case_name(given), given, outputs))
        else:
            raise UsageError(f"{given} does not exist; give a CT file or a folder of them with --inputs")
    if len({path.is_absolute() for path in named_dicom}) > 1:  # they may be of one series, whose folder is named
        named_dicom = [Path(os.path.abspath(path)) for path in named_dicom]
    if named_dicom:
        series, passed_over = _series_cases(named_dicom, None, outputs)
        if not series:
            raise UsageError(f"no CT series in {named_dicom[0]}: give the folder of its slices{passed_over}")
        if passed_over:
            note(f"{named_dicom[0].parent}{passed_over}")
        found += series

    cases: dict[str, Case] = {}
    earlier = cache(lambda: finished_masks(outputs))  # reading all records of the folder takes time: once, if at all
    for case in found:
        if _is_earlier_mask(case, earlier):
            continue
        # Some file systems tell neither capitals apart nor the two spellings of an accent.
        other = cases.setdefault(unicodedata.normalize("NFC", case.name).lower(), case)
        if not _same_file(other.input, case.input):  # one file or folder named twice is one case
            masks = " or ".join(sorted({other.mask.name, case.mask.name}))
            left = [f", or remove {one.input} if a killed run left it" for one in (other, case) if _is_its_mask(one)]
            raise UsageError(f"{other.input} and {case.input} would both write {masks}; rename one{''.join(left)}")
    for case in cases.values():
        if _is_its_mask(case):
            raise UsageError(f"the mask of {case.input} would replace it; choose another --outputs")
    return sorted(cases.values(), key=lambda case: case.name)


def _cases_below(folder: Path, outputs: Path, note: Callable[[str], None]) -> list[Case]:
    images, dicom = [], []
    for path in files_below(folder, outputs):
        if _is_image(path):
            images.append(path)
        elif _may_be_dicom(path):
            dicom.append(path)
    cases = [_image_case(_joined(folder, path.parent, case_name(path)), path, outputs) for path in images]
    series, passed_over = _series_cases(dicom, folder, outputs)
    if not cases and not series:
        raise UsageError(
            f"no CT in {folder}{passed_over}: put X_0000.nii.gz files ({', '.join(SUFFIXES)}) or folders of DICOM "
            "slices there. With docker, give the folder's whole path: `-v inputs:/workspace/inputs` makes an empty "
            'named volume, `-v "$PWD/inputs":/workspace/inputs` is the folder'
        )
    if passed_over:
        note(f"{folder}{passed_over}")
    return cases + series


def _image_case(name: str, path: Path, outputs: Path) -> Case:
    return Case(name, path, outputs / f"{name}.nii.gz")


def _series_cases(files: list[Path], folder: Path | None, outputs: Path) -> tuple[list[Case], str]:
    """The series of some DICOM files, named by their place below a folder; what is passed over, in words."""
    found, others = find_series(files)
    in_folder = Counter(series.folder for series in found)
    names: Counter[str] = Counter()
    cases = []
    for series in found:
        if folder is not None:
            name = _joined(folder, series.folder)
        else:
            name = case_name(series.files[0]) if len(series.files) == 1 else series.folder.resolve().name
        if in_folder[series.folder] > 1:
            name += "_" + str("x" if series.number is None else series.number)
        names[name] += 1
        if names[name] > 1:  # scanners count anew in every study
            name += f"_{names[name]}"
        cases.append(Case(name, series.folder, outputs / f"{name}.nii.gz", series))
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    return cases, f"; passed over, no slices of an axial CT: {counts}" if counts else ""


def _joined(folder: Path, below: Path, *name: str) -> str:
    """The parts of a path below a folder, joined by "_"; the folder's own name for the folder itself."""
    return "_".join([*below.relative_to(folder).parts, *name]) or folder.resolve().name or "ct"


def files_below(folder: Path, outputs: Path | None = None) -> Iterator[Path]:
    """Files at any depth, but for hidden ones and those in an outputs folder below."""
    top, seen = folder.resolve(), set()
    left_out = outputs.resolve() if outputs else None

    def goes_into(below: Path) -> bool:
        """Links are followed, but not up, nor twice to one folder."""
        real = below.resolve()
        if below.name.startswith(".") or real in seen or real == left_out or top.is_relative_to(real):
            return False
        seen.add(real)
        return True

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in sorted(folders) if goes_into(Path(place, name))]
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _is_image(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(SUFFIXES) or (name.endswith(tuple(REFUSED)) and not _has_preamble(path))  # DICOM may be .IMG


def _has_preamble(path: Path) -> bool:
    """Whether a file says that it is DICOM. A pipe is not asked: it would wait for a writer."""
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132).endswith(b"DICM")
    except OSError:
        return False


def _may_be_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content; one that cannot be read may be, and is not passed over in silence."""
    named = path.name.lower().endswith(DICOM_SUFFIXES)
    if not path.is_file():
        return named and path.is_symlink() and not path.exists()  # a link to a slice that is gone
    if _is_image(path):
        return False
    if named:
        return True
    try:
        with open(path, "rb") as file:
            return looks_like_dicom(file.read(132))
    except OSError:
        return True


def _is_earlier_mask(case: Case, earlier: Callable[[], FinishedMasks]) -> bool:
    """Whether an input is a mask that an earlier run wrote, to an outputs folder that holds inputs too."""
    if not _is_its_mask(case):
        return False
    return file_sha256(case.input) in {mask for _, _, mask in earlier().get(case.name, ())}


def _is_its_mask(case: Case) -> bool:
    """Whether an input is the very file that its mask would be."""
    return _same_file(case.input, case.mask)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return one == other
