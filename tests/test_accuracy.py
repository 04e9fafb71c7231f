"""The command line of accuracy: what is paired, scored, written and said."""

import csv
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from app.labels import ORGANS
from evaluation import accuracy
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


def test_csv_json_and_table(folders, capsys):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output, "--workers", 1) == 0
    header = output.read_text().splitlines()[0].split(",")
    names = [organ.abbreviation for organ in ORGANS]
    assert header == ["Name"] + [f"{name}_DSC" for name in names] + [f"{name}_NSD" for name in names]
    rows = read_csv(output)
    assert [row["Name"] for row in rows] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    for row in rows:
        theirs = organizers_scores(
            *(np.asarray(nibabel.load(folder / row["Name"]).dataobj) for folder in (pred, truth)),
            (0.75, 0.75, 2.5),
            ALL_LABELS,
        )
        for organ in ORGANS:
            cells = row[f"{organ.abbreviation}_DSC"], row[f"{organ.abbreviation}_NSD"]
            assert cells == tuple(f"{np.round(score, 4):.4f}" for score in theirs[organ.label])

    summary = json.loads(output.with_suffix(".json").read_text())
    scores = np.array(
        [[[float(row[f"{name}_{metric}"]) for metric in ("DSC", "NSD")] for name in names] for row in rows]
    )
    assert (summary["cases"], summary["missing"], summary["extra"], summary["not_annotated"]) == (3, [], [], [])
    for index, metric in enumerate(("DSC", "NSD")):
        values = scores[..., index]  # (cases, organs)
        liver, over_organs, over_cases = values[:, 0], values.mean(axis=0), values.mean(axis=1)
        for entry, expected in (
            (summary["per_organ"]["Liver"], liver),
            (summary["over_organs"], over_organs),
            (summary["over_cases"], over_cases),
        ):
            assert entry[metric] == pytest.approx({"mean": expected.mean(), "std": expected.std()}, abs=1e-6)
    printed = capsys.readouterr().out
    liver = summary["per_organ"]["Liver"]["DSC"]
    assert f"Liver         {liver['mean']:.4f} +- {liver['std']:.4f}" in printed
    assert "over organs" in printed and "over cases" in printed


@pytest.mark.parametrize(("unit", "per_mm"), [("meter", 1e-3), ("micron", 1e3)])
@pytest.mark.parametrize("both", [True, False])
def test_the_unit_of_length_changes_nothing(folders, unit, per_mm, both):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output) == 0
    in_mm = output.read_bytes()
    for folder in (pred, truth) if both else (truth,):
        for path in folder.iterdir():
            image = nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), AFFINE @ np.diag([*[per_mm] * 3, 1]))
            image.header.set_xyzt_units(unit)
            nibabel.save(image, path)
    assert run(pred, truth, "-o", output) == 0
    assert output.read_bytes() == in_mm


def test_masks_with_further_dimensions_of_size_1_are_scored(folders):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output) == 0
    flat = output.read_bytes()
    for path, more in ((pred / "a.nii.gz", (1,)), (pred / "b.nii.gz", (1, 1)), (truth / "c.nii.gz", (1,))):
        array = np.asarray(nibabel.load(path).dataobj)
        save(path, array.reshape(*array.shape, *more))
    assert run(pred, truth, "-o", output) == 0
    assert output.read_bytes() == flat


def test_hidden_files_are_no_cases(folders, capsys):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output) == 0
    written, said = (output.read_bytes(), output.with_suffix(".json").read_bytes()), capsys.readouterr()
    for folder, name in ((truth, "._a.nii.gz"), (truth, ".d.nii.gz"), (pred, "._a.nii.gz"), (pred, "._e.nii.gz")):
        (folder / name).write_bytes(b"\0\5\x16\7")  # macOS puts such beside files (AppleDouble)
    assert run(pred, truth, "-o", output) == 0
    assert (output.read_bytes(), output.with_suffix(".json").read_bytes()) == written
    assert capsys.readouterr() == said


def test_the_number_of_workers_changes_nothing(folders):
    pred, truth, output = folders
    written = []
    for workers in (1, 2, 5):
        assert run(pred, truth, "-o", output, "--workers", workers) == 0
        written.append((output.read_bytes(), output.with_suffix(".json").read_bytes()))
    assert written[0] == written[1] == written[2]


