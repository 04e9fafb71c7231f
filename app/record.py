"""A run's record, run.json and volumes.csv, rewritten after each case; and what earlier records say is done."""

import contextlib
import csv
import hashlib
import io
import json
import logging
import os
import time
from functools import cache
from pathlib import Path

from app import __version__
from app.runjson import FORMAT, CaseEntry, RecordError, RunContent, read_record

log = logging.getLogger(__name__)

FinishedMasks = dict[str, set[tuple[str, str, str]]]  # by case name: SHA-256 of input, weights and mask
_RECORD, _TABLE = "run.json", "volumes.csv"
_MEASURES = ("ml", "mean_hu", "sd_hu", "first_slice", "last_slice")  # of an organ, in both files


class RunRecord:
    """The record of one run, in a folder of its own.

    Args:
        outputs: The outputs folder; made if absent.

    Attributes:
        folder: The run's folder, named by its start in UTC.
        content: What run.json holds.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, outputs: Path) -> None:
        for name in (_RECORD, _TABLE):
            for partial in outputs.glob(f"logs/*/{_partial(name)}"):
                # A killed run left it. If its run is alive after all, that run writes it again.
                with contextlib.suppress(OSError):
                    partial.unlink()
        start = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for attempt in range(1000):  # runs that start in one second get folders of their own
            self.folder = outputs / "logs" / (f"{start}-{attempt}" if attempt else start)
            try:
                self.folder.mkdir(parents=True)
                break
            except FileExistsError:
                if not self.folder.exists():  # the outputs folder is a link to nowhere
                    raise
        self.content: RunContent = {
            "format": FORMAT, "version": __version__, "started": start, "exit_status": None, "cases": [],
        }  # fmt: skip
        self._failed = False

    def add_case(self, entry: CaseEntry) -> None:
        """Note a case that has ended, and write."""
        self.content["cases"].append(entry)
        self.write()

    def count(self, status: str) -> int:
        """How many cases ended with that status."""
        return sum(case["status"] == status for case in self.content["cases"])

    def write(self) -> bool:
        """Replace both files atomically. Where that fails (a full disk) the earlier files stand and the run goes on.

        Returns:
            Whether they were written; if not, that is logged, once.
        """
        try:
            self._replace(_RECORD, json.dumps(self.content, indent=1))
            self._replace(_TABLE, _volumes(self.content["cases"]))
        except OSError as error:
            if not self._failed:
                log.error("%s: the record of this run cannot be written: %s", self.folder, error.strerror)
            self._failed = True
            return False
        return True

    def _replace(self, name: str, text: str) -> None:
        partial = self.folder / _partial(name)
        try:
            try:
                _write_and_rename(partial, name, text)
            except OSError:  # e.g. a run that began in this moment has removed it as a killed run's
                _write_and_rename(partial, name, text)
        finally:
            partial.unlink(missing_ok=True)


def _partial(name: str) -> str:
    return f".{name}.part"


def _write_and_rename(partial: Path, name: str, text: str) -> None:
    partial.write_bytes(text.encode(errors="surrogateescape"))  # a case's name may be any bytes
    os.replace(partial, partial.with_name(name))


def _volumes(cases: list[CaseEntry]) -> str:
    """The rows of volumes.csv; what an absent organ does not have is an empty cell."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["case", "organ", *_MEASURES, "quality"])
    for case in cases:
        for organ, measures in case.get("organs", {}).items():
            cells = [measures[name] for name in _MEASURES]
            writer.writerow([case["name"], organ, *cells, case["quality"]["verdict"]])
    return table.getvalue()


def finished_masks(outputs: Path, every_slice: bool = False) -> FinishedMasks:
    """What runs in this outputs folder finished.

    A record that cannot be used is passed over with a warning, so its cases are done again.

    Args:
        outputs: The outputs folder.
        every_slice: A mask is finished only if the network saw every slice by itself.
    """
    finished: FinishedMasks = {}
    for path in sorted(outputs.glob("logs/*/run.json")):
        try:
            run = read_record(path)
        except RecordError as error:
            _warn_once(f"{error}: passed over")
            continue
        for case in run["cases"]:
            with contextlib.suppress(KeyError, TypeError):  # a case without checksums proves nothing
                # Records of before there were slabs or looks do not have the field.
                saw_all = case.get("slices_per_slab", 1) == case.get("slabs_per_look", 1) == 1
                if case["status"] == "done" and (saw_all or not every_slice):
                    sums = (case["input_sha256"], run["weights"]["sha256"], case["mask_sha256"])
                    finished.setdefault(case["name"], set()).add(sums)
    return finished


@cache
def _warn_once(line: str) -> None:
    log.warning("%s", line)


def file_sha256(path: Path) -> str | None:
    """SHA-256 of a file; None if it cannot be read."""
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError:
        return None
