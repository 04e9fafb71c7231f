"""What a mask is worth: a patient built of boxes, in which each rule finds its fault and no other; real scans."""

import numpy as np
import pytest

from app.labels import ORGANS
from app.measure import measure_organs
from app.quality import IMPLAUSIBLE, LOOK, OK, Quality, assess
from app.volume import read_volume
from evaluation.masks import read_mask
from tests.nifti_files import CT_DIR

LABEL = {organ.name: organ.label for organ in ORGANS}
SPACING_MM = (5.0, 4.0, 4.0)
SHAPE = (60, 60, 100)  # (z, y, x): 300 mm long, the body 216 x 320 mm
BOXES = {  # name: first and last + 1 of z, y and x; the patient's right is at high x
    "liver": (22, 45, 22, 48, 58, 84),
    "right kidney": (8, 28, 12, 22, 62, 72),
    "left kidney": (10, 30, 12, 22, 28, 38),
    "spleen": (26, 42, 12, 24, 14, 26),
    "pancreas": (22, 28, 28, 34, 34, 57),
    "aorta": (0, 60, 15, 20, 44, 49),
    "inferior vena cava": (0, 46, 15, 20, 52, 57),
    "right adrenal gland": (29, 33, 18, 21, 58, 62),
    "left adrenal gland": (31, 35, 18, 21, 38, 42),
    "gallbladder": (14, 22, 40, 46, 60, 68),
    "esophagus": (44, 60, 21, 24, 47, 50),
    "stomach": (28, 42, 30, 46, 20, 34),
    "duodenum": (14, 22, 24, 30, 50, 58),
}


def box(name):
    z0, z1, y0, y1, x0, x1 = BOXES[name]
    return np.s_[z0:z1, y0:y1, x0:x1]


@pytest.fixture
def patient():
    """(labels, HU) of a body of fat in air, with a spine, lungs from z = 40 on, and 13 organs of healthy size."""
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    radius = np.hypot((y - 29.5) / 27, (x - 49.5) / 40)
    hu = np.broadcast_to(np.where(radius < 1, -90, -1000), SHAPE).astype(np.int16)
    hu[40:, radius < 0.8] = -800
    hu[:, 5:14, 45:54] = 400
    labels = np.zeros(SHAPE, np.uint8)
    for name, label in LABEL.items():
        labels[box(name)] = label
    hu[labels > 0] = 60
    return labels, hu


def judge(labels, hu, spacing_mm=SPACING_MM) -> Quality:
    return assess(labels, hu, spacing_mm, measure_organs(labels, hu, float(np.prod(spacing_mm)) / 1000))


def only(labels, *names):
    return np.where(np.isin(labels, [LABEL[name] for name in names]), labels, 0)


def without(labels, *names):
    return np.where(np.isin(labels, [LABEL[name] for name in names]), 0, labels)


def test_a_patient(patient):
    assert judge(*patient) == (OK, ())


@pytest.mark.parametrize("finer", [(2, 1, 1), (1, 3, 2), (5, 4, 4)])
def test_the_voxels_size_changes_nothing(patient, finer):
    labels, hu = patient
    labels, hu = labels[8:, :-8], hu[8:, :-8]  # something to say
    fine = [np.repeat(np.repeat(np.repeat(a, finer[0], 0), finer[1], 1), finer[2], 2) for a in (labels, hu)]
    expected = judge(labels, hu)
    assert expected.reasons
    assert judge(*fine, tuple(mm / n for mm, n in zip(SPACING_MM, finer, strict=True))) == expected


# Is there an abdomen?


def test_an_empty_mask_is_never_silent(patient):
    labels, hu = patient
    assert judge(np.zeros_like(labels), hu) == (LOOK, ("no organ found",))


def test_vessels_alone(patient):
    labels, hu = patient
    assert judge(only(labels, "aorta", "esophagus"), hu) == (LOOK, ("no liver, kidney or spleen found",))


@pytest.mark.parametrize("empty", [False, True])
def test_a_head(patient, empty):
    labels, hu = patient
    labels = np.zeros_like(labels) if empty else only(labels, "liver")
    hu[:, :, :35] = hu[:, :, 65:] = -1000  # 120 mm wide
    verdict, reasons = judge(labels, hu)
    assert verdict == IMPLAUSIBLE
    assert reasons[0].startswith("no abdomen in view: the body's cross-section is ")


