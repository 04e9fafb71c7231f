"""Fills the tables of the Markdown files from committed result files: `python -m evaluation.tables --write`.

`<!-- table: NAME -->` ... `<!-- end -->` in a Markdown file is filled with the table NAME; `--check` fails when one is
out of date. NAME or NAME.PART is made from the result file NAME.json.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.output import say, write_text
from evaluation.tables import accuracy, benchmarks, errors, reliability
from evaluation.tables.markdown import TableError

ROOT = Path(__file__).resolve().parents[2]
FILES = ("README.md", "docs/results.md", "docs/reliability.md", "benchmarks/README.md", "training/README.md")
ERROR_EXIT, STALE_EXIT = 2, 1
TABLES: dict[str, Callable[[dict], str]] = {
    "crossvalidation": accuracy.crossvalidation,
    "table3": accuracy.table3,
    "table3_miniature": accuracy.table3,
    "errors": errors.errors,
    "reliability": reliability.reliability,
    "benchmark_memory_cuda": benchmarks.memory,
    "benchmark_look": benchmarks.look,
    "benchmark_peers": benchmarks.peers,
    **{
        f"benchmark_{name.format(device)}": table
        for device in ("", "_amx", "_cuda")
        for name, table in (
            ("cold_case{}", benchmarks.cold_case),
            ("cold_case{}.stages", benchmarks.cold_case_stages),
            ("cold_case{}.timeline", benchmarks.cold_case_timeline),
            ("cold_case{}.organizers", benchmarks.cold_case_organizers),
            ("network{}", benchmarks.network),
            ("scaling{}", benchmarks.scaling),
        )
    },
}

_BLOCK = re.compile(r"^(<!-- table: (\S+) -->\n)(.*?)^(<!-- end -->)$", re.MULTILINE | re.DOTALL)


def make(name: str, results: Path) -> str:
    """The table NAME as Markdown; "" where its result file is not there yet.

    Raises:
        TableError: There is no such table, or its result file does not hold what it should.
    """
    if name not in TABLES:
        raise TableError(f"no table {name!r}; there are {', '.join(TABLES)}")
    path = results / f"{name.partition('.')[0]}.json"
    if not path.exists():
        return ""
    try:
        return TABLES[name](json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(f"{path}: not a result of its command ({type(error).__name__}: {error})") from None
    except TableError as error:
        raise TableError(f"{path}: {error}") from None


def filled(text: str, results: Path) -> str:
    """The Markdown with every block's table made anew.

    Raises:
        TableError: As `make`, or a block is not closed.
    """
    if text.count("<!-- table: ") != len(_BLOCK.findall(text)):
        raise TableError('a block "<!-- table: NAME -->" has no line "<!-- end -->"')

    def block(match: re.Match) -> str:
        table = make(match[2], results)
        return f"{match[1]}\n{table}\n{match[4]}" if table else f"{match[1]}{match[4]}"

    return _BLOCK.sub(block, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if --check found a table out of date, 2 if something cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.tables", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", type=Path, nargs="*", metavar="FILE", help=f"Markdown files (default: {', '.join(FILES)})")
    add("--results", type=Path, default=ROOT / "results", metavar="DIR", help="result files (default: results/)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="fill the blocks of the files; without, print the tables")
    action.add_argument("--check", action="store_true", help="change nothing; fail if a block is out of date")
    arguments = parser.parse_args(argv)
    files = arguments.files or [path for path in (ROOT / name for name in FILES) if path.exists()]
    try:
        if not (arguments.write or arguments.check):
            for name in TABLES:
                for line in [name, "", *(make(name, arguments.results) or "no result file yet").split("\n")]:
                    say(line)
            return 0
        stale = []
        for path in files:
            before = path.read_text(encoding="utf-8")
            try:
                after = filled(before, arguments.results)
            except TableError as error:
                raise TableError(f"{path}: {error}") from None
            if after != before:
                stale.append(str(path))
                if arguments.write:
                    write_text(path, after)
    except (TableError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return ERROR_EXIT
    if arguments.check and stale:
        say(f"error: tables out of date, run `python -m evaluation.tables --write`: {', '.join(stale)}", sys.stderr)
        return STALE_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())
