"""run.json: its fields, its format, and how it is read.

docs/formats.md says what each field means. A change that readers must know of raises FORMAT; a new field does not.
"""

import json
from pathlib import Path
from typing import Any, TypedDict

FORMAT = 1


class CaseEntry(TypedDict, total=False):
    """A case; from `shape_zyx` on if it is done."""

    name: str
    input: str
    mask: str
    series_number: int | None
    status: str
    error: str | None
    shape_zyx: list[int]
    spacing_mm_zyx: list[float]
    network_spacing_mm_yx: list[float]
    slices_per_slab: int
    slabs_per_look: int
    mean_hu: float
    std_hu: float
    device: str
    warnings: list[str]
    seconds: dict[str, float]
    organs: dict[str, dict[str, float | None]]
    quality: dict[str, Any]
    input_sha256: str
    mask_sha256: str


class RunContent(TypedDict, total=False):
    """run.json."""

    format: int
    version: str
    started: str
    exit_status: int | None
    cases: list[CaseEntry]
    command: list[str]
    device: str
    dtype: str
    threads: int
    gpu_budget_mib: int
    weights: dict[str, Any]
    versions: dict[str, str | None]
    start_up_s: float
    monitor: dict[str, Any]  # ResourceMonitor.summary


class RecordError(Exception):
    """A run.json that cannot be used. `str` is one line that names the file and the cause."""


def read_record(path: Path) -> RunContent:
    """Read a run.json. One without a format, written by the first versions of the program, is of format 1.

    Raises:
        RecordError: It cannot be read, is not the record of a run, or is of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("format", FORMAT)
        cases = content["cases"] if found == FORMAT else []
        if not all(isinstance(case["name"], str) and isinstance(case["status"], str) for case in cases):
            raise TypeError("a case without name and status")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not the record of a run ({type(error).__name__}: {error})") from None
    if found != FORMAT:
        raise RecordError(f"{path}: a record of format {found!r}; this program reads format {FORMAT}")
    return content