def test_missing_prediction_is_a_row_of_zeros(folders, capsys):
    pred, truth, output = folders
    (pred / "a.nii.gz").unlink()
    assert run(pred, truth, "-o", output, "--organs", "1-11,13") == 1
    assert "no prediction, scored 0: a.nii.gz" in capsys.readouterr().err
    row = read_csv(output)[0]
    assert row.pop("Name") == "a.nii.gz"
    assert (row.pop("Duodenum_DSC"), row.pop("Duodenum_NSD")) == ("", "")
    assert set(row.values()) == {"0.0000"}
    assert json.loads(output.with_suffix(".json").read_text())["missing"] == ["a.nii.gz"]


def test_all_predictions_missing(folders):
    pred, truth, output = folders
    for path in pred.iterdir():
        path.unlink()
    assert run(pred, truth, "-o", output) == 1
    assert json.loads(output.with_suffix(".json").read_text())["over_organs"]["DSC"] == {"mean": 0, "std": 0}


def test_extra_predictions_are_named(folders, capsys):
    pred, truth, output = folders
    (truth / "b.nii.gz").unlink()
    (pred / "curve.png").touch()
    assert run(pred, truth, "-o", output) == 0
    assert "predictions without a truth: b.nii.gz\n" in capsys.readouterr().err
    assert [row["Name"] for row in read_csv(output)] == ["a.nii.gz", "c.nii.gz"]


def test_organs_not_annotated_stay_empty(folders, capsys):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output, "--organs", "1-11,LK") == 0
    for row in read_csv(output):
        empty = [column for column, cell in row.items() if cell == ""]
        assert empty == ["Duodenum_DSC", "Duodenum_NSD"]
    summary = json.loads(output.with_suffix(".json").read_text())
    assert summary["not_annotated"] == ["Duodenum"] and "Duodenum" not in summary["per_organ"]
    assert len(summary["per_organ"]) == 12
    assert "not annotated, not scored: Duodenum" in capsys.readouterr().out


def test_organs_case_by_case(folders, tmp_path, capsys):
    pred, truth, output = folders
    (pred / "c.nii.gz").unlink()
    lists = {"a": "1-11,13", "b": "Liver,duodenum", "c": "1"}
    alone = {}
    for name, text in lists.items():  # each scored by itself, with its list for the whole run
        paths = [folder / f"{name}.nii.gz" for folder in (pred, truth)]
        if name != "c":
            assert run(*paths, "-o", output, "--organs", text) == 0
            (alone[f"{name}.nii.gz"],) = read_csv(output)
    table = tmp_path / "organs.tsv"
    table.write_text("scan\tsource\tannotated\n" + "".join(f"CT/{n}_0000.nii.gz\tx\t{t}\n" for n, t in lists.items()))
    capsys.readouterr()
    assert run(pred, truth, "-o", output, "--organs", table, "--workers", 2) == 1
    rows = {row["Name"]: row for row in read_csv(output)}
    assert {name: rows[name] for name in alone} == alone
    assert {column for column, cell in rows["c.nii.gz"].items() if cell == "0.0000"} == {"Liver_DSC", "Liver_NSD"}
    summary = json.loads(output.with_suffix(".json").read_text())
    counts = {organ: statistics["n"] for organ, statistics in summary["per_organ"].items()}
    assert (counts.pop("Liver"), set(counts.values())) == (3, {1}) and len(counts) == 12
    assert (summary["cases"], summary["missing"], summary["failed"]) == (3, ["c.nii.gz"], [])
    assert summary["not_annotated"] == []
    liver = [float(row["Liver_DSC"]) for row in rows.values()]
    assert summary["per_organ"]["Liver"]["DSC"]["mean"] == pytest.approx(np.mean(liver), abs=1e-6)
    cases = [
        np.mean([float(cell) for column, cell in row.items() if "DSC" in column and cell]) for row in rows.values()
    ]
    assert summary["over_cases"]["DSC"] == pytest.approx({"mean": np.mean(cases), "std": np.std(cases)}, abs=1e-6)
    out = capsys.readouterr().out
    assert all(f"{name}  DSC {mean:.4f}" in out for name, mean in zip(rows, cases, strict=True))
    assert [line.split()[-1] for line in out.splitlines() if line.startswith(("Liver", "Duodenum"))] == ["3", "1"]


