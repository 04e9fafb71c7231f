"""The table of where organs are lost.

results/errors.json     evaluation.errors: {"organs": {ORGAN: {"missed_share": {KIND: ...}, ...}}, "cases": ...}
"""

from collections.abc import Mapping

from app.progress import one_line
from evaluation.tables.markdown import markdown
from evaluation.wrong_voxels import KINDS

_LEAST_SHARE = 0.005  # what an organ is mistaken for in less of its volume is not named


def errors(result: dict) -> str:
    """Missed and extra voxels by kind, in percent of the annotated volume; what organs were mistaken for."""
    heads = ["% of annotated", "ml", "missed: past the mask's ends", "at its edge", "elsewhere", "given to",
             "extra: past the label's ends", "at its edge", "elsewhere", "taken from", "worst slice"]  # fmt: skip
    rows = []
    for organ, lost in result["organs"].items():
        worst = lost["worst_slices"][0] if lost["worst_slices"] else None
        rows.append(
            [
                organ,
                f"{lost['annotated_ml']:,.0f}",
                *(_percent(lost["missed_share"][kind]) for kind in KINDS),
                _others(lost["given_to_share"]),
                *(_percent(lost["extra_share"][kind]) for kind in KINDS),
                _others(lost["taken_from_share"]),
                f"{one_line(worst['case'])} z {worst['z']}" if worst else "",
            ]
        )
    weights = sorted({case["weights_sha256"] or "unknown" for case in result["cases"].values()})
    edges = ", ".join(f"{organ} {lost['edge_mm']}" for organ, lost in result["organs"].items())
    return (
        f"{markdown(heads, rows)}\n"
        f"Volumes of {len(result['cases'])} patients together ({', '.join(map(one_line, result['cases']))}). The edge "
        f"is what lies in the slice no further, in mm, than the tolerance of the NSD: {edges}. z counts from 0; the "
        f"five worst slices of each organ stand in results/errors.json. Weights: SHA-256 "
        f"{', '.join(sha[:12] for sha in weights)}; `python -m evaluation.errors`.\n"
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _others(shares: Mapping[str, float | None]) -> str:
    named = [(name, share) for name, share in shares.items() if share is not None and share >= _LEAST_SHARE]
    return ", ".join(f"{name} {_percent(share)}" for name, share in named)
