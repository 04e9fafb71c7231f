"""What a run left behind: run.json, monitor.csv, and where its CTs and masks are now."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from app.cases import Case, find_cases, input_sha256
from app.dicomseries import Series
from app.errors import UsageError
from app.runjson import CaseEntry, RecordError, RunContent, read_record


class ReportError(Exception):
    """Nothing to report on. `str` is one line."""


@dataclass(frozen=True)
class CaseRecord:
    """One case of a run.

    Attributes:
        name: Of the case; its mask is `<name>.nii.gz`.
        status: "done", "failed" or "skipped" (done by an earlier run).
        error: Why it failed, or None.
        warnings: One line each.
        seconds: Stage -> seconds.
        ct, mask: Where they are now, the CT an image file or a DICOM series; None if they are not there any more.
        input_sha256, mask_sha256: As the run recorded them; "" if it recorded none.
        quality: "ok", "look" or "implausible"; "" if the run recorded none.
        reasons: Why, one line each.
    """

    name: str
    status: str
    error: str | None
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    ct: Path | Series | None
    mask: Path | None
    input_sha256: str = ""
    mask_sha256: str = ""
    quality: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run's record.

    Attributes:
        folder: Where run.json is.
        content: run.json, without its cases.
        cases: In the run's order.
        samples: Rows of monitor.csv, numbers as float, empty cells as None.
        outside_s: Where `evaluation.efficiency` measured this very run: its seconds before and after the program.
    """

    folder: Path
    content: RunContent
    cases: tuple[CaseRecord, ...]
    samples: tuple[dict, ...]
    outside_s: float | None


def find_run(path: Path) -> Path:
    """The log folder of a run: itself, or the newest below an outputs folder.

    Raises:
        ReportError: There is none.
    """
    if not path.exists():
        raise ReportError(f"{path}: no such folder; give a run's log folder or an outputs folder")
    if (path / "run.json").is_file():
        return path
    records = sorted(path.glob("logs/[!.]*/run.json"), key=lambda record: (record.stat().st_mtime_ns, record))
    if not records:
        raise ReportError(f"{path}: no run.json here or in logs/*/; give a run's log folder or an outputs folder")
    return records[-1].parent


def read_run(path: Path, inputs: Path | None = None) -> Run:
    """Read a run's record.

    Args:
        path: As for `find_run`.
        inputs: Folder to look for the CTs in first, for runs whose inputs have moved (or were a container's).

    Raises:
        ReportError: There is no run, its record cannot be read, or there are no cases in `inputs`.
    """
    folder = find_run(path)
    record = folder / "run.json"
    try:
        content = read_record(record)
        outputs = folder.parent.parent
        moved = {case.name: case.source for case in find_cases([inputs], outputs)} if inputs else {}
        cases_in = cache(partial(_cases_in, outputs=outputs))
        cases = tuple(_case(entry, outputs, moved, cases_in) for entry in content.pop("cases"))
        samples = _samples(folder / "monitor.csv")
    except RecordError as error:
        raise ReportError(str(error)) from None
    except UsageError as error:
        raise ReportError(f"--inputs: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{record}: not the record of a run ({type(error).__name__}: {error})") from None
    if not cases:
        raise ReportError(f"{record}: a run without cases: it ended before its first")
    return Run(folder, content, cases, samples, _outside_s(outputs, folder.name))


def _outside_s(outputs: Path, run: str) -> float | None:
    for path in outputs.glob("efficiency/[!.]*.json"):
        try:
            measured = json.loads(path.read_text(encoding="utf-8"))
            if measured["run"] == run:
                return measured["time"] - measured["program_s"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a measurement of ours
    return None


def _cases_in(folder: Path, outputs: Path) -> list[Case]:
    try:
        return find_cases([folder], outputs)
    except UsageError:  # the report does without its pictures
        return []


def _ct(
    entry: CaseEntry, moved: dict[str, Path | Series], cases_in: Callable[[Path], list[Case]]
) -> Path | Series | None:
    """Where the CT of a case is now; `moved` has those of another folder, by case name."""
    recorded = Path(entry["input"])
    if entry["name"] in moved:
        return moved[entry["name"]]
    if recorded.is_dir():
        number = entry.get("series_number")
        in_folder = [case for case in cases_in(recorded) if case.input == recorded]
        same = [case for case in in_folder if case.series and case.series.number == number]
        if len(same) > 1:  # of several studies, or without numbers: what is in the files tells
            same = [case for case in same if input_sha256(case) == entry.get("input_sha256")] or same
        return same[0].series if same else None
    return recorded if recorded.is_file() else None


def _case(
    entry: CaseEntry, outputs: Path, moved: dict[str, Path | Series], cases_in: Callable[[Path], list[Case]]
) -> CaseRecord:
    quality = entry.get("quality", {})
    masks = [path for path in (outputs / Path(entry["mask"]).name, Path(entry["mask"])) if path.is_file()]
    return CaseRecord(
        name=entry["name"],
        status=entry["status"],
        error=entry.get("error"),
        warnings=tuple(entry.get("warnings", ())),
        seconds=dict(entry.get("seconds", {})),
        ct=_ct(entry, moved, cases_in),
        mask=masks[0] if masks else None,
        input_sha256=entry.get("input_sha256", ""),
        mask_sha256=entry.get("mask_sha256", ""),
        quality=quality.get("verdict", ""),
        reasons=tuple(quality.get("reasons", ())),
    )


def _samples(path: Path) -> tuple[dict, ...]:
    """Empty if the run has no monitor.csv; a last line that was cut off by a crash is left out."""
    if not path.is_file():
        return ()
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    text = ("stage", "case")
    return tuple(
        {key: value if key in text else float(value) if value else None for key, value in r.items()} for r in rows
    )