def test_a_case_that_the_table_does_not_name_is_an_error(folders, tmp_path, capsys):
    pred, truth, output = folders
    table = tmp_path / "organs.tsv"
    table.write_text("case\tannotated\na\t1-3\nb\t\nother\t1\n")
    assert run(pred, truth, "-o", output, "--organs", table) == 1
    errors = capsys.readouterr().err.splitlines()
    does_not_tell = "the table of --organs does not tell which organs are annotated"
    assert errors[:2] == [f"error: {truth / name}: {does_not_tell}" for name in ("b.nii.gz", "c.nii.gz")]
    assert errors[2:] == ["error: not scored, not in the means: b.nii.gz, c.nii.gz"]
    summary = json.loads(output.with_suffix(".json").read_text())
    assert summary["cases"] == 1 and summary["failed"] == ["b.nii.gz", "c.nii.gz"] and summary["missing"] == []
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
        (np.full((24, 22, 14), 14, np.uint8), AFFINE, "a mask holds 0 to 13"),
    ],
)
def test_input_that_cannot_be_scored(folders, capsys, workers, labels, affine, message):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output) == 0
    rows = read_csv(output)
    wrong = save(pred / "b.nii.gz", labels, affine)
    assert run(pred, truth, "-o", output, "--workers", workers) == 1
    error, last = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error and str(wrong) in error
    if "geometry" in message:
        assert str(truth / "b.nii.gz") in error
    assert last == "error: not scored, not in the means: b.nii.gz"
    # the others are scored as before, the wrong one has no figures, and the means are without it
    after = read_csv(output)
    assert [after[0], after[2]] == [rows[0], rows[2]]
    assert after[1].pop("Name") == "b.nii.gz" and set(after[1].values()) == {""}
    summary = json.loads(output.with_suffix(".json").read_text())
    assert summary["failed"] == ["b.nii.gz"] and summary["cases"] == 2
    liver = np.mean([float(rows[i]["Liver_DSC"]) for i in (0, 2)])
    assert summary["per_organ"]["Liver"]["DSC"]["mean"] == pytest.approx(liver, abs=1e-6)


def test_nothing_that_can_be_scored(folders, capsys):
    pred, truth, output = folders
    for path in pred.iterdir():
        path.write_text("not a mask")
    assert run(pred, truth, "-o", output) == 2
    assert capsys.readouterr().err.count("error: ") == 3
    assert not output.exists()


def test_paths_that_are_wrong(folders, tmp_path, capsys):
    pred, truth, output = folders
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((pred, tmp_path / "nowhere"), "no such file or folder"),
        ((pred, tmp_path / "empty"), "no .nii.gz file in this folder"),
        ((pred, truth / "a.nii.gz"), "give two folders or two files"),
    ):
        assert run(*arguments, "-o", output) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "scores.txt"], "must end in .csv"),
        (["-o", "scores.csv", "--workers", "0"], "at least 1"),
        (["-o", "scores.csv", "--organs", "0"], "no organ '0'"),
        (["-o", "scores.csv", "--organs", "5-14"], "no organ '5-14'"),
        (["-o", "scores.csv", "--organs", "Liver,Colon"], "no organ 'colon'; there are 1 to 13: Liver, RK"),
        (["-o", "scores.csv", "--organs", ""], "no organ ''"),
        (["-o", "scores.csv", "--organs", "no.tsv"], "no.tsv: cannot be read"),
    ],
)
def test_options_that_are_wrong(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        run("pred", "truth", *arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_as_a_program(folders):
    pred, truth, output = folders
    (pred / "c.nii.gz").unlink()
    command = [sys.executable, "-m", "evaluation.accuracy", pred, truth, "-o", output, "--workers", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and "scored 0: c.nii.gz" in done.stderr and "over organs" in done.stdout


def test_as_many_workers_as_cpus_may_be_used(monkeypatch):
    monkeypatch.setattr(accuracy, "usable_cpus", lambda: 3)
    assert accuracy.parse_arguments(["pred", "truth", "-o", "scores.csv"]).workers == 3


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
    assert json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["extra"] == [NAMES[1]]


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


def small_files_only():
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))


def test_on_a_full_disk_the_scores_of_before_stand(folders):
    pred, truth, output = folders
    assert run(pred, truth, "-o", output) == 0
    before = output.read_bytes()
    (truth / "a.nii.gz").unlink()
    command = [sys.executable, "-m", "evaluation.accuracy", pred, truth, "-o", output, "--workers", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, preexec_fn=small_files_only)
    assert done.returncode == 2 and done.stderr == f"error: [Errno 27] File too large: '{output}'\n"
    assert output.read_bytes() == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["scores.csv", "scores.json"]
