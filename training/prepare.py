"""CT folders to a slice store: `python -m training.prepare --images DIR --labels DIR --store STORE`.

Files are named as FLARE22 names them: images X_0000.nii.gz (or X.nii.gz), label maps X.nii.gz. Without
--labels the cases are unlabelled. Run again, it adds what is new or changed and skips the rest.
"""

import argparse
import fnmatch
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from app.cases import find_cases
from app.errors import UsageError
from evaluation.organs import parse_organs
from training.prepare_case import CaseError, Job, prepare

# Bytes in the store per byte of the files; CT takes 1.0 of .nii.gz and at most 0.7 of .nii.
STORE_PER_BYTE = {True: 1.3, False: 0.8}  # by whether the image is compressed


def _range(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(","))
    if not 0 < low <= high:
        raise ValueError(text)
    return low, high


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """Cases of the folders, by name.

    Raises:
        UsageError: No image, no case that fits --cases, or an image without its label map.
    """
    labelled = arguments.labels is not None
    cases = find_cases([arguments.images], arguments.labels if labelled else arguments.store)
    cases = [case for case in cases if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in arguments.cases)]
    if not cases:
        raise UsageError(f"no case of {arguments.images} fits {' '.join(arguments.cases)}")
    without = [case.name for case in cases if labelled and not case.mask.exists()]
    if without:
        raise UsageError(f"no label map in {arguments.labels} for {', '.join(without)}: use --cases to leave them out")
    return [
        Job(
            name=case.name + arguments.suffix,
            patient=case.name,
            scan=case,
            labels=case.mask if labelled else None,
            store=arguments.store,
            annotated=arguments.annotated if labelled else (),
            saturated_hu=arguments.saturated_hu,
            spacing_mm=arguments.spacing_mm,
            shrink=arguments.shrink,
        )
        for case in cases
    ]


def estimated_bytes(job: Job) -> float:
    """What the case will take in the store, at most about."""
    size = sum(path.stat().st_size for path in (*job.scan.files, job.labels) if path)
    compressed = any(path.suffix == ".gz" for path in job.scan.files)
    return size * STORE_PER_BYTE[compressed] / job.shrink**2


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all prepared, 1 some failed (named), 2 nothing done."""
    parser = argparse.ArgumentParser(prog="python -m training.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of X_0000.nii.gz, or of DICOM series")
    parser.add_argument("--labels", type=Path, help="folder of X.nii.gz; without it the cases are unlabelled")
    parser.add_argument("--store", type=Path, required=True, help="made if absent, else added to")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="GLOB", help="names X to take (default: all)")
    parser.add_argument(
        "--annotated", type=parse_organs, default="1-13", metavar="1-11,13",
        help="organs that the label maps annotate; others are left open where they may hide (default: 1-13)",
    )  # fmt: skip
    parser.add_argument("--suffix", default="", help="for the store's names, where a patient has several images")
    parser.add_argument("--saturated-hu", type=int, metavar="275", help="HU at which the images were cut off")
    parser.add_argument(
        "--spacing-mm", type=_range, metavar="LOW,HIGH",
        help="resample slices with pixels outside to the nearer end, as inference will (default: never)",
    )  # fmt: skip
    parser.add_argument("--shrink", type=int, default=1, help="make slices smaller by this factor (default: 1)")
    parser.add_argument("--workers", type=int, default=2, help="cases at a time, each in memory once (default: 2)")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1 or arguments.shrink < 1:
        parser.error("--workers and --shrink must be at least 1")
    try:
        todo = jobs(arguments)
        arguments.store.mkdir(parents=True, exist_ok=True)
        new_bytes = sum(estimated_bytes(job) for job in todo if not (arguments.store / job.name).exists())
        free_bytes = shutil.disk_usage(arguments.store).free
        print(f"{len(todo)} cases, up to {new_bytes / 1e9:.2f} GB in the store; {free_bytes / 1e9:.1f} GB are free")
        if new_bytes > free_bytes:
            raise UsageError("the disk is too full")
    except (UsageError, OSError) as error:
        print(f"training.prepare: {error}", file=sys.stderr)
        return 2
    return _run(todo, arguments.workers)


def _run(todo: list[Job], workers: int) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = failed = 0
    with (
        ProcessPoolExecutor(min(workers, len(todo))) as pool,
        tqdm(total=len(todo), unit="case", dynamic_ncols=True) as bar,
    ):
        futures = {pool.submit(prepare, job): job.name for job in todo}
        for future in as_completed(futures):
            try:
                warnings = future.result()
                done += warnings is not None
                for warning in warnings or ():
                    tqdm.write(f"{futures[future]}: {warning}", file=sys.stderr)
            except CaseError as error:
                failed += 1
                tqdm.write(f"FAILED {error}", file=sys.stderr)
            except BrokenProcessPool:
                tqdm.write("FAILED: a worker was killed (out of memory? fewer --workers)", file=sys.stderr)
                return 1
            bar.update()
    print(f"{done} prepared, {len(todo) - done - failed} were there already, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
