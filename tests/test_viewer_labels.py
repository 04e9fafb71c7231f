"""The viewers' label files say what app/labels.py says, and are as committed."""

import shlex

from app.labels import ORGANS
from evaluation.viewer_labels import FILES, FOLDER, itk_snap_labels, slicer_colour_table


def lines_of(text):
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_committed_files_are_up_to_date():
    for name, make in FILES.items():
        message = f"{name} is out of date: python -m evaluation.viewer_labels"
        assert (FOLDER / name).read_bytes() == make().encode(), message


def test_slicer_colours():
    background, *organs = (line.split() for line in lines_of(slicer_colour_table()))
    assert background == ["0", "background", "0", "0", "0", "0"]
    assert len(organs) == len(ORGANS)
    for fields, organ in zip(organs, ORGANS, strict=True):
        number, name, *rgba = fields
        assert (int(number), name.replace("_", " ")) == (organ.label, organ.name)
        assert tuple(map(int, rgba)) == (*organ.colour, 255)


def test_itk_snap_labels():
    clear, *organs = (shlex.split(line) for line in lines_of(itk_snap_labels()))
    assert clear == ["0", "0", "0", "0", "0", "0", "0", "Clear Label"]
    assert len(organs) == len(ORGANS)
    for fields, organ in zip(organs, ORGANS, strict=True):
        number, red, green, blue, *opaque_and_visible, name = fields
        assert (int(number), name) == (organ.label, organ.name)
        assert (int(red), int(green), int(blue)) == organ.colour
        assert opaque_and_visible == ["1", "1", "1"]
