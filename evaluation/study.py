"""The tables of README and model card, from committed result files: `python -m evaluation.study --write`.

`<!-- table: NAME -->` ... `<!-- end -->` in a Markdown file is filled with the table NAME; `--check` fails when
one is out of date. Result files hold what evaluation.accuracy writes beside its CSV (means and deviations):

    results/crossvalidation.json    {"setting": one sentence, ... of predictions by folds that did not see the case}
    results/table3.json             {"setting": one sentence, "with_unlabelled": {...}, "without_unlabelled": {...}}
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
FILES = ("README.md", "weights/MODEL_CARD.md")
ERROR_EXIT, STALE_EXIT = 2, 1

_BLOCK = re.compile(r"^(<!-- table: (\S+) -->\n)(.*?)^(<!-- end -->)$", re.MULTILINE | re.DOTALL)


class StudyError(Exception):
    """A result file or a block that cannot be used. `str` is one line."""


def crossvalidation(result: dict) -> str:
    """DSC and NSD per organ, mean ± SD over the cases, and the paper's DSC."""
    organs = _annotated(result)
    rows = [
        [organ, *(_spread(result["per_organ"][organ][metric]) for metric in ("DSC", "NSD")),
         f"{paper.TABLE_3[organ].with_unlabelled:.4f}"]
        for organ in organs
    ]  # fmt: skip
    mean = [f"{result['over_organs'][metric]['mean']:.4f}" for metric in ("DSC", "NSD")]
    rows.append(["**Average**", *mean, f"{_average(organs, 0):.4f}"])
    table = _markdown(["Organ", "DSC", "NSD", "DSC, paper"], rows)
    return f"{table}\n{_note(result, organs)} {result['cases']} cases; mean ± SD over them.\n"


def table3(result: dict) -> str:
    """The paper's Table 3, DSC with and without unlabelled data, beside the same of ours."""
    ours = [result["with_unlabelled"], result["without_unlabelled"]]
    organs = [organ for organ in _annotated(ours[0]) if organ in _annotated(ours[1])]
    if len({(arm["cases"], *_annotated(arm)) for arm in ours}) > 1:
        raise StudyError("with_unlabelled and without_unlabelled are not of the same cases and organs")
    rows = [
        [organ, *(f"{arm['per_organ'][organ]['DSC']['mean']:.4f}" for arm in ours),
         *(f"{value:.4f}" for value in paper.TABLE_3[organ])]
        for organ in organs
    ]  # fmt: skip
    averages = [arm["over_organs"]["DSC"]["mean"] for arm in ours] + [_average(organs, k) for k in (0, 1)]
    rows.append(["**Average**", *(f"{value:.4f}" for value in averages)])
    heads = ["Organ", "ours (w/ un)", "ours (w/o un)", "paper (w/ un)", "paper (w/o un)"]
    return f"{_markdown(heads, rows)}\n{_note(result, organs)} DSC; {ours[0]['cases']} cases.\n"


TABLES: dict[str, Callable[[dict], str]] = {"crossvalidation": crossvalidation, "table3": table3}


def _annotated(result: dict) -> list[str]:
    return [organ.abbreviation for organ in ORGANS if organ.abbreviation in result["per_organ"]]


def _average(organs: Sequence[str], column: int) -> float:
    """The paper's, over the organs that we have too."""
    return sum(paper.TABLE_3[organ][column] for organ in organs) / len(organs)


def _spread(statistics: dict) -> str:
    return f"{statistics['mean']:.4f} ± {statistics['std']:.4f}"


def _note(result: dict, organs: Sequence[str]) -> str:
    missing = [organ.name for organ in ORGANS if organ.abbreviation not in organs]
    without = f" Averages, the paper's too, are without what is not annotated: {', '.join(missing)}." if missing else ""
    return f"{result.get('setting', '').strip()}{without}".strip()


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
        raise StudyError(f"{path}: not a result of evaluation.accuracy ({type(error).__name__}: {error})") from None
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
