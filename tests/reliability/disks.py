"""Disks that fill up, folders that may not be written to, inputs that vanish or change, two runs on one folder.

Counted as lost: a mask that is not, byte for byte, the right one of the input it was made from; a failed case whose
message does not name the cause; an exit status that calls a failure well, or the reverse; a case that is missing
though nothing was wrong with it; a temporary file that stays.
"""

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.reliability.runs import (
    CASES,
    finish,
    last_record,
    make_cases,
    masks,
    resumed,
    said_by,
    start,
    statuses,
    temporaries,
    wait_until,
    wrong_masks,
)
from tests.reliability.trial import ROOT, Row, main, row
from tests.scans import save_ct, smooth_hu

NOBODY = 65534


def trial(folder: Path, disks: int = 12, changes: int = 20, pairs: int = 10, seed: int = 0) -> Iterator[Row]:
    folder.chmod(0o755)
    inputs, weights = make_cases(folder)
    assert finish(start(inputs, folder / "right", weights)) == 0
    right = masks(folder / "right")
    yield _full_disks(folder, inputs, weights, right, disks)
    yield _read_only(folder, inputs, weights)
    yield _changing_inputs(folder, weights, changes, random.Random(seed))
    yield _pairs(folder, inputs, weights, right, pairs)


def _full_disks(folder: Path, inputs: Path, weights: Path, right: dict[str, bytes], count: int) -> Row:
    """From no room for the record to room for all but the last bytes."""
    what = "a disk that fills up during the run, then enlarged and `--resume`"
    whole_kib = sum(path.stat().st_size for path in (folder / "right").rglob("*") if path.is_file()) // 1024
    problems, made = [], []
    for number in range(count):
        kib = 8 + number * (whole_kib + 12) // count  # each file takes whole pages of 4 KiB, and so does each folder
        with _disk(folder / f"disk{number}", f"size={kib}k") as disk:
            if disk is None:
                return Row(what, 0, 0, {"not tried": "this user may not mount a file system"})
            outputs = disk / "masks"
            outputs.mkdir()
            said = said_by(folder / f"said{number}")
            status = finish(start(inputs, outputs, weights, said=said))
            text = said.read_text()
            problem = wrong_masks(outputs, right) + [f"{name} stays" for name in temporaries(outputs)]
            missing = right.keys() - masks(outputs).keys()
            full = [line for line in text.splitlines() if "No space left on device" in line]
            if missing or status:
                problem += [] if status in (1, 2) else [f"{len(missing)} masks are missing, but the status is {status}"]
                problem += [] if full else [f"the cause is not said: {text!r}"]
            if status == 1:  # 2: there was no room to begin, and that was said
                problem += [f"{name} is missing without a word" for name in missing if not any(name in x for x in full)]
            problem += [] if "Traceback" not in text else ["a traceback"]
            made.append(len(masks(outputs)))
            done = _recorded(outputs)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            problems.append(problem + resumed(inputs, outputs, weights, right, done))
    return row(what, problems, **{"KiB needed": whole_kib, "masks that found room": made})


def _recorded(outputs: Path) -> set[str]:
    if not any((outputs / "logs").glob("*/run.json")):
        return set()
    return {name for name, status in statuses(outputs).items() if status == "done"}


@contextmanager
def _disk(folder: Path, options: str) -> Iterator[Path | None]:
    """A real file system in memory; None where mounting is not allowed."""
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _read_only(folder: Path, inputs: Path, weights: Path) -> Row:
    """A read-only mount, another user's folder, one that becomes read-only, a file in the folder's place."""
    problems, not_tried = [], []
    (folder / "file").touch()
    problems.append(_refused(start(inputs, folder / "file", weights), folder / "file", "Not a directory"))
    with _disk(folder / "read_only", "ro") as disk:
        if disk is None:
            not_tried.append("a read-only mount: this user may not mount")
        else:
            said = said_by(folder / "said_ro")
            problems.append(_refused(start(inputs, disk, weights, said=said), disk, "Read-only file system", said))
    if os.getuid():
        (folder / "closed").mkdir(mode=0o555)
        problems.append(_refused(start(inputs, folder / "closed", weights), folder / "closed", "Permission denied"))
    elif any(not above.stat().st_mode & 0o001 for above in (ROOT, *ROOT.parents)):
        not_tried.append("another user's folder: the program lies where other users may not look")
    else:
        (folder / "closed").mkdir(mode=0o755)
        process = start(inputs, folder / "closed", weights, user=NOBODY)
        problems.append(_refused(process, folder / "closed", "Permission denied"))
    return row(
        "an outputs folder that cannot be written to", problems, **({"not tried": not_tried} if not_tried else {})
    )


def _refused(process, outputs: Path, cause: str, said: Path | None = None) -> list[str]:
    status, text = finish(process), (said or said_by(outputs)).read_text()
    expected = f"error: cannot write to the outputs folder {outputs}: {cause}\n"
    return [] if (status, text) == (2, expected) else [f"status {status}, {text!r}"]


