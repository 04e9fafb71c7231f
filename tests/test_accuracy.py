"""The command line of accuracy: what is paired, scored, written and said."""

import csv
import io
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest

from app.labels import ORGANS
from evaluation.accuracy import main
from evaluation.organs import ALL_LABELS
from tests.label_maps import AFFINE, body, save
from tests.surface_oracle import organizers_scores

REPOSITORY = Path(__file__).resolve().parents[1]


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folders(tmp_path):
    """Three cases, the predictions a little off."""
    for seed, name in enumerate(["b.nii.gz", "a.nii.gz", "c.nii.gz"]):
        save(tmp_path / "truth" / name, body(seed))
        save(tmp_path / "pred" / name, np.roll(body(seed), (1, seed, 0), (0, 1, 2)))
    return tmp_path / "pred", tmp_path / "truth", tmp_path / "out" / "scores.csv"


def run(*arguments):
    return main([str(argument) for argument in arguments])


def summary_of(output):
    return json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))


def test_csv_json_and_table(folders, capsys):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output, "--workers", 1) == 0
    header = output.read_text().splitlines()[0].split(",")
    names = [organ.abbreviation for organ in ORGANS]
    assert header == ["Name"] + [f"{name}_DSC" for name in names] + [f"{name}_NSD" for name in names]
    rows = read_csv(output)
    assert [row["Name"] for row in rows] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    scores = []
    for row in rows:
        masks = (np.asarray(nibabel.load(folder / row["Name"]).dataobj) for folder in (pred, truth))
        expected = organizers_scores(*masks, (0.75, 0.75, 2.5), ALL_LABELS)
        scores.append([[round(score, 4) for score in expected[label]] for label in ALL_LABELS])
        assert [[float(row[f"{name}_{metric}"]) for metric in ("DSC", "NSD")] for name in names] == scores[-1]
    summary = summary_of(output)
    assert (summary["cases"], summary["missing"], summary["extra"], summary["not_annotated"]) == (3, [], [], [])
    mean_dsc, mean_nsd = np.mean(scores, axis=(0, 1))
    assert summary["over_organs"]["DSC"]["mean"] == pytest.approx(mean_dsc, abs=1e-6)
    assert summary["over_cases"]["NSD"]["mean"] == pytest.approx(mean_nsd, abs=1e-6)
    liver, printed = summary["per_organ"]["Liver"]["DSC"], capsys.readouterr().out
    assert f"Liver         {liver['mean']:.4f} +- {liver['std']:.4f}" in printed
    assert "over organs" in printed and "over cases" in printed

    written = output.read_bytes(), summary
    for workers in (2, 5):
        assert run(pred, truth, "-o", output, "--workers", workers) == 0
        assert (output.read_bytes(), summary_of(output)) == written


def test_hidden_files_are_no_cases(folders, capsys):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output) == 0
    written, said = (output.read_bytes(), summary_of(output)), capsys.readouterr()
    for folder, name in ((truth, "._a.nii.gz"), (truth, ".d.nii.gz"), (pred, "._a.nii.gz"), (pred, "._e.nii.gz")):
        (folder / name).write_bytes(b"\0\5\x16\7")  # macOS puts such beside files (AppleDouble)
    assert run(pred, truth, "-o", output) == 0
    assert (output.read_bytes(), summary_of(output)) == written and capsys.readouterr() == said


def test_missing_predictions_score_zero(folders, capsys):
    pred, truth, output = folders
    (pred / "a.nii.gz").unlink()
    assert run(pred, truth, "-o", output, "--organs", "1-11,LK") == 1
    said = capsys.readouterr()
    assert "no prediction, scored 0: a.nii.gz" in said.err and "not annotated, not scored: Duodenum" in said.out
    rows = read_csv(output)
    assert {row.pop("Duodenum_DSC") + row.pop("Duodenum_NSD") for row in rows} == {""}
    assert rows[0].pop("Name") == "a.nii.gz" and set(rows[0].values()) == {"0.0000"}
    assert "" not in rows[1].values()
    summary = summary_of(output)
    assert (summary["missing"], summary["not_annotated"]) == (["a.nii.gz"], ["Duodenum"])
    assert len(summary["per_organ"]) == 12 and "Duodenum" not in summary["per_organ"]
    for path in pred.iterdir():
        path.unlink()
    assert run(pred, truth, "-o", output) == 1
    assert summary_of(output)["over_organs"]["DSC"] == {"mean": 0, "std": 0}


