"""Tables from result files: numbers are looked up in what training wrote and in the paper's text."""

import io
import json
import os
import sys

import numpy as np
import pytest
import torch

from app.labels import ORGANS
from evaluation.output import write_json
from evaluation.paper import TABLE_3, TABLE_3_AVERAGE
from evaluation.tables.__main__ import ERROR_EXIT, STALE_EXIT, main, make
from training import results as training_results

BLOCK = "# Title\n\n<!-- table: {} -->\n{}<!-- end -->\n\nthe rest\n"


def rows(factor):
    """DSC of three patients or seeds, without a duodenum."""
    random = np.random.default_rng(0)
    return [{organ: factor * random.random() for organ in TABLE_3 if organ != "Duodenum"} for _ in range(3)]


@pytest.fixture
def results(tmp_path):
    """What training.crossvalidate and training.table3 write."""
    folder = tmp_path / "results"
    provenance = training_results.provenance(torch.device("cpu"))
    arms = {
        name: {"organs": training_results.summary(rows(factor))}
        for name, factor in (("with_unlabelled", 1.0), ("without_unlabelled", 0.5))
    }
    folds = [{"dsc": {"b": {}, "a": {}}}, {"dsc": {"c": {}}}]
    scores = {**provenance, "organs": training_results.summary(rows(1.0)), "folds": folds}
    write_json(folder / "crossvalidation.json", scores)
    write_json(folder / "table3_miniature.json", {**provenance, **arms})
    return folder


