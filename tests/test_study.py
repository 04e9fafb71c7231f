"""Tables from result files: numbers are looked up in what evaluation.accuracy wrote and in the paper's text."""

import json

import nibabel
import numpy as np
import pytest

from evaluation import accuracy, study
from evaluation.paper import TABLE_3, TABLE_3_AVERAGE

BLOCK = "# Title\n\n<!-- table: {} -->\n{}<!-- end -->\n\nthe rest\n"


@pytest.fixture
def result(tmp_path):
    """What evaluation.accuracy writes, of two small cases without a duodenum."""
    random = np.random.default_rng(0)
    for case in ("a", "b"):
        truth = random.integers(0, 14, (6, 6, 6)).astype(np.uint8).repeat(3, 0).repeat(3, 1)
        prediction = np.where(random.random(truth.shape) < 0.2, 0, truth)
        for folder, labels in (("truth", truth), ("pred", prediction)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), np.eye(4)), tmp_path / folder / f"{case}.nii.gz")
    folders = [str(tmp_path / "pred"), str(tmp_path / "truth")]
    assert accuracy.main([*folders, "-o", str(tmp_path / "s.csv"), "--organs", "1-11,13", "--workers", "1"]) == 0
    return json.loads((tmp_path / "s.json").read_text())


@pytest.fixture
def results(tmp_path, result):
    folder = tmp_path / "results"
    folder.mkdir()
    worse = json.loads(json.dumps(result))
    for statistics in [*worse["per_organ"].values(), worse["over_organs"]]:
        statistics["DSC"]["mean"] /= 2
    arms = {"setting": "Five folds.", "with_unlabelled": result, "without_unlabelled": worse}
    (folder / "crossvalidation.json").write_text(json.dumps({"setting": "Five folds.", **result}))
    (folder / "table3.json").write_text(json.dumps(arms))
    return folder


def cells(markdown):
    """{first cell: the others} of a Markdown table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def test_table_3_holds_our_results_beside_the_papers(results, result):
    table = cells(study.make("table3", results))
    assert table["Organ"] == ["ours (w/ un)", "ours (w/o un)", "paper (w/ un)", "paper (w/o un)"]
    assert len(table) == 2 + 12 + 1 and "Duodenum" not in table
    for organ, statistics in result["per_organ"].items():
        dsc = statistics["DSC"]["mean"]
        assert [float(cell) for cell in table[organ]] == pytest.approx([dsc, dsc / 2, *TABLE_3[organ]], abs=5e-5)
    # Of 13 organs the duodenum is missing: it leaves the paper's averages too.
    paper = [(13 * mean - TABLE_3["Duodenum"][k]) / 12 for k, mean in enumerate(TABLE_3_AVERAGE)]
    dsc = result["over_organs"]["DSC"]["mean"]
    assert [float(cell) for cell in table["**Average**"]] == pytest.approx([dsc, dsc / 2, *paper], abs=1e-4)
    assert "not annotated: duodenum" in study.make("table3", results)


def test_cross_validation_table(results, result):
    markdown = study.make("crossvalidation", results)
    statistics = result["per_organ"]["Spleen"]
    assert cells(markdown)["Spleen"] == [
        *(f"{statistics[metric]['mean']:.4f} ± {statistics[metric]['std']:.4f}" for metric in ("DSC", "NSD")), "0.9208",
    ]  # fmt: skip
    assert "Five folds." in markdown and "2 cases" in markdown


@pytest.mark.parametrize("before", ["", "\n| an old | table |\n\n"])
def test_write_fills_the_blocks_and_nothing_else(tmp_path, results, before):
    readme = tmp_path / "README.md"
    readme.write_text(BLOCK.format("table3", before) + BLOCK.format("crossvalidation", ""))
    options = ["--results", str(results), str(readme)]
    assert study.main(["--check", *options]) == study.STALE_EXIT
    assert study.main(["--write", *options]) == 0
    text = readme.read_text()
    blocks = [BLOCK.format(name, f"\n{study.make(name, results)}\n") for name in ("table3", "crossvalidation")]
    assert text == "".join(blocks)
    assert study.main(["--check", *options]) == 0
    assert study.main(["--write", *options]) == 0 and readme.read_text() == text


def test_check_notices_one_digit(tmp_path, results, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(BLOCK.format("table3", ""))
    options = ["--results", str(results), str(readme)]
    study.main(["--write", *options])
    readme.write_text(readme.read_text().replace("0.9559", "0.9560"))
    assert study.main(["--check", *options]) == 1
    assert str(readme) in capsys.readouterr().err


def test_without_result_file_a_block_is_empty(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(BLOCK.format("table3", ""))
    assert study.main(["--check", "--results", str(tmp_path), str(readme)]) == 0
    assert study.main(["--results", str(tmp_path)]) == 0
    assert "no result file yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "content", "message"),
    [
        (BLOCK.format("table4", ""), "{}", "no table 'table4'"),
        ("<!-- table: table3 -->\n", "{}", "has no line"),
        (BLOCK.format("table3", ""), "{", "table3.json: not a result"),
        (BLOCK.format("table3", ""), '{"with_unlabelled": {}}', "table3.json: not a result"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, capsys, text, content, message):
    (tmp_path / "table3.json").write_text(content)
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert study.main(["--write", "--results", str(tmp_path), str(readme)]) == study.ERROR_EXIT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line and str(readme) in line
    assert readme.read_text() == text


def test_arms_of_other_cases_are_not_compared(tmp_path, results, capsys):
    arms = json.loads((results / "table3.json").read_text())
    arms["with_unlabelled"]["cases"] = 3
    (results / "table3.json").write_text(json.dumps(arms))
    assert study.main(["--results", str(results)]) == study.ERROR_EXIT
    assert "not of the same cases" in capsys.readouterr().err


def test_the_tables_of_this_repository_are_up_to_date():
    assert study.main(["--check"]) == 0
