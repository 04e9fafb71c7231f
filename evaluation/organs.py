"""Which organs the truths annotate: one list for all cases, or a table of them, case by case."""

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from app.cases import case_name
from app.labels import ORGANS

ALL_LABELS = tuple(organ.label for organ in ORGANS)
NOT_TOLD = "the table of --organs does not tell which organs are annotated"  # of a case; behind its name
_COLUMN = "annotated"


class AnnotatedOrgans(NamedTuple):
    """Sorted labels that are annotated.

    Attributes:
        by_case: Of the cases that a table names.
        others: Of all other cases; None if it is not known.
    """

    by_case: Mapping[str, tuple[int, ...]]
    others: tuple[int, ...] | None

    def of(self, case: str) -> tuple[int, ...] | None:
        """Labels of a case, by its name or a file's; None if they are not known."""
        return self.by_case.get(case_name(Path(case)), self.others)


def annotated_organs(text: str) -> AnnotatedOrgans:
    """The value of `--organs`: a list as of `parse_organs`, or the name of a table, which ends in .tsv.

    Raises:
        argparse.ArgumentTypeError: Neither, or the table cannot be used.
    """
    if text.lower().endswith(".tsv"):
        return AnnotatedOrgans(_read_table(Path(text)), None)
    return AnnotatedOrgans({}, parse_organs(text))


def parse_organs(text: str) -> tuple[int, ...]:
    """Labels, ranges, abbreviations or names, separated by commas, to sorted labels: "1-11,LK" leaves the duodenum out.

    Raises:
        argparse.ArgumentTypeError: A part is none of these.
    """
    by_name = {name.lower(): organ.label for organ in ORGANS for name in (organ.abbreviation, organ.name)}
    labels = set()
    for part in text.lower().split(","):
        first, _, last = part.strip().partition("-")
        if part.strip() in by_name:
            labels.add(by_name[part.strip()])
        elif first.isdecimal() and (last or first).isdecimal() and 1 <= int(first) <= int(last or first) <= len(ORGANS):
            labels.update(range(int(first), int(last or first) + 1))
        else:
            known = ", ".join(organ.abbreviation for organ in ORGANS)
            raise argparse.ArgumentTypeError(f"no organ {part.strip()!r}; there are 1 to {len(ORGANS)}: {known}")
    return tuple(sorted(labels))


def _read_table(path: Path) -> dict[str, tuple[int, ...]]:
    """Labels by case name; a case whose cell is empty has no annotation and is left out."""
    by_case: dict[str, tuple[int, ...]] = {}
    try:
        # Bytes that are no UTF-8 come as Python has them in file names, so that such a name is found.
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.DictReader(file, delimiter="\t")
            columns = rows.fieldnames or ()
            if _COLUMN not in columns:
                raise argparse.ArgumentTypeError(f"no column {_COLUMN!r}")
            for row in rows:
                name = case_name(Path(row[columns[0]]))
                if not (row[_COLUMN] or "").strip():
                    continue
                labels = parse_organs(row[_COLUMN])
                if by_case.setdefault(name, labels) != labels:
                    raise argparse.ArgumentTypeError(f"other organs of {name!r} than an earlier line")
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{path}, line {rows.line_num}: {error}") from None
    except (OSError, csv.Error) as error:
        raise argparse.ArgumentTypeError(f"{path}: cannot be read ({error})") from None
    return by_case