def cells(markdown):
    """{first cell: the others} of a Markdown table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def check_paper(table, columns):
    for organ, dsc in TABLE_3.items():
        if organ != "Duodenum":
            assert [float(cell) for cell in table[organ][columns:]] == pytest.approx(list(dsc), abs=5.1e-4)
    # Of 13 organs the duodenum is missing: it leaves the paper's averages too.
    averages = [(13 * mean - TABLE_3["Duodenum"][k]) / 12 for k, mean in enumerate(TABLE_3_AVERAGE)]
    assert [float(cell.strip("*")) for cell in table["**Average**"][columns:]] == pytest.approx(averages, abs=6e-4)


def test_table_3_holds_our_results_beside_the_papers(results):
    write_json(results / "table3.json", json.loads((results / "table3_miniature.json").read_text()))
    markdown = make("table3", results)
    assert markdown == make("table3_miniature", results)
    table = cells(markdown)
    assert table["DSC"] == ["ours (w/ un)", "ours (w/o un)", "paper (w/ un)", "paper (w/o un)"]
    assert len(table) == 2 + 12 + 1 and "Duodenum" not in table
    values = [row["Liver"] for row in rows(1.0)]
    mean, spread = np.mean(values), np.std(values, ddof=1)
    assert table["Liver"][:2] == [f"{mean:.3f} ± {spread:.3f}", f"{mean / 2:.3f} ± {spread / 2:.3f}"]
    check_paper(table, 2)
    assert "not scored: duodenum" in markdown and "3 seed(s)" in markdown


def test_table_3_with_more_arms_and_ensembles(results):
    arms = json.loads((results / "table3_miniature.json").read_text())
    arms["strong_views"] = {"organs": training_results.summary(rows(0.8))}
    for factor, arm in enumerate(("with_unlabelled", "without_unlabelled", "strong_views"), 1):
        arms[arm]["ensemble"] = {"mean": {"mean": factor / 10, "n": 3}}
    write_json(results / "table3.json", arms)
    table = cells(make("table3", results))
    assert table["DSC"][:3] == ["ours (w/ un)", "ours (w/o un)", "ours (w/ un, weak to strong)"]
    assert table["Average of both branches' ensemble"] == ["0.100", "0.200", "0.300", "", ""]
    check_paper(table, 3)
    write_json(results / "table3.json", {"strong_views": arms["strong_views"], "torch": "2", "device": "a CPU"})
    check_paper(cells(make("table3", results)), 1)


def test_cross_validation_table(results):
    markdown = make("crossvalidation", results)
    table = cells(markdown)
    values = [row["Spleen"] for row in rows(1.0)]
    assert table["Spleen"][0] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert float(table["**Average**"][0].strip("*")) == pytest.approx(
        np.mean([np.mean([row[organ] for row in rows(1.0)]) for organ in rows(1.0)[0]]), abs=6e-4
    )
    check_paper(table, 1)
    assert "3 patients (a, b, c)" in markdown


def test_reliability_table(results):
    rows = [
        {"what": "kills", "tried": 30, "lost": 1, "facts": {}},
        {"what": "no such machine", "tried": 0, "lost": 0, "facts": {"not tried": "why"}},
    ]
    machine = {"device": "a CPU", "processor": "a CPU", "flags": ["avx2"], "torch": "2"}
    trials = {"kills": {**machine, "rows": rows}}
    write_json(results / "reliability.json", {"trials": trials})
    markdown = make("reliability", results)
    assert cells(markdown)["kills"] == ["30", "1", "`kills`"]
    assert cells(markdown)["no such machine"] == ["not tried", "", "`kills`"]
    assert "On a CPU (avx2), torch 2;" in markdown


@pytest.mark.parametrize("before", ["", "\n| an old | table |\n\n"])
def test_write_fills_the_blocks_and_nothing_else(tmp_path, results, capsys, before):
    (readme := tmp_path / "README.md").write_text(
        BLOCK.format("table3_miniature", before) + BLOCK.format("crossvalidation", "")
    )
    options = ["--results", str(results), str(readme)]
    assert main(["--check", *options]) == STALE_EXIT
    assert main(["--write", *options]) == main(["--check", *options]) == 0
    text = readme.read_text()
    assert text == "".join(BLOCK.format(n, f"\n{make(n, results)}\n") for n in ("table3_miniature", "crossvalidation"))
    assert main(["--write", *options]) == 0 and readme.read_text() == text
    readme.write_text(text.replace("0.956", "0.957"))
    capsys.readouterr()
    assert main(["--check", *options]) == STALE_EXIT and str(readme) in capsys.readouterr().err


def test_names_that_the_terminal_cannot_say(tmp_path, results, monkeypatch):
    scores = json.loads((results / "crossvalidation.json").read_text())
    scores["folds"][1]["dsc"] = {"肝": {}, os.fsdecode("肾".encode("gbk")): {}}
    (results / "crossvalidation.json").write_text(json.dumps(scores))
    (readme := tmp_path / "README.md").write_text(BLOCK.format("crossvalidation", ""))
    options = ["--results", str(results), str(readme)]
    assert main(["--write", *options]) == main(["--check", *options]) == 0
    assert "(\\udcc9\\udcf6, a, b, 肝)" in readme.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main(["--results", str(results)]) == 0
    assert b"(\\udcc9\\udcf6, a, b, \\u809d)" in sys.stdout.buffer.getvalue()


def test_without_result_file_a_block_is_empty(tmp_path, capsys):
    (readme := tmp_path / "README.md").write_text(BLOCK.format("table3_miniature", ""))
    assert main(["--check", "--results", str(tmp_path), str(readme)]) == 0
    assert main(["--results", str(tmp_path)]) == 0
    assert "no result file yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "content", "message"),
    [
        (BLOCK.format("table4", ""), "{}", "no table 'table4'"),
        ("<!-- table: table3_miniature -->\n", "{}", "has no line"),
        (BLOCK.format("table3_miniature", ""), "{", "table3_miniature.json: not a result"),
        (BLOCK.format("table3_miniature", ""), '{"with_unlabelled": {}}', "table3_miniature.json: not a result"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, capsys, text, content, message):
    (tmp_path / "table3_miniature.json").write_text(content)
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert main(["--write", "--results", str(tmp_path), str(readme)]) == ERROR_EXIT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line and str(readme) in line
    assert readme.read_text() == text


def test_arms_of_other_organs_are_not_compared(tmp_path, results, capsys):
    arms = json.loads((results / "table3_miniature.json").read_text())
    del arms["with_unlabelled"]["organs"]["Liver"]
    (results / "table3_miniature.json").write_text(json.dumps(arms))
    assert main(["--results", str(results)]) == ERROR_EXIT
    assert "not of the same organs" in capsys.readouterr().err


def test_the_tables_of_this_repository_are_up_to_date():
    assert main(["--check"]) == 0


def test_the_papers_table_is_whole():
    assert list(TABLE_3) == [organ.abbreviation for organ in ORGANS]
    for column in ("with_unlabelled", "without_unlabelled"):  # the printed averages are those of the printed lines
        mean = np.mean([getattr(row, column) for row in TABLE_3.values()])
        assert mean == pytest.approx(getattr(TABLE_3_AVERAGE, column), abs=1e-4)
