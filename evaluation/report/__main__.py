"""`python -m evaluation.report RUN [--truth DIR] -o report.html`: the page, and report.csv beside it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import evaluation.report
from app.labels import ORGANS
from evaluation.masks import MaskError
from evaluation.organs import AnnotatedOrgans, annotated_organs
from evaluation.output import say, write_csv, write_text
from evaluation.report.case import CaseReport, report_case
from evaluation.report.page import page
from evaluation.report.run import ReportError, read_run

INCOMPLETE_EXIT, ERROR_EXIT = 1, 2


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.report",
        description=evaluation.report.__doc__,
        epilog="Exit status: 0 done; 1 the mask or truth of a case is unusable, which the page says; 2 no page.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's log folder, or an outputs folder: its newest run")
    add("-o", "--output", type=Path, required=True, metavar="HTML", help="the page; the .csv beside it: volumes")
    add("--truth", type=Path, metavar="DIR", help="folder of ground truths, named as the masks: CASE.nii.gz")
    add("--organs", type=annotated_organs, default="1-13", metavar="LIST_OR_TSV",
        help="organs annotated in the truths, as evaluation.accuracy takes them (default: all)")  # fmt: skip
    add("--inputs", type=Path, metavar="DIR", help="folder of the CTs, if they are not where the run read them")
    add("--no-pictures", action="store_true", help="tables and curves only: faster")
    arguments = parser.parse_args(argv)
    if arguments.output.suffix not in (".html", ".htm"):
        parser.error(f"-o must end in .html, got {arguments.output}")
    return arguments


def write_volumes(path: Path, cases: Sequence[CaseReport]) -> None:
    """A row for each case and organ; volumes in ml; limits and mark as in the page."""
    rows = [["Name", "Organ", "ml", "plausible_low_ml", "plausible_high_ml", "mark"]]
    for case in cases:
        for label, volume in case.volumes.items():
            millilitres = [f"{ml:.2f}" for ml in (volume.ml, volume.low_ml, volume.high_ml)]
            rows.append([case.record.name, ORGANS[label - 1].abbreviation, *millilitres, volume.mark])
    write_csv(path, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if the mask or truth of a case is unusable, 2 if no report was written."""
    arguments = parse_arguments(argv)
    try:
        run = read_run(arguments.run, arguments.inputs)
        truths = _truths(arguments.truth, [case.name for case in run.cases], arguments.organs)
        cases, unusable = [], []
        for number, record in enumerate(run.cases, start=1):
            say(f"{number}/{len(run.cases)} {record.name}")
            annotated = arguments.organs.of(record.name) or ()
            try:
                cases.append(report_case(record, truths.get(record.name), annotated, not arguments.no_pictures))
            except (MaskError, OSError) as error:
                say(f"error: {error}", sys.stderr)
                cases.append(CaseReport(record, notes=(str(error),)))
                unusable.append(record.name)
        write_text(arguments.output, page(run, cases))
        write_volumes(arguments.output.with_suffix(".csv"), cases)
    except (ReportError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return ERROR_EXIT
    say(f"{arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB)")
    return INCOMPLETE_EXIT if unusable else 0


def _truths(folder: Path | None, names: Sequence[str], organs: AnnotatedOrgans) -> dict[str, Path]:
    """Of the cases that can be scored."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ReportError(f"--truth {folder}: no such folder")
    truths = {name: folder / f"{name}.nii.gz" for name in names if (folder / f"{name}.nii.gz").is_file()}
    if not truths:
        raise ReportError(f"--truth {folder}: no truth for any case of this run, e.g. {names[0]}.nii.gz")
    if missing := [name for name in names if name not in truths]:
        say(f"warning: no truth for {', '.join(missing)}: not scored", sys.stderr)
    if unknown := [name for name in truths if organs.of(name) is None]:
        say(f"warning: the table of --organs does not name {', '.join(unknown)}: not scored", sys.stderr)
    return {name: path for name, path in truths.items() if name not in unknown}


if __name__ == "__main__":
    sys.exit(main())