def test_extra_predictions_are_named(folders, capsys):
    pred, truth, output = folders
    (truth / "b.nii.gz").unlink()
    (pred / "curve.png").touch()
    assert run(pred, truth, "-o", output) == 0
    assert "predictions without a truth: b.nii.gz\n" in capsys.readouterr().err
    assert [row["Name"] for row in read_csv(output)] == ["a.nii.gz", "c.nii.gz"]


def test_organs_case_by_case(folders, tmp_path, capsys):
    pred, truth, output = folders
    (pred / "c.nii.gz").unlink()
    lists = {"a": "1-11,13", "b": "Liver,duodenum", "c": "1"}
    alone = []
    for name in ("a", "b"):  # each scored by itself, with its list for the whole run
        paths = [folder / f"{name}.nii.gz" for folder in (pred, truth)]
        assert run(*paths, "-o", output, "--organs", lists[name]) == 0
        alone += read_csv(output)
    table = tmp_path / "organs.tsv"
    table.write_text("scan\tsource\tannotated\n" + "".join(f"CT/{n}_0000.nii.gz\tx\t{t}\n" for n, t in lists.items()))
    capsys.readouterr()
    assert run(pred, truth, "-o", output, "--organs", table, "--workers", 2) == 1
    *rows, last = read_csv(output)
    assert rows == alone
    assert {column for column, cell in last.items() if cell == "0.0000"} == {"Liver_DSC", "Liver_NSD"}
    summary = summary_of(output)
    counts = {organ: statistics["n"] for organ, statistics in summary["per_organ"].items()}
    assert (counts.pop("Liver"), set(counts.values())) == (3, {1}) and len(counts) == 12
    assert (summary["missing"], summary["failed"], summary["not_annotated"]) == (["c.nii.gz"], [], [])
    out = capsys.readouterr().out
    for row in (*rows, last):
        dsc = [float(cell) for column, cell in row.items() if "DSC" in column and cell]
        assert f"{row['Name']}  DSC {np.mean(dsc):.4f}" in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith(("Liver", "Duodenum"))] == ["3", "1"]


def test_a_case_that_the_table_does_not_name_is_an_error(folders, tmp_path, capsys):
    pred, truth, output = folders
    table = tmp_path / "organs.tsv"
    table.write_text("case\tannotated\na\t1-3\nb\t\nother\t1\n")
    assert run(pred, truth, "-o", output, "--organs", table) == 1
    does_not_tell = "the table of --organs does not tell which organs are annotated"
    assert capsys.readouterr().err.splitlines() == [
        *(f"error: {truth / name}: {does_not_tell}" for name in ("b.nii.gz", "c.nii.gz")),
        "error: not scored, not in the means: b.nii.gz, c.nii.gz",
    ]
    summary = summary_of(output)
    assert (summary["cases"], summary["failed"], summary["missing"]) == (1, ["b.nii.gz", "c.nii.gz"], [])
    assert len(summary["not_annotated"]) == 10


def test_single_files(folders):
    pred, truth, output = folders
    (pred / "a.nii.gz").rename(pred / "other_name.nii.gz")
    assert run(pred / "other_name.nii.gz", truth / "a.nii.gz", "-o", output) == 0
    assert [row["Name"] for row in read_csv(output)] == ["a.nii.gz"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("labels", "affine", "message"),
    [
        (body(0), np.diag([0.75, 0.75, 3, 1]), "differ in geometry"),
        (body(0)[1:], AFFINE, "differ in geometry"),
        (np.full((24, 22, 14), -1000, np.int16), AFFINE, "is this a CT?"),
    ],
)
def test_input_that_cannot_be_scored(folders, capsys, workers, labels, affine, message):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output) == 0
    before = read_csv(output)
    wrong = save(pred / "b.nii.gz", labels, affine)
    assert run(pred, truth, "-o", output, "--workers", workers) == 1
    error, last = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error and str(wrong) in error
    assert "geometry" not in message or str(truth / "b.nii.gz") in error
    assert last == "error: not scored, not in the means: b.nii.gz"
    # the others are scored as before, the wrong one has no figures, and the means are without it
    a, b, c = read_csv(output)
    assert [a, c] == [before[0], before[2]]
    assert b.pop("Name") == "b.nii.gz" and set(b.values()) == {""}
    summary = summary_of(output)
    assert summary["failed"] == ["b.nii.gz"] and summary["per_organ"]["Liver"]["n"] == 2


