r"""What evaluation gives out: lines for a person, and whole files, whatever file names are in them.

A name may hold bytes that are not text (Python keeps them as lone surrogates) or letters that the terminal's
encoding lacks: both are written out, as in "\\udcb8".
"""

import csv
import io
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from app.progress import one_line


def say(line: str, stream: TextIO | None = None) -> None:
    """Print one line at once (default: to stdout)."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(one_line(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A hidden file to write into, renamed at the end: `path` has all of it, or is as it was. Folders are made.

    Raises:
        OSError: It names `path`.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 as a `whole_file`."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: object) -> None:
    """`write_text` of a value as JSON."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence]) -> None:
    """`write_text` of rows of cells."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
