"""The tables of README and model card, from committed result files: `python -m evaluation.study --write`.

`<!-- table: NAME -->` ... `<!-- end -->` in a Markdown file is filled with the table NAME; `--check` fails when
one is out of date. The result files are those that training writes:

    results/crossvalidation.json      training.crossvalidate: {"organs": ..., "folds": ...}
    results/table3_miniature.json     training.table3: {"with_unlabelled": {"organs": ...}, "without_unlabelled": ...}
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from app.labels import ORGANS
from evaluation import paper

ROOT = Path(__file__).resolve().parents[1]
FILES = ("README.md",)
ERROR_EXIT, STALE_EXIT = 2, 1

_BLOCK = re.compile(r"^(<!-- table: (\S+) -->\n)(.*?)^(<!-- end -->)$", re.MULTILINE | re.DOTALL)


class StudyError(Exception):
    """A result file or a block that cannot be used. `str` is one line."""


def crossvalidation(result: dict) -> str:
    """DSC per organ on held-out patients, mean ± SD over them, and the paper's."""
    ours = result["organs"]
    organs = _scored(ours)
    rows = [[organ, _spread(ours[organ]), *_paper(organ)] for organ in organs]
    rows.append(["**Average**", f"**{ours['mean']['mean']:.3f}**", *_paper_average(organs)])
    patients = sorted(name for fold in result["folds"] for name in fold["dsc"])
    table = _markdown(["DSC", "ours, held-out patients", *_PAPER_HEADS], rows)
    return (
        f"{table}\n{_not_scored(organs)}Ours: {len(patients)} patients ({', '.join(patients)}) whom the scored network "
        f"never saw; mean ± SD over them. The paper's: 50 others. Scored with torch {result['torch']} on "
        f"{result['device']}; `python -m training.crossvalidate`.\n"
    )


def table3_miniature(result: dict) -> str:
    """The paper's Table 3, DSC with and without unlabelled data, beside ours on few patients at a small size."""
    arms = [result[arm]["organs"] for arm in ("with_unlabelled", "without_unlabelled")]
    organs = _scored(arms[0])
    if organs != _scored(arms[1]) or arms[0]["mean"]["n"] != arms[1]["mean"]["n"]:
        raise StudyError("with_unlabelled and without_unlabelled are not of the same organs and seeds")
    rows = [[organ, *(_spread(arm[organ]) for arm in arms), *_paper(organ)] for organ in organs]
    averages = (f"**{arm['mean']['mean']:.3f}**" for arm in arms)
    rows.append(["**Average**", *averages, *_paper_average(organs)])
    table = _markdown(["DSC", "ours (w/ un)", "ours (w/o un)", *_PAPER_HEADS], rows)
    return (
        f"{table}\n{_not_scored(organs)}Ours: mean ± SD over {arms[0]['mean']['n']} seeds; torch {result['torch']} on "
        f"{result['device']}; `python -m training.table3`.\n"
    )


TABLES: dict[str, Callable[[dict], str]] = {"crossvalidation": crossvalidation, "table3_miniature": table3_miniature}

_PAPER_HEADS = ("paper (w/ un)", "paper (w/o un)")


def _scored(organs: dict) -> list[str]:
    return [organ.abbreviation for organ in ORGANS if organ.abbreviation in organs]


def _paper(organ: str) -> list[str]:
    return [f"{value:.3f}" for value in paper.TABLE_3[organ]]


def _paper_average(organs: Sequence[str]) -> list[str]:
    """Over the organs that we have too."""
    return [f"**{sum(paper.TABLE_3[organ][k] for organ in organs) / len(organs):.3f}**" for k in (0, 1)]


def _spread(statistics: dict) -> str:
    spread = "" if statistics["std"] is None else f" ± {statistics['std']:.3f}"
    return f"{statistics['mean']:.3f}{spread}"


def _not_scored(organs: Sequence[str]) -> str:
    missing = [organ.name for organ in ORGANS if organ.abbreviation not in organs]
    return f"Averages, the paper's too, are without what was not scored: {', '.join(missing)}. " if missing else ""


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def make(name: str, results: Path) -> str:
    """The table NAME as Markdown; "" where its result file is not there yet.

    Raises:
        StudyError: There is no such table, or its result file does not hold what it should.
    """
    if name not in TABLES:
        raise StudyError(f"no table {name!r}; there are {', '.join(TABLES)}")
    path = results / f"{name}.json"
    if not path.exists():
        return ""
    try:
        return TABLES[name](json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path}: not a result of training ({type(error).__name__}: {error})") from None
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None


def filled(text: str, results: Path) -> str:
    """The Markdown with every block's table made anew.

    Raises:
        StudyError: As `make`, or a block is not closed.
    """
    if text.count("<!-- table: ") != len(_BLOCK.findall(text)):
        raise StudyError('a block "<!-- table: NAME -->" has no line "<!-- end -->"')

    def block(match: re.Match) -> str:
        table = make(match[2], results)
        return f"{match[1]}\n{table}\n{match[4]}" if table else f"{match[1]}{match[4]}"

    return _BLOCK.sub(block, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if --check found a table out of date, 2 if something cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.study", description=__doc__.split("\n")[0])
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
                print(f"{name}\n\n{make(name, arguments.results) or 'no result file yet'}")
            return 0
        stale = []
        for path in files:
            before = path.read_text(encoding="utf-8")
            try:
                after = filled(before, arguments.results)
            except StudyError as error:
                raise StudyError(f"{path}: {error}") from None
            if after != before:
                stale.append(str(path))
                if arguments.write:
                    path.write_text(after, encoding="utf-8", newline="\n")
    except (StudyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR_EXIT
    if arguments.check and stale:
        print(
            f"error: tables out of date, run `python -m evaluation.study --write`: {', '.join(stale)}", file=sys.stderr
        )
        return STALE_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())
