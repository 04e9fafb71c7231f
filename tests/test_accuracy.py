"""Scores by the organizers' rules: their procedure, drawn, random and real masks, and the command line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.labels import ORGANS
from evaluation.accuracy import (
    ALL_LABELS,
    TOLERANCES_MM,
    Score,
    dice_coefficient,
    main,
    parse_organs,
    score_case,
    score_files,
    summarise,
)
from evaluation.paper import TABLE_3, TABLE_3_AVERAGE
from tests.surface_oracle import organizers_scores, slow_dice

REPOSITORY = Path(__file__).resolve().parents[1]
CT_DIR = Path(os.environ.get("FLARE22_CT_DIR", REPOSITORY.parent / "shared" / "ct"))
AFFINE = np.diag([0.75, 0.75, 2.5, 1])
AORTA = 5


def save(path, labels, affine=AFFINE):
    """Write (x, y, z) labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def body(seed, shape=(24, 22, 14)):
    """(x, y, z) labels: 13 boxes, each at least three slices high."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for label in ALL_LABELS:
        lower = random.integers(0, np.array(shape) - 7)
        labels[tuple(slice(start, start + random.integers(3, 8)) for start in lower)] = label
    return labels


# --- rules ---


def draw(*rows):
    return np.array([[character == "#" for character in row] for row in rows])[None]


def test_dice_drawn_by_hand():
    truth = draw("......", ".####.", ".####.", "......")  # 8 voxels
    prediction = draw("......", "......", "..####", "..####")  # 8, of which 3 in the truth: 2 * 3 / (8 + 8)
    assert dice_coefficient(prediction, truth) == 0.375
    assert dice_coefficient(truth, truth) == 1
    assert dice_coefficient(truth, ~truth) == 0
    assert np.isnan(dice_coefficient(truth & False, truth & False))
    with pytest.raises(ValueError, match="bool"):
        dice_coefficient(prediction.astype(int), truth)


def test_empty_masks():
    organ = np.zeros((4, 4, 4), np.uint8)
    organ[1:3, 1:3, 1:3] = 1
    nothing = np.zeros_like(organ)
    assert score_case(nothing, nothing, (1, 1, 1), [1]) == {1: Score(1, 1)}
    assert score_case(organ, nothing, (1, 1, 1), [1]) == {1: Score(0, 0)}
    assert score_case(nothing, organ, (1, 1, 1), [1]) == {1: Score(0, 0)}
    assert score_case(organ, organ, (1, 1, 1), [1]) == {1: Score(1, 1)}


def test_low_dice_has_no_nsd():
    # 10 voxels each in a row, 1 in common: DSC 0.1, although within 5 mm nearly everything agrees.
    truth, prediction = np.zeros((3, 3, 19), np.uint8), np.zeros((3, 3, 19), np.uint8)
    truth[1, 1, :10] = prediction[1, 1, 9:] = 1
    assert score_case(prediction, truth, (1, 1, 1), [1])[1] == (0.1, 0)
    dsc, nsd = score_case(prediction, truth, (1, 1, 1), [1], minimum_dsc=0)[1]
    assert dsc == 0.1 and 0.5 < nsd < 1
    assert score_case(prediction, truth, (1, 1, 1), [1], minimum_dsc=0.1)[1].nsd == nsd  # "below", not "at"


@pytest.mark.parametrize("label", ALL_LABELS)
def test_slices_scored(label):
    # The truth holds slices 2 to 5, the prediction all of 0 to 9 and on slice 5 nothing right.
    truth, prediction = np.zeros((10, 6, 6), np.uint8), np.zeros((10, 6, 6), np.uint8)
    truth[2:6, 1:4, 1:4] = prediction[:, 1:4, 1:4] = label
    prediction[5] = 0
    score = score_case(prediction, truth, (2.5, 1, 1), [label])[label]
    if label in (5, 6, 10):  # slices 2, 3, 4 only, where all agree
        assert score == (1, 1)
    else:  # 3 slices in common, of 9 and 4
        assert score.dsc == pytest.approx(2 * 3 / (9 + 4)) and score.nsd < 1


@pytest.mark.parametrize("label", [5, 6, 10])
def test_truth_on_one_slice(label):
    truth, prediction = np.zeros((5, 6, 6), np.uint8), np.zeros((5, 6, 6), np.uint8)
    truth[2, 1:3, 1:3] = label  # 4 voxels
    prediction[1:4, 1:3, 1:4] = label  # 6 on that slice, 4 of them right
    score = score_case(prediction, truth, (2.5, 1, 1), [label])[label]
    assert score.dsc == pytest.approx(2 * 4 / (6 + 4))
    assert score.nsd == pytest.approx(1)  # one column off: 1 mm


def test_tolerances_name_every_organ():
    by_abbreviation = {organ.abbreviation: TOLERANCES_MM[organ.label] for organ in ORGANS}
    expected = (
        "Liver 5 RK 3 Spleen 3 Pancreas 5 Aorta 2 IVC 2 RAG 2 LAG 2 Gallbladder 2 Esophagus 3 Stomach 5 Duodenum 7 LK 3"
    )
    assert " ".join(f"{name} {mm}" for name, mm in by_abbreviation.items()) == expected
    assert len(TOLERANCES_MM) == 13


def test_wrong_arrays():
    labels = np.zeros((3, 3, 3), np.uint8)
    for prediction in (labels.astype(int), labels[0], labels[:2]):
        with pytest.raises(ValueError, match="must be"):
            score_case(prediction, labels, (1, 1, 1))
    with pytest.raises(ValueError, match="no organ has label 14"):
        score_case(labels, labels, (1, 1, 1), [1, 14])


# --- against the organizers' procedure ---


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    kept=st.sampled_from([0, 0.02, 0.5, 1]),
    step=st.tuples(*[st.integers(-3, 3)] * 3),
    minimum_dsc=st.sampled_from([0, 0.2]),
    spacing_mm=st.tuples(*[st.floats(0.5, 5, width=32)] * 3),
)
def test_equals_the_organizers_procedure(seeds, kept, step, minimum_dsc, spacing_mm):
    # A prediction like the truth but moved, another one, or a scatter of single voxels.
    random = np.random.default_rng(seeds[0])
    truth = body(seeds[0])
    prediction = np.roll(truth, step, (0, 1, 2)) if kept == 1 else body(seeds[1]) * (random.random(truth.shape) < kept)
    prediction = prediction.astype(np.uint8)
    heights = {label: len(np.unique(np.where(truth == label)[2])) for label in ALL_LABELS}  # boxes overlap
    labels = [label for label in ALL_LABELS if label not in (5, 6, 10) or heights[label] != 1]
    ours = score_case(prediction.T, truth.T, spacing_mm[::-1], labels, minimum_dsc)
    theirs = organizers_scores(prediction, truth, spacing_mm, labels, minimum_dsc)
    for label in labels:
        assert ours[label] == pytest.approx(theirs[label], abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.01, 0.5, 1]))
def test_dice_equals_sets_of_voxels(seed, share):
    random = np.random.default_rng(seed)
    prediction, truth = random.random((2, 4, 5, 6)) < share
    truth[0, 0, 0] = True
    assert dice_coefficient(prediction, truth) == slow_dice(prediction, truth)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_third_array_axis_counts_in_any_orientation(tmp_path, axes):
    affine = np.diag([0.75, 1.5, 2.5, 1])[[*axes, 3]]
    truth = body(1)
    prediction = np.roll(truth, (1, 0, 1), (0, 1, 2))
    ours = score_files(save(tmp_path / "p.nii.gz", prediction, affine), save(tmp_path / "t.nii.gz", truth, affine))
    theirs = organizers_scores(prediction, truth, (0.75, 1.5, 2.5), ALL_LABELS)
    assert ours == {label: pytest.approx(np.round(scores, 4)) for label, scores in theirs.items()}


def real_masks():
    """One with 5 mm slices, in the organizers' orientation but for x; one of 3 mm voxels."""
    names = ("label_maps/amos_0013.nii.gz", "labelled/labels/totalseg_example.nii.gz")
    return [CT_DIR / name for name in names]


