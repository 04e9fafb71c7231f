"""The command line: find the cases, open the monitor, loop, exit status.

torch is imported while the first CT is being read: what needs it is imported inside functions.
"""

import argparse
import gc
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from app.cases import Case, find_cases, input_sha256, shard
from app.cpus import usable_cpus
from app.ct import read_ct
from app.errors import InputError, UsageError
from app.maskfile import remove_stale_temporaries
from app.monitor import ResourceMonitor
from app.progress import Progress, one_line
from app.readahead import ReadAhead
from app.record import RunRecord, file_sha256, finished_masks
from app.volume import Volume

DONE, SOME_FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "deeplabv3plus_resnet18.pt"
INPUTS = Path("/workspace/inputs")
PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "nvidia-ml-py", "psutil")

log = logging.getLogger("app")


def parse(arguments: list[str] | None) -> argparse.Namespace:
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
        help=f"CT files (.nii.gz, .nii, .mha, .nrrd, DICOM) or folders of them (default: {INPUTS})")  # fmt: skip
    add("--outputs", type=Path, metavar="DIR", default=Path("/workspace/outputs"),
        help="folder for masks and logs, made if absent (default: %(default)s)")  # fmt: skip
    add("--weights", type=Path, metavar="FILE", default=WEIGHTS, help="trained branch (default: the shipped one)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto takes the GPU if it works")
    add("--gpu-budget-mib", type=_positive(int), metavar="MIB", default=2048,
        help="for all this process takes on the GPU, CUDA context included (default: %(default)s)")  # fmt: skip
    add("--monitor-interval-s", type=_positive(float), metavar="S", default=0.1,
        help="time between samples of memory and CPU use (default: %(default)s)")  # fmt: skip
    add("--every-slice", action="store_true", help="give the network every slice, not slabs of thin ones, as the paper")
    add("--resume", action="store_true", help="skip cases whose mask is there, made from this input by these weights")
    add("--shard", metavar="K/N", default="0/1", help="only every Nth case from the Kth; K = 0 .. N-1")
    add("--preview", action="store_true", help="a picture of each mask over its CT, beside the logs")
    add("--quiet", action="store_true", help="only warnings and errors")
    add("--debug", action="store_true", help="a traceback with each error")
    return parser.parse_args(arguments)


def _positive(kind: type):
    def convert(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return convert


class Terminated(SystemExit):
    """SIGTERM, as an exception, so that every `finally` on the way out runs."""


def _on_sigterm(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the clean-up of the first
    raise Terminated(TERMINATED)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        notes: list[str] = []
        cases = shard(find_cases(options.inputs, options.outputs, notes.append), options.shard)
        record = _open_record(options.outputs)
    except UsageError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return WRONG_USE
    progress = Progress(len(cases), options.quiet)
    for line in notes:
        log.info("%s", line)
    remove_stale_temporaries(options.outputs)
    status = None
    # Without a GPU to run on there is none to watch.
    monitor = ResourceMonitor(record.folder / "monitor.csv", options.monitor_interval_s, options.device)
    try:
        with monitor:
            status = _run(cases, options, monitor, progress, record)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Terminated:
        status = TERMINATED
    finally:
        # All is done: a signal that comes now must not spoil the record.
        handlers = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
        progress.clear()
        record.content.update(exit_status=status, monitor=monitor.summary())
        if not record.write():
            status = status or SOME_FAILED
    for number, handler in handlers:
        signal.signal(number, handler)
    if status in (INTERRUPTED, TERMINATED):
        log.error("stopped by %s", "Ctrl-C" if status == INTERRUPTED else "SIGTERM")
    return status


def _open_record(outputs: Path) -> RunRecord:
    try:
        return RunRecord(outputs)
    except OSError as error:
        raise UsageError(f"cannot write to the outputs folder {outputs}: {error.strerror}") from None


def _run(cases: list[Case], options, monitor: ResourceMonitor, progress: Progress, record: RunRecord) -> int:
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
        with monitor.stage("start-up"), _uncollected():
            from app.device import DeviceError
            from app.weights import WeightsError

            try:
                segmenter = _load(options, record)
            except (DeviceError, WeightsError) as error:
                log.error("%s", error, exc_info=options.debug)
                return WRONG_USE
        record.content["start_up_s"] = round(time.perf_counter() - start_s, 3)
        for case, reading in volumes:
            progress.start(case.name)
            entry = {"name": case.name, "input": str(case.input), "mask": str(case.mask)}
            if case.series:
                entry["series_number"] = case.series.number
            entry |= _attempt(case, reading, segmenter, options, monitor, progress, record)
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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: imports make a million objects and no garbage, and looking for it takes time.

    What is made here stays to the end: no later search looks through it again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _load(options, record: RunRecord):
    """The network on its device; notes both in the record."""
    import torch

    from app.device import DeviceError, choose_device, compute_dtype, processor
    from app.segment import Segmenter
    from app.weights import load_weights

    torch.set_num_threads(min(usable_cpus(), torch.get_num_threads()))  # torch's own number is OMP_NUM_THREADS, if set
    device = choose_device(options.device)
    weights = load_weights(options.weights)
    try:
        segmenter = Segmenter(weights, device, options.gpu_budget_mib, options.every_slice)
    except torch.OutOfMemoryError:
        problem = "the network does not fit the GPU's free memory"
        if options.device == "cuda":
            raise DeviceError(f"--device cuda: {problem}") from None
        log.warning("THE GPU IS NOT USED: %s. Going on, slower, on the CPU.", problem)
        device = torch.device("cpu")
        segmenter = Segmenter(weights, device, options.gpu_budget_mib, options.every_slice)
    record.content.update(
        command=sys.argv,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        dtype=str(compute_dtype(device)).removeprefix("torch."),
        threads=torch.get_num_threads(),
        gpu_budget_mib=options.gpu_budget_mib,
        weights={"file": str(options.weights), "sha256": weights.sha256, "switched_off": list(weights.switched_off)},
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    )
    log.info(
        "on %s, %s, threads: %d, weights %s", record.content["device"], record.content["dtype"],
        torch.get_num_threads(), weights.sha256[:12],
    )  # fmt: skip
    return segmenter


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _attempt(case: Case, reading, segmenter, options, monitor, progress: Progress, record: RunRecord) -> dict:
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
        return {"status": "done", "error": None, **result}
    except Exception as error:  # a case must never take the others with it
        message = _cause(error, case)
        log.error("%s", message, exc_info=options.debug)
        return {"status": "failed", "error": message}


def _cause(error: Exception, case: Case) -> str:
    """One line that names the file and what was wrong."""
    if isinstance(error, (InputError, OSError)):
        return str(error)  # names its file
    if isinstance(error, MemoryError):
        return f"{case.input}: not enough memory"
    return f"{case.input}: {type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"


if __name__ == "__main__":
    exit_status = main()
    sys.stderr.flush()
    os._exit(exit_status)  # all is closed: torch's clean-up would take time, and a CT that is being read longer
