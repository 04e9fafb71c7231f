"""Which organ volumes are worth a second look: published ranges of healthy adults, widened for the ill.

A mark is a question, not a verdict: the median patient of an abdominal CT is not healthy, and the range is
wide enough for most of them. What lies outside is a rare disease or a wrong mask.
"""

from typing import NamedTuple

WIDENING = 2  # a patient's organ may be half as small or twice as large as the extremes of the healthy


class Reference(NamedTuple):
    """A published range in healthy adults.

    Attributes:
        low, high: In `unit`; a low of 0 is no limit.
        unit: "ml", or "ml/cm" for tubes that the field of view cuts: their volume per length along the scan.
        basis: How the range follows from the source.
        source: Citation.
    """

    low: float
    high: float
    unit: str
    basis: str
    source: str


_LIVER_DONORS = "Kim DW et al., Radiology 2021;301:339-347: CT of 2,989 healthy adults"
_ADRENALS = "Wang X et al., Chin Med Sci J 2012;27:220-224: CT of 81 adults with normal adrenal glands"
_KIDNEYS = Reference(
    92, 244, "ml",
    "5th percentile of women over 60 to median + 2 SD of men (SD from the quartiles)",
    "Age- and sex-specific reference values for renal volume, J Clin Med 2024;13:769: MRI of 1,815 adults",
)  # fmt: skip

REFERENCES = {  # by label
    1: Reference(824.5, 1700, "ml", "central 95 %", _LIVER_DONORS),
    2: _KIDNEYS,
    3: Reference(81.1, 322, "ml", "central 95 %", _LIVER_DONORS),
    4: Reference(
        20.8, 124, "ml", "72.4 ± 2 x 25.8", "Saisho Y et al., Clin Anat 2007;20:933-942: CT of 1,721 adults"
    ),
    5: Reference(
        0.79, 4.37, "ml/cm", "circles of 13.8 - 2 x 1.9 mm (below the kidneys) to 19.0 + 2 x 2.3 mm (at T12)",
        "Jasper A et al., J Postgrad Med 2014;60:57-60: CT of 142 adults",
    ),
    6: Reference(
        1.55, 6.11, "ml/cm", "ellipses, diameters mean - 2 SD (at the kidneys) to mean + 2 SD (below the heart)",
        "Normal inferior vena cava diameters, Cureus 2022;14:e31845: CT of 200 adults",
    ),
    7: Reference(2.59, 6.56, "ml", "smallest to largest", _ADRENALS),
    8: Reference(2.85, 5.83, "ml", "smallest to largest", _ADRENALS),
    9: Reference(
        3.5, 79.8, "ml", "28.1 - 2 x 12.3 (slim) to 43.2 + 2 x 18.3 (obese), fasting",
        "Sari R et al., J Clin Ultrasound 2003;31:352-357: ultrasound of 104 women without gallstones",
    ),
    10: Reference(
        0, 3.02, "ml/cm", "ellipse of 16 x 24 mm, beyond which a cervical esophagus is abnormal",
        "Schmalfuss IM et al., Radiology 2000;214:237-246: 121 CT and 92 MR examinations",
    ),
    11: Reference(
        0, 1000, "ml", "757 + 2 x 16 % after a meal of 300 ml; an empty one has no lower limit",
        "Performance characteristics of the measurement of gastric volume using SPECT (Neurogastroenterol Motil, "
        "PMC3105214), 433 adults; the mean from the same group's study of one postprandial scan, 443 adults",
    ),
    12: Reference(
        44.6, 158, "ml", "smallest to largest, with water or oral contrast",
        "Wu G et al., Oral contrast or water for duodenal volume, J Gastrointest Oncol: CT of 53 patients",
    ),
    13: _KIDNEYS,
}  # fmt: skip


def plausible_ml(label: int, length_mm: float) -> tuple[float, float]:
    """Smallest and largest plausible volume, the published range widened.

    Args:
        label: The organ.
        length_mm: Extent of the organ along the body in this scan; only tubes need it.
    """
    reference = REFERENCES[label]
    per_cm = length_mm / 10 if reference.unit == "ml/cm" else 1
    return reference.low / WIDENING * per_cm, reference.high * WIDENING * per_cm


def mark(label: int, ml: float, length_mm: float, cut: bool) -> str:
    """What is odd about a volume: "absent", "small", "large", or "" for a plausible one.

    Args:
        label, length_mm: As for `plausible_ml`.
        ml: The organ's volume.
        cut: The organ reaches the first or last slice: it goes on outside, and may be small.
    """
    if not ml:
        return "absent"
    low, high = plausible_ml(label, length_mm)
    if ml > high:
        return "large"
    return "small" if ml < low and not cut else ""
