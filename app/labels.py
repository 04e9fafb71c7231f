"""The 13 organs of FLARE22, once: label value, name, abbreviation, colour.

Label values and abbreviations are the organizers' (FLARE22 evaluation script): they are the
numbers in every mask and the column names in every score file.
"""

from typing import NamedTuple


class Organ(NamedTuple):
    """One foreground class.

    Attributes:
        label: Voxel value in a mask, 1..13; also the index of its logit (0 is background).
        name: Plain English name, lower case.
        abbreviation: The organizers' column prefix, e.g. ``RK``.
        colour: RGB, 0..255, for overlays and viewer label files.
    """

    label: int
    name: str
    abbreviation: str
    colour: tuple[int, int, int]


ORGANS = (
    Organ(1, "liver", "Liver", (221, 84, 72)),
    Organ(2, "right kidney", "RK", (240, 190, 60)),
    Organ(3, "spleen", "Spleen", (155, 90, 200)),
    Organ(4, "pancreas", "Pancreas", (255, 150, 60)),
    Organ(5, "aorta", "Aorta", (255, 40, 40)),
    Organ(6, "inferior vena cava", "IVC", (60, 110, 255)),
    Organ(7, "right adrenal gland", "RAG", (0, 230, 200)),
    Organ(8, "left adrenal gland", "LAG", (190, 255, 70)),
    Organ(9, "gallbladder", "Gallbladder", (50, 170, 80)),
    Organ(10, "esophagus", "Esophagus", (200, 140, 100)),
    Organ(11, "stomach", "Stomach", (250, 130, 190)),
    Organ(12, "duodenum", "Duodenum", (110, 200, 255)),
    Organ(13, "left kidney", "LK", (255, 225, 120)),
)

NUM_CLASSES = len(ORGANS) + 1
COLOURS = ((0, 0, 0), *(organ.colour for organ in ORGANS))  # RGB by label, background black