def test_where_organs_are_counts_and_not_the_rest_of_a_long_scan(patient):
    labels, hu = patient
    legs = np.full((100, *SHAPE[1:]), -1000, np.int16)
    legs[:, 20:40, 20:40] = 50
    labels, hu = np.concatenate([np.zeros(legs.shape, np.uint8), labels]), np.concatenate([legs, hu])
    assert judge(labels, hu) == (OK, ())
    assert judge(only(labels, "spleen"), hu) == (OK, ())


def test_a_body_that_fills_the_slice(patient):
    labels, hu = (array[:, 6:54, 14:86] for array in patient)
    assert judge(only(labels, "spleen"), hu).verdict == OK


def test_a_table_is_no_body(patient):
    labels, hu = patient
    hu[:, :, :35] = hu[:, :, 65:] = -1000
    hu[:, 2] = hu[:, 57] = hu[:, :, 10] = hu[:, :, 90] = -150  # 4 mm of padding all around
    assert "no abdomen in view" in judge(only(labels, "liver"), hu).reasons[0]


def test_two_legs_are_not_one_trunk(patient):
    labels, hu = patient
    hu[...] = -1000
    hu[:, 15:45, 15:45] = hu[:, 15:45, 55:85] = 50  # 144 cm2 each
    assert "is 144 cm2" in judge(only(labels, "spleen"), hu).reasons[0]


def test_organs_in_order_are_believed_in_a_slim_body(patient):
    labels, hu = patient
    small = tuple(0.75 * mm for mm in SPACING_MM)  # 300 cm2
    assert judge(labels, hu, small) == (OK, ())
    assert judge(only(labels, "liver"), hu, small).verdict == IMPLAUSIBLE


def test_a_phantom_has_no_spine(patient):
    labels, hu = patient
    labels = only(labels, "liver", "spleen")
    assert judge(labels, hu).verdict == LOOK  # other organs are not found
    hu[hu > 200] = -90
    assert judge(labels, hu) == (IMPLAUSIBLE, ("no abdomen in view: no spine where organs were found",))


def test_air_that_was_clipped_away_is_still_air(patient):
    labels, hu = patient
    hu = hu.clip(-125, 275)
    assert judge(labels, hu) == (OK, ())
    assert judge(np.where(np.arange(60)[:, None, None] < 40, labels, 0), hu).verdict == LOOK  # no esophagus


# Relations


def test_a_liver_without_lung(patient):
    labels, hu = patient
    hu[40:][hu[40:] == -800] = -90
    assert judge(labels, hu) == (IMPLAUSIBLE, ("no lung above the liver, though the scan goes on there",))
    assert judge(labels[:47], hu[:47]).verdict == OK  # ends where the lung may begin
    speck = without(labels, "liver")
    speck[24:28, 30:36, 60:64] = LABEL["liver"]  # 7.7 ml
    assert judge(speck, hu) == (LOOK, ("small liver: 7.7 ml",))


@pytest.mark.parametrize("axis", range(3))
def test_a_mirrored_scan(patient, axis):
    verdict, reasons = judge(*(np.flip(array, axis) for array in patient))
    assert verdict == IMPLAUSIBLE
    assert any("as if mirrored or upside down" in reason for reason in reasons)


@pytest.mark.parametrize("parts", [(0, 14), (10, 24), (22, 30), (30, 45), (46, 60)])
def test_a_part_of_an_abdomen(patient, parts):
    labels, hu = (array[slice(*parts)] for array in patient)
    verdict, reasons = judge(labels, hu)
    assert verdict == (LOOK if parts == (46, 60) else OK)  # there are but vessels left
    assert verdict == LOOK or [reason for reason in reasons if reason.startswith("cut off")] == [*reasons]


def test_a_kidney_on_the_wrong_side(patient):
    labels, hu = patient
    labels = without(labels, "left kidney")
    labels[0:8, 12:22, 62:87] = LABEL["left kidney"]
    assert judge(labels, hu).reasons[0] == "on the wrong side of other organs: left kidney"
    assert judge(labels, hu).verdict == LOOK


@pytest.mark.parametrize(("first_x", "verdict"), [(44, OK), (45, LOOK)])
def test_centres_may_differ_by_a_centimetre(patient, first_x, verdict):
    labels, hu = patient
    labels = without(labels, "left kidney")
    labels[2:14, 22:32, first_x : first_x + 9] = LABEL["left kidney"]  # 8 or 12 mm to the right of the aorta
    hu[labels > 0] = 60
    assert judge(labels, hu).verdict == verdict