def test_nothing_that_can_be_scored(folders, tmp_path, capsys):
    pred, truth, output = folders
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((pred, tmp_path / "nowhere"), "no such file or folder"),
        ((pred, tmp_path / "empty"), "no .nii.gz file in this folder"),
        ((pred, truth / "a.nii.gz"), "give two folders or two files"),
    ):
        assert run(*arguments, "-o", output) == 2
        assert message in capsys.readouterr().err
    for path in pred.iterdir():
        path.write_text("not a mask")
    assert run(pred, truth, "-o", output) == 2
    assert capsys.readouterr().err.count("error: ") == 3
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "scores.txt"], "must end in .csv"),
        (["-o", "scores.csv", "--workers", "0"], "at least 1"),
        (["-o", "scores.csv", "--organs", "Liver,Colon"], "no organ 'colon'; there are 1 to 13: Liver, RK"),
        (["-o", "scores.csv", "--organs", "no.tsv"], "no.tsv: cannot be read"),
    ],
)
def test_options_that_are_wrong(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        run("pred", "truth", *arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


# --- names and disks ---

NAMES = ["肝.nii.gz", os.fsdecode("肾.nii.gz".encode("gbk")), "a\nb\x1b[2J.nii.gz"]


@pytest.fixture
def odd_names(folders):
    for folder in folders[:2]:
        for name, odd in zip("abc", NAMES, strict=True):
            try:
                (folder / f"{name}.nii.gz").rename(folder / odd)
            except OSError:
                pytest.skip("this file system takes no such names")
    return folders


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "utf-8"])
def test_names_that_the_terminal_cannot_say(odd_names, monkeypatch, encoding):
    pred, truth, output = odd_names
    stdout = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run(pred, truth, "-o", output) == 0
    lines = stdout.buffer.getvalue().decode(encoding).splitlines()
    liver = "\\u809d" if encoding in ("ascii", "cp1252") else "肝"
    shown = [line.partition("  ")[0] for line in lines[:3]]
    assert shown == ["a\\nb\\x1b[2J.nii.gz", f"{liver}.nii.gz", "\\udcc9\\udcf6.nii.gz"]
    text = output.read_bytes().decode("utf-8")
    assert "\n肝.nii.gz," in text and "\n\\udcc9\\udcf6.nii.gz," in text and text.count("\n") == 5
    (truth / NAMES[1]).unlink()
    assert run(pred, truth, "-o", output) == 0
    assert summary_of(output)["extra"] == [NAMES[1]]


def test_names_that_the_locale_cannot_say(odd_names):
    pred, truth, output = odd_names
    (pred / NAMES[0]).write_bytes(b"no mask")
    (pred / NAMES[1]).unlink()
    command = [sys.executable, "-m", "evaluation.accuracy", pred, truth, "-o", output, "--workers", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1 and done.stdout.startswith(b"a\\nb\\x1b[2J.nii.gz  DSC")
    first, *rest = done.stderr.decode("ascii").splitlines()
    assert first.startswith("error: ") and "\\u809d.nii.gz: cannot be read" in first
    assert rest == [
        "error: no prediction, scored 0: \\udcc9\\udcf6.nii.gz",
        "error: not scored, not in the means: \\u809d.nii.gz",
    ]


def test_on_a_full_disk_the_scores_of_before_stand(folders):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output) == 0
    before = output.read_bytes()
    (truth / "a.nii.gz").unlink()
    command = [sys.executable, "-m", "evaluation.accuracy", pred, truth, "-o", output, "--workers", "1"]
    small_files = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (400, 400))
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, preexec_fn=small_files)
    assert done.returncode == 2 and done.stderr == f"error: [Errno 27] File too large: '{output}'\n"
    assert output.read_bytes() == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["scores.csv", "scores.json"]
