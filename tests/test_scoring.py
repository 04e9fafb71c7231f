"""Scores of one case by the organizers' rules: their procedure, drawn, random and real masks."""

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.labels import ORGANS
from evaluation.organs import ALL_LABELS
from evaluation.scoring import TOLERANCES_MM, Score, dice_coefficient, score_case, score_files
from tests.label_maps import body, save
from tests.nifti_files import CT_DIR
from tests.surface_oracle import organizers_scores

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


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_third_array_axis_counts_in_any_orientation(tmp_path, axes):
    affine = np.diag([0.75, 1.5, 2.5, 1])[[*axes, 3]]
    truth = body(1)
    prediction = np.roll(truth, (1, 0, 1), (0, 1, 2))
    ours = score_files(save(tmp_path / "p.nii.gz", prediction, affine), save(tmp_path / "t.nii.gz", truth, affine))
    theirs = organizers_scores(prediction, truth, (0.75, 1.5, 2.5), ALL_LABELS)
    assert ours == {label: pytest.approx(np.round(scores, 4)) for label, scores in theirs.items()}


@pytest.mark.parametrize("change", ["moved", "grown"])
def test_a_real_mask(tmp_path, change):
    """Of 3 mm voxels."""
    path = CT_DIR / "labelled/labels/totalseg_example.nii.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    image = nibabel.load(path)
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
