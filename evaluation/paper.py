"""What the paper reports on FLARE22's 50 validation cases, as printed; our tables stand beside it."""

from typing import NamedTuple


class Dsc(NamedTuple):
    """One line of the paper's Table 3: mean DSC of an organ."""

    with_unlabelled: float
    without_unlabelled: float


# Keys are the organizers' abbreviations, as in app/labels.py.
TABLE_3 = {
    "Liver": Dsc(0.9559, 0.9375),
    "RK": Dsc(0.9008, 0.8296),
    "Spleen": Dsc(0.9208, 0.8784),
    "Pancreas": Dsc(0.7981, 0.6586),
    "Aorta": Dsc(0.9459, 0.9193),
    "IVC": Dsc(0.8544, 0.7809),
    "RAG": Dsc(0.6302, 0.5138),
    "LAG": Dsc(0.6023, 0.4116),
    "Gallbladder": Dsc(0.6134, 0.4643),
    "Esophagus": Dsc(0.7450, 0.6815),
    "Stomach": Dsc(0.7886, 0.7879),
    "Duodenum": Dsc(0.6781, 0.5448),
    "LK": Dsc(0.9118, 0.8426),
}
TABLE_3_AVERAGE = Dsc(0.7958, 0.7116)

NSD = 0.75  # abstract

# Section 4.3; means of the cases, but for the largest GPU memory.
SECONDS_PER_CASE = 20.34
MAX_GPU_MB = 1917
AUC_GPU_MB_S = 31508.74
AUC_CPU_PERCENT_S = 405.96
