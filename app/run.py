"""The loop over cases: each is read ahead, segmented and recorded; one that fails never stops the others.

torch is imported while the first CT is being read: what needs it is imported inside functions.
"""

import argparse
import gc
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.cases import Case, input_sha256
from app.ct import read_ct
from app.errors import InputError
from app.monitor import ResourceMonitor
from app.progress import Progress
from app.readahead import ReadAhead
from app.record import RunRecord, file_sha256, finished_masks
from app.runjson import CaseEntry
from app.volume import Volume

if TYPE_CHECKING:
    from app.segment import Segmenter

DONE, SOME_FAILED, WRONG_USE = 0, 1, 2

log = logging.getLogger("app")


def run(
    cases: list[Case],
    options: argparse.Namespace,
    monitor: ResourceMonitor,
    progress: Progress,
    record: RunRecord,
) -> int:
    """Segment the cases, one after the other. Each goes into the record, whatever becomes of it.

    Returns:
        `DONE`, `SOME_FAILED`, or `WRONG_USE` if the device or the weights cannot be used.
    """
    start_s = time.perf_counter()
    finished = finished_masks(options.outputs, options.every_slice) if options.resume else {}
    weights_sha256 = file_sha256(options.weights) if finished else None

    def read(case: Case) -> Volume | None:
        """The CT, or None if its mask is there already."""
        if case.name in finished:
            with monitor.stage("resume", case.name):
                sums = (input_sha256(case), weights_sha256, file_sha256(case.mask))
            if sums in finished[case.name]:
                return None
        with monitor.stage("read", case.name):
            read_start_s = time.perf_counter()
            volume = read_ct(case.source)
            read_s[case.name] = round(time.perf_counter() - read_start_s, 3)
            return volume

    read_s: dict[str, float] = {}
    progress.reading()
    with ReadAhead(cases, read) as volumes:
        with monitor.stage("start-up"), _without_garbage_collection():
            from app.device import DeviceError
            from app.startup import load_segmenter
            from app.weights import WeightsError

            try:
                segmenter = load_segmenter(options, record)
            except (DeviceError, WeightsError) as error:
                log.error("%s", error, exc_info=options.debug)
                return WRONG_USE
        record.content["start_up_s"] = round(time.perf_counter() - start_s, 3)
        for case, reading in volumes:
            progress.start(case.name)
            entry: CaseEntry = {"name": case.name, "input": str(case.input), "mask": str(case.mask)}
            if case.series:
                entry["series_number"] = case.series.number
            entry.update(_attempt(case, reading, segmenter, options, monitor, progress, record))
            if case.name in read_s:
                entry.get("seconds", {})["read"] = read_s.pop(case.name)
            record.add_case(entry)
            progress.reading()
    done, failed, skipped = (record.count(status) for status in ("done", "failed", "skipped"))
    log.log(
        logging.ERROR if failed else logging.INFO,
        "%d done, %d failed, %d skipped in %.1f s; masks in %s, log in %s",
        done, failed, skipped, time.perf_counter() - start_s, options.outputs, record.folder,
    )  # fmt: skip
    return SOME_FAILED if failed else DONE


def _attempt(
    case: Case,
    reading: Future[Volume | None],
    segmenter: "Segmenter",
    options: argparse.Namespace,
    monitor: ResourceMonitor,
    progress: Progress,
    record: RunRecord,
) -> CaseEntry:
    """One case, whatever happens to it: its status and what is known of it."""
    from app.pipeline import segment_case

    try:
        volume = reading.result()
        if volume is None:
            log.info("%s: skipped, its mask is there", case.name)
            return {"status": "skipped"}
        for warning in volume.warnings:
            log.warning("%s: %s", case.input, warning)
        preview = record.folder / f"{case.name}.png" if options.preview else None
        result = segment_case(case, volume, segmenter, monitor, progress.slices, preview)
        log.info("%s: %d slices in %.1f s", case.name, result["shape_zyx"][0], sum(result["seconds"].values()))
        result.update({"status": "done", "error": None})
        return result
    except Exception as error:  # whatever happens to a case, the others go on
        message = _cause(error, case)
        log.error("%s", message, exc_info=options.debug)
        return {"status": "failed", "error": message}


def _cause(error: Exception, case: Case) -> str:
    """One line that names the file and what was wrong."""
    if isinstance(error, (InputError, OSError)):
        return str(error)  # its message names the file
    if isinstance(error, MemoryError):
        return f"{case.input}: not enough memory"
    return f"{case.input}: {type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """For imports: they make a million objects and no garbage, and each search for it takes time.

    `gc.freeze` keeps these objects, which stay to the end, out of all later searches too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