@pytest.mark.parametrize("path", real_masks(), ids=lambda path: path.name)
@pytest.mark.parametrize("change", ["moved", "grown"])
def test_real_masks(tmp_path, path, change):
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    image = nibabel.load(path)
    if image.shape[0] > 256:
        image = image.slicer[::2, ::2]  # a quarter of the oracle's time
    truth = np.asarray(image.dataobj).astype(np.uint8)
    if change == "moved":
        prediction = np.roll(truth, (3, -2, 1), (0, 1, 2))
    else:
        prediction = np.maximum.reduce([np.roll(truth, step, axis) for axis in (0, 1) for step in (0, 1)])
    ours = score_files(
        save(tmp_path / "p.nii.gz", prediction, image.affine), save(tmp_path / "t.nii.gz", truth, image.affine)
    )
    theirs = organizers_scores(prediction, truth, image.header.get_zooms(), ALL_LABELS)
    for label in ALL_LABELS:
        assert tuple(ours[label]) == tuple(float(np.round(score, 4)) for score in theirs[label]), label


# --- files and command line ---


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
    ],
)
def test_options_that_are_wrong(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        run("pred", "truth", *arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_organs_by_number_abbreviation_and_name():
    assert parse_organs("1-3, lk,Right Adrenal Gland") == (1, 2, 3, 7, 13)


def test_as_a_program(folders):
    pred, truth, output = folders
    (pred / "c.nii.gz").unlink()
    command = [sys.executable, "-m", "evaluation.accuracy", pred, truth, "-o", output, "--workers", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and "scored 0: c.nii.gz" in done.stderr and "over organs" in done.stdout


def test_summary_of_one_case_has_no_spread():
    summary = summarise({"a": {1: Score(0.5, 0.25), 2: Score(1, 0.75)}}, [1, 2])
    assert summary["per_organ"]["RK"]["DSC"] == {"mean": 1, "std": 0}
    assert summary["over_cases"]["NSD"] == {"mean": 0.5, "std": 0}
    assert summary["over_organs"]["NSD"] == {"mean": 0.5, "std": 0.25}


def test_the_papers_table_is_whole():
    assert list(TABLE_3) == [organ.abbreviation for organ in ORGANS]
    for column in ("with_unlabelled", "without_unlabelled"):  # the printed averages are those of the printed lines
        mean = np.mean([getattr(row, column) for row in TABLE_3.values()])
        assert mean == pytest.approx(getattr(TABLE_3_AVERAGE, column), abs=1e-4)