def _changing_inputs(folder: Path, weights: Path, count: int, rng: random.Random) -> Row:
    """Of 5 inputs one vanishes, one is cut, one overwritten in place, one replaced, at random moments of the run.

    They are .nii.gz: half old and half new, a .nii has no checksum that could tell.
    """
    versions, made_from = _versions(folder, weights)
    problems, states = [], dict.fromkeys(("done with the old", "done with the new", "failed"), 0)
    for attempt in range(count):
        inputs, outputs = folder / f"changing{attempt}", folder / f"changed{attempt}"
        inputs.mkdir()
        for name, (old, _) in versions.items():
            (inputs / name).write_bytes(old)
        paths = rng.sample([*inputs.iterdir()], 4)
        process = start(inputs, outputs, weights)
        wait_until(process, (outputs / "logs").exists)
        for path, change in zip(paths, rng.sample([_vanish, _cut, _overwrite, _replace], 4), strict=True):
            time.sleep(rng.uniform(0, 0.2))
            change(path, versions[path.name][1])
        status, problem = finish(process), []
        cases = {case["name"]: case for case in last_record(outputs)["cases"]}
        failed = [case for case in cases.values() if case["status"] == "failed"]
        found = masks(outputs)
        for number in range(CASES):
            case = cases.get(f"case{number}", {"status": "not there"})
            mask = found.get(f"case{number}.nii.gz")
            if case["status"] == "done":
                right = mask is not None and made_from.get(case["input_sha256"]) == mask
                problem += [] if right else [f"the mask of case {number} belongs to no version of it"]
                is_old = case["input_sha256"] == hashlib.sha256(versions[f"case{number}_0000.nii.gz"][0]).hexdigest()
                states["done with the old" if is_old else "done with the new"] += 1
            else:
                named = f"case{number}_0000.nii.gz': " in case.get("error", "")
                problem += [] if named and mask is None else [f"case {number}: {case}, mask {mask is not None}"]
                states["failed"] += 1
        problem += [] if status == bool(failed) else [f"status {status} with {len(failed)} failed"]
        untouched = ({f"case{number}" for number in range(CASES)} - {path.name[:5] for path in paths}).pop()
        problem += [] if cases[untouched]["status"] == "done" else ["an input that nobody touched failed"]
        problem += [f"{name} stays" for name in temporaries(outputs)]
        problems.append(problem)
    return row("4 of 5 inputs vanish, are cut, overwritten or replaced during the run", problems, **states)


def _versions(folder: Path, weights: Path) -> tuple[dict[str, list[bytes]], dict[str, bytes]]:
    """An old and a new scan under each name; and the mask of each scan, by the scan's SHA-256."""
    versions: dict[str, list[bytes]] = {}
    made_from = {}
    for version in range(2):
        inputs, outputs = folder / f"version{version}", folder / f"masks{version}"
        for number in range(CASES):
            ct = save_ct(inputs / f"case{number}_0000.nii.gz", smooth_hu((10, 64, 64), 10 * version + number))
            versions.setdefault(ct.name, []).append(ct.read_bytes())
        assert finish(start(inputs, outputs, weights)) == 0
        for case in last_record(outputs)["cases"]:
            made_from[case["input_sha256"]] = Path(case["mask"]).read_bytes()
    return versions, made_from


def _vanish(path: Path, new: bytes) -> None:
    path.unlink()


def _cut(path: Path, new: bytes) -> None:
    os.truncate(path, len(new) // 2)


def _overwrite(path: Path, new: bytes) -> None:
    """As a copy does: for a while the file begins as the new one and goes on as the old."""
    with path.open("r+b", buffering=0) as file:
        for at in range(0, len(new), 1 << 12):
            file.write(new[at : at + (1 << 12)])
            time.sleep(0.001)
        file.truncate()


def _replace(path: Path, new: bytes) -> None:
    other = path.with_suffix(".part")
    other.write_bytes(new)
    os.replace(other, path)


def _pairs(folder: Path, inputs: Path, weights: Path, right: dict[str, bytes], count: int) -> Row:
    problems = []
    for pair in range(count):
        outputs = folder / f"pair{pair}"
        said = [said_by(folder / f"said{pair}{run}") for run in range(2)]
        runs = [start(inputs, outputs, weights, "--quiet", said=path) for path in said]
        problem = [f"one ended with {status}" for run in runs if (status := finish(run))]
        lines = [line for path in said for line in path.read_text().splitlines()]
        problem += [f"said: {line}" for line in lines if "no abdomen in view" not in line]  # the cases are noise
        problem += wrong_masks(outputs, right) + [f"{name} stays" for name in temporaries(outputs)]
        problem += [f"{name} is missing" for name in right.keys() - masks(outputs).keys()]
        problem += [] if len([*outputs.glob("logs/*/run.json")]) == 2 else ["not two records"]
        problems.append(problem)
    return row("two runs at once on one outputs folder", problems)


if __name__ == "__main__":
    sys.exit(main(__spec__.name, trial))
