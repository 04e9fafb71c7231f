"""To a machine without network and back, in pieces: `python -m training.carry STEP ...` (docs/visit.md).

store STORE PIECES             at home: the slice store, with HU rounded inside the noise
unpack PIECES FOLDER           there: the store again; at home: the checkpoint
checkpoint CHECKPOINT PIECES   there: the branches in float16, without optimisers
weights PIECES FILE            at home: the weights file of a carried checkpoint
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

from training import checkpoint, export
from training.pieces import PiecesError, join, split
from training.store import Case, read_cases, read_pixels, write_case

# Beyond these jitter brings nothing into the window of -100 to 1000 HU: air is one value there, and costs nothing.
CARRIED_HU = (-250, 1300)


def rounded(hu: np.ndarray, case: Case, step_hu: int) -> np.ndarray:
    """HU (int16) as multiples of a step: an error of at most half of it, under the noise of a CT.

    Voxels where the scan was cut off keep that value: augmentation knows them by it.
    """
    multiples = np.rint(hu.clip(*CARRIED_HU) / step_hu) * step_hu
    kept = hu >= (np.inf if case.saturated_hu is None else case.saturated_hu)
    return np.where(kept, hu, multiples).astype(np.int16)


def pack_store(store: Path, pieces: Path, step_hu: int, piece_mib: float) -> list[Path]:
    """A store's cases, rounded, in pieces. Spacings and statistics stay those of the unrounded scans."""
    with tempfile.TemporaryDirectory(dir=pieces.parent) as folder:
        for case in read_cases(store):
            hu, labels = read_pixels(store, case)
            carried = dataclasses.replace(case, settings={**case.settings, "step_hu": step_hu})
            write_case(Path(folder), carried, rounded(hu, case, step_hu), labels if case.annotated else None)
        return split(Path(folder), pieces, piece_mib)


def pack_checkpoint(path: Path, pieces: Path, piece_mib: float) -> list[Path]:
    """A checkpoint's branches in pieces; at home they are exported, scored or started from, but not resumed."""
    state = checkpoint.compact(checkpoint.load(path))
    with tempfile.TemporaryDirectory(dir=pieces.parent) as folder:
        checkpoint.save(state, Path(folder) / checkpoint.FILE_NAME)
        return split(Path(folder), pieces, piece_mib)


def export_weights(pieces: Path, file: Path) -> str:
    """The weights file of a carried checkpoint. Returns its SHA-256."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        join(pieces, Path(folder))
        return export.write(export.export(Path(folder) / checkpoint.FILE_NAME), file)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 not."""
    parser = argparse.ArgumentParser(
        prog="python -m training.carry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("store", "unpack", "checkpoint", "weights"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--piece-mib", type=float, default=15, help="largest size of a piece (default: %(default)s)")
    parser.add_argument(
        "--step-hu", type=int, default=8, help="HU are rounded to multiples of it (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    if options.piece_mib <= 0 or options.step_hu < 1:
        parser.error("--piece-mib must be positive, --step-hu at least 1")
    options.target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if options.step == "unpack":
            join(options.source, options.target)
            print(options.target)
        elif options.step == "weights":
            print(options.target, export_weights(options.source, options.target))
        else:
            if options.step == "store":
                made = pack_store(options.source, options.target, options.step_hu, options.piece_mib)
            else:
                made = pack_checkpoint(options.source, options.target, options.piece_mib)
            size_mib = sum(piece.stat().st_size for piece in made) / 2**20
            print(f"{options.target}: {len(made)} pieces, {size_mib:.1f} MiB; carry pieces.sha256 with them")
    except (PiecesError, ValueError, OSError) as error:
        print(f"training.carry: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
