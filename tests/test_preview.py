"""Which side is where, to scale, in the organs' colours."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from app.labels import ORGANS
from app.preview import HEIGHT_PX, write_preview


def picture(tmp_path, hu, labels, spacing_mm):
    """(axial, coronal) RGB of a preview."""
    path = tmp_path / "case.png"
    write_preview(path, hu, labels, spacing_mm)
    rgb = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(int)
    assert rgb.shape[0] == HEIGHT_PX
    assert rgb.shape[2] == 3
    axial_width = round(
        hu.shape[2] * spacing_mm[2] * HEIGHT_PX / max(hu.shape[1] * spacing_mm[1], hu.shape[0] * spacing_mm[0])
    )
    return rgb[:, :axial_width], rgb[:, axial_width:]


def centre(rgb, label):
    """(row, column) share of the height and width where the organ's outline lies."""
    rows, columns = np.nonzero((rgb == ORGANS[label - 1].colour).all(axis=2))
    return rows.mean() / rgb.shape[0], columns.mean() / rgb.shape[1]


def test_the_patients_right_is_on_the_left_front_and_head_are_up(tmp_path):
    hu = np.zeros((40, 40, 40), np.int16)
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[25:35, 25:35, 28:38] = 1  # liver: to the right (x up), in front (y up), above (z up)
    labels[5:30, 20:30, 2:12] = 13  # left kidney: to the left, behind the liver, below it
    axial, coronal = picture(tmp_path, hu, labels, (1.0, 1.0, 1.0))
    (liver_row, liver_column), (kidney_row, kidney_column) = centre(axial, 1), centre(axial, 13)
    assert liver_column < 0.3 < 0.7 < kidney_column
    assert liver_row < kidney_row
    assert liver_row == pytest.approx(1 - 30 / 40, abs=0.02)
    (liver_row, liver_column), (kidney_row, kidney_column) = centre(coronal, 1), centre(coronal, 13)
    assert liver_column < 0.3 < 0.7 < kidney_column
    assert liver_row == pytest.approx(1 - 30 / 40, abs=0.02)
    assert kidney_row == pytest.approx(1 - 17.5 / 40, abs=0.02)


def test_square_pixels_and_one_scale(tmp_path):
    hu = np.zeros((10, 80, 60), np.int16)
    axial, coronal = picture(tmp_path, hu, np.zeros(hu.shape, np.uint8), (4.0, 0.5, 0.5))
    # 40 mm high and deep, 30 mm wide: both fill the height
    assert axial.shape[1] == coronal.shape[1] == HEIGHT_PX * 30 // 40
    axial, coronal = picture(tmp_path, hu, np.zeros(hu.shape, np.uint8), (2.0, 0.5, 0.5))
    body = np.nonzero(coronal.any(axis=(1, 2)))[0]  # 20 mm of 40, in the middle
    assert (body[0], body[-1]) == (HEIGHT_PX // 4, HEIGHT_PX * 3 // 4 - 1)


def test_soft_tissue_is_grey_air_black_bone_white(tmp_path):
    hu = np.repeat(np.array([-1000, 40, 1500], np.int16), 10)[None, None].repeat(30, 1).repeat(3, 0)
    axial, _ = picture(tmp_path, hu, np.zeros(hu.shape, np.uint8), (1.0, 1.0, 1.0))
    row = axial[HEIGHT_PX // 2]
    third = len(row) // 3
    assert row[third // 2].tolist() == [255] * 3  # x runs to the right: bone is on the left of the picture
    assert row[third + third // 2].tolist() == pytest.approx([127] * 3, abs=2)
    assert row[2 * third + third // 2].tolist() == [0] * 3


def test_the_slice_with_the_most_organs_is_shown(tmp_path):
    hu = np.zeros((9, 30, 30), np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    labels[2, 5:25, 5:25] = 3  # one large organ
    labels[6, 10:14, 10:14], labels[6, 20:24, 20:24] = 5, 6  # two small ones
    axial, _ = picture(tmp_path, hu, labels, (1.0, 1.0, 1.0))
    colours = {organ.label for organ in ORGANS if (axial == organ.colour).all(axis=2).any()}
    assert colours == {5, 6}


def test_a_name_that_is_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"M\xfcller.png")
    write_preview(path, np.zeros((3, 8, 8), np.int16), np.zeros((3, 8, 8), np.uint8), (1.0, 1.0, 1.0))
    assert sitk.ReadImage(path.rename(tmp_path / "plain.png")).GetSize() == (2 * HEIGHT_PX, HEIGHT_PX)


def test_half_a_picture_does_not_stay(tmp_path, monkeypatch):
    whole = Path.write_bytes

    def on_a_full_disk(path, data):
        whole(path, data[: len(data) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_preview(tmp_path / "a.png", np.zeros((3, 8, 8), np.int16), np.zeros((3, 8, 8), np.uint8), (1, 1, 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (40, 1, 5), (2, 3, 90)])
def test_any_shape(tmp_path, shape):
    labels = np.random.default_rng(0).integers(0, 14, shape).astype(np.uint8)
    picture(tmp_path, np.zeros(shape, np.int16), labels, (5.0, 0.7, 0.7))
