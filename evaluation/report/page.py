"""The values of a report's page, which page.html.j2 turns into HTML."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from app.labels import ORGANS
from app.plausible import REFERENCES, WIDENING
from app.preview import DISPLAY_WINDOW_HU
from app.runjson import RunContent
from evaluation import paper
from evaluation.report.case import CaseReport
from evaluation.report.curves import OTHER_STAGE, STAGE_COLOURS, curves, waiting_s
from evaluation.report.run import Run
from evaluation.report.views import ERROR_COLOURS, SCALE_BAR_MM
from evaluation.scoring import METRICS, TOLERANCES_MM
from evaluation.summary import summarise

POOR, FAIR = 0.5, 0.75  # scores below are tinted
COMPARED = 2  # best and as many worst cases side by side

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.globals |= {
    "ERROR_COLOURS": ERROR_COLOURS, "FAIR": FAIR, "METRICS": METRICS, "ORGANS": ORGANS, "POOR": POOR,
    "REFERENCES": REFERENCES, "SCALE_BAR_MM": SCALE_BAR_MM, "DISPLAY_WINDOW_HU": DISPLAY_WINDOW_HU,
    "TOLERANCES_MM": TOLERANCES_MM, "WIDENING": WIDENING, "paper": paper,
}  # fmt: skip


def page(run: Run, cases: Sequence[CaseReport]) -> str:
    """The whole document.

    Args:
        run: The record.
        cases: As many as the run has, in its order.
    """
    scored = [case for case in cases if case.scores]
    when = _when(run.content.get("started", ""))
    return _TEMPLATES.get_template("page.html.j2").render(
        when=when,
        setting=[f"Run of {when}", *_setting(run.content)],
        facts=_facts(run, scored),
        problems=_problems(run, cases),
        assessed=[case for case in cases if case.record.quality],
        scores=_scores(scored) if scored else None,
        compared=_compared(scored),
        measured=[case for case in cases if case.volumes],
        resources=_resources(run),
        cases=cases,
    )


def _when(started: str) -> str:
    """20261123T213542Z, for people."""
    if len(started) < 15:
        return started or "an unknown time"
    return f"{started[:4]}-{started[4:6]}-{started[6:8]} {started[9:11]}:{started[11:13]} UTC"


def _setting(content: RunContent) -> list[str]:
    versions = content.get("versions", {})
    return [
        f"weights {str(content.get('weights', {}).get('sha256', 'unknown'))[:12]}",
        ", ".join(str(content[name]) for name in ("device", "dtype") if name in content),
        f"{content['threads']} threads" if "threads" in content else "",
        ", ".join(f"{name} {versions[name]}" for name in ("python", "torch") if name in versions),
    ]


def _facts(run: Run, scored: Sequence[CaseReport]) -> dict[str, str]:
    """What is said -> its value, in large type."""
    counts = Counter(case.status for case in run.cases)
    facts = {"cases": ", ".join(f"{number} {status}" for status, number in counts.items())}
    if scored:
        facts[f"mean DSC of {len(scored)} cases"] = f"{np.mean([case.mean_dsc for case in scored]):.4f}"
    monitor = run.content.get("monitor", {})
    for name, words, unit, digits in (
        ("duration_s", "for the run", "s", 1),
        ("flare_gpu_mem_mib", "GPU memory, whole card", "MB", 0),
        ("peak_rss_mib", "RAM of this run, at most", "MB", 0),
    ):
        if monitor.get(name) is not None:
            facts[words] = f"{monitor[name]:,.{digits}f} {unit}"
    return facts


def _problems(run: Run, cases: Sequence[CaseReport]) -> list[tuple[str, str]]:
    """(what it is about, in bold; the rest of the line), first of the run, then failures, then warnings."""
    lines = []
    if (status := run.content.get("exit_status")) not in (0, 1):
        lines.append(("The run did not come to its end", f" (exit status {status})."))
    if error := run.content.get("monitor", {}).get("error"):
        lines.append(("", f"Monitor: {error}"))
    lines += [(case.record.name, f" failed: {case.record.error}") for case in cases if case.record.error]
    for case in cases:
        lines += [(case.record.name, f": {text}") for text in (*case.record.warnings, *case.notes)]
    return lines


def _scores(scored: Sequence[CaseReport]) -> dict:
    """`summarise`, with each organ's worst and best case and the paper's figures."""
    summary = summarise({case.record.name: case.scores for case in scored})
    organs = [organ for organ in ORGANS if organ.abbreviation in summary["per_organ"]]
    per_organ = []
    for organ in organs:
        dsc = [case.scores[organ.label].dsc for case in scored if organ.label in case.scores]
        extremes = {"worst": min(dsc), "best": max(dsc), "paper": paper.TABLE_3[organ.abbreviation]}
        per_organ.append({"organ": organ, **summary["per_organ"][organ.abbreviation], **extremes})
    not_annotated = [organ for organ in ORGANS if organ not in organs]
    return {**summary, "cases": scored, "organs": organs, "not_annotated": not_annotated, "per_organ": per_organ}


def _compared(scored: Sequence[CaseReport]) -> list[tuple[str, CaseReport, tuple[str, ...], str]]:
    """(best or worst, case, its overviews, what they show): successes beside failures, as in the paper's Fig. 4."""
    drawn = sorted((case for case in scored if case.overviews), key=lambda case: -case.mean_dsc)
    number = min(COMPARED, len(drawn) // 2)
    best, worst = drawn[:number], drawn[len(drawn) - number :]
    wrong = ("worst truth", "worst prediction", "worst errors")
    return [
        *(("best", case, ("truth", "axial", "errors"), "slice with the most organs") for case in best),
        *(("worst", case, wrong, "slice with the most wrong pixels") for case in worst),
    ]


def _resources(run: Run) -> dict:
    """The run's seconds by stage, its curves, and the organizers' figures."""
    monitor = run.content.get("monitor", {})
    done = sum(case.status == "done" for case in run.cases)
    total_s = monitor.get("duration_s") or 0
    return {
        "total_s": total_s and total_s + (run.outside_s or 0),
        "outside_s": run.outside_s,
        "done": max(1, done),
        "stages": _stages(run, total_s),
        "curves": curves(run.samples, [case.name for case in run.cases]),
        "challenge": _challenge(monitor, done) if done and total_s else [],
    }


def _stages(run: Run, total_s: float) -> list[tuple[str, float, str, str]]:
    """(stage, seconds, colour, what it is), in order; what is left over is by difference."""
    seconds = {} if run.outside_s is None else {"outside the program": run.outside_s}
    inside = {"start-up": run.content.get("start_up_s", 0.0)}
    if run.samples:
        inside["waiting for a CT"] = waiting_s(run.samples)
    for case in run.cases:
        for stage, value in case.seconds.items():
            if stage != "read":  # in the background
                inside[stage] = inside.get(stage, 0) + value
    inside["everything else"] = max(0.0, total_s - sum(inside.values()))
    read_s = sum(case.seconds.get("read", 0) for case in run.cases)
    words = {
        "outside the program": "container and interpreter, before its first line and after its last",
        "start-up": "import PyTorch, find the device, load the weights; the first CT is read meanwhile",
        "waiting for a CT": f"of {read_s:.2f} s of reading, most goes on beside other stages",
        "everything else": "find the cases, records, failed cases",
    }
    return [
        (stage, value, STAGE_COLOURS.get(stage, OTHER_STAGE), words.get(stage, ""))
        for stage, value in (seconds | inside).items()
    ]


def _challenge(monitor: dict, done: int) -> list[tuple[str, float | None, float | None, float]]:
    """(what, of this run, per case, the paper's); None without a GPU."""
    rows = []
    for name, words, summed, printed in (
        ("duration_s", "time, s", True, paper.SECONDS_PER_CASE),
        ("flare_gpu_mem_mib", "largest GPU memory, MB", False, paper.MAX_GPU_MB),
        ("auc_gpu_mib_s", "area under GPU memory, MB s", True, paper.AUC_GPU_MB_S),
        ("auc_cpu_percent_s", "area under CPU use, % s", True, paper.AUC_CPU_PERCENT_S),
    ):
        value = monitor.get(name)
        rows.append((words, value, value if value is None or not summed else value / done, printed))
    return rows