def test_an_organ_in_two_far_pieces(patient):
    labels, hu = patient
    labels[21:25, 40:48, 14:22] = LABEL["spleen"]  # 64 mm in front of it
    assert judge(labels, hu) == (LOOK, ("in pieces far apart: spleen",))
    labels = np.where(labels == LABEL["spleen"], 0, labels)
    labels[box("spleen")] = LABEL["spleen"]
    labels[21:25, 32:40, 14:22] = LABEL["spleen"]  # 32 mm
    assert judge(labels, hu) == (OK, ())


def test_specks_are_no_pieces(patient):
    labels, hu = patient
    labels[21:23, 44:46, 18:20] = LABEL["spleen"]
    assert judge(labels, hu) == (OK, ())


# Organ by organ


def test_sizes(patient):
    labels, hu = patient
    small = without(labels, "right kidney")
    small[12:17, 14:20, 64:70] = LABEL["right kidney"]
    assert judge(small, hu) == (LOOK, ("small right kidney: 14.4 ml",))
    labels[26:48, 5:25, 8:28] = LABEL["spleen"]
    hu[labels > 0] = 60
    assert judge(labels, hu) == (LOOK, ("large spleen: 704.0 ml",))


def test_a_cut_organ_is_not_called_small_and_its_cut_is_said(patient):
    labels, hu = patient
    cut = "cut off by the first or last slice: liver, right kidney, spleen, pancreas, left kidney"
    assert judge(labels[26:], hu[26:]) == (OK, (cut,))
    hu[box("left kidney")] = 900
    assert judge(labels[26:], hu[26:]) == (LOOK, ("left kidney of 900 HU", cut))


def test_organs_that_were_taken_out(patient):
    labels, hu = patient
    assert judge(without(labels, "gallbladder", "duodenum"), hu) == (OK, ())
    for name in ("right kidney", "left kidney", "spleen", "pancreas", "left adrenal gland"):
        assert judge(without(labels, name), hu) == (LOOK, (f"not found beside organs that are whole in view: {name}",))
    below = labels[:20], hu[:20]  # both kidneys cut: the other one may lie higher
    assert judge(without(below[0], "left kidney"), below[1]).verdict == OK
    assert judge(without(labels[:44], "liver", "left kidney"), hu[:44]).reasons == (
        "not found beside organs that are whole in view: left kidney",
    )


def test_hu_that_no_organ_has(patient):
    labels, hu = patient
    hu[box("left kidney")] = 900
    assert judge(labels, hu) == (LOOK, ("left kidney of 900 HU",))


# Real scans

real = pytest.mark.skipif(not (CT_DIR / "labelled").is_dir(), reason="no real scans: set FLARE22_CT_DIR")


def read_pair(folder, image):
    volume = read_volume(image)
    labels = np.empty(volume.geometry.shape, np.uint8)
    name = image.name.replace("_0000", "")
    volume.geometry.in_file_order(labels)[...] = read_mask(folder / "labels" / name).labels
    return labels, volume


@real
def test_hand_drawn_masks_are_plausible_and_mirrored_ones_are_not():
    verdicts = {}
    for image in sorted((CT_DIR / "labelled" / "images").glob("*.nii.gz"))[::6]:
        labels, volume = read_pair(CT_DIR / "labelled", image)
        spacing_mm = volume.geometry.spacing_mm
        verdicts[image.name] = judge(labels, volume.hu, spacing_mm)
        assert judge(labels[:, :, ::-1], volume.hu[:, :, ::-1], spacing_mm).verdict == IMPLAUSIBLE
    assert not [name for name, quality in verdicts.items() if quality.verdict == IMPLAUSIBLE]
    assert sum(quality.verdict == OK for quality in verdicts.values()) >= 0.8 * len(verdicts), verdicts


@real
def test_heads_and_thighs_have_no_abdomen():
    for image in sorted((CT_DIR / "negative" / "images").glob("*.nii.gz")):
        labels, volume = read_pair(CT_DIR / "negative", image)
        assert not labels.any()
        (reason,) = judge(labels, volume.hu, volume.geometry.spacing_mm).reasons[:1]
        assert reason.startswith("no abdomen in view")
