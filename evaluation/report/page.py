"""The HTML of a report: one string, nothing outside it."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from app.labels import ORGANS, Organ
from app.plausible import REFERENCES, WIDENING
from app.preview import DISPLAY_WINDOW_HU
from evaluation import paper
from evaluation.report.case import CaseReport
from evaluation.report.curves import OTHER_STAGE, STAGE_COLOURS, curves, waiting_s
from evaluation.report.markup import Cell, bar, figure, key, problems, table
from evaluation.report.run import Run
from evaluation.report.views import ERROR_COLOURS, SCALE_BAR_MM
from evaluation.scoring import METRICS, TOLERANCES_MM
from evaluation.summary import summarise

POOR, FAIR = 0.5, 0.75  # scores below are tinted
COMPARED = 2  # best and as many worst cases side by side


def page(run: Run, cases: Sequence[CaseReport]) -> str:
    """The whole document.

    Args:
        run: The record.
        cases: As many as the run has, in its order.
    """
    scored = [case for case in cases if case.scores]
    sections = {
        "Failures and warnings": _problems(run, cases),
        "Quality": _quality(cases),
        "Accuracy": _accuracy(scored) if scored else "",
        "Best and worst cases": _best_and_worst(scored),
        "Organ volumes": _volumes(cases),
        "Time and memory": _breakdown(run) + _curves(run) + _challenge_figures(run),
        "Cases": "".join(_case(case) for case in cases),
        "Plausible volumes": _references() if any(case.volumes for case in cases) else "",
    }
    anchors = {title: title.lower().replace(" ", "-") for title, html in sections.items() if html}
    links = " ".join(f'<a href="#{anchor}">{title}</a>' for title, anchor in anchors.items())
    body = "".join(
        f'<section>\n<h2 id="{anchor}">{title}</h2>\n{sections[title]}</section>\n' for title, anchor in anchors.items()
    )
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    title = f"Segmentation report, {escape(_when(run.content.get('started', '')))}"
    low_hu, high_hu = DISPLAY_WINDOW_HU
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<header>\n{_head(run, scored)}<nav>{links}</nav>\n</header>\n<main>\n{body}</main>\n"
        f'<footer class="soft"><p>Pictures: {low_hu} to {high_hu} HU; the patient\'s right (R) or front (A) is on the '
        f"left; the white bar is {SCALE_BAR_MM} mm. For research use; not a medical device.</p></footer>\n"
        "</body>\n</html>\n"
    )


def _head(run: Run, scored: Sequence[CaseReport]) -> str:
    content, monitor = run.content, run.content.get("monitor", {})
    counts = Counter(case.status for case in run.cases)
    facts = {"cases": ", ".join(f"{number} {status}" for status, number in counts.items())}
    if scored:
        facts[f"mean DSC of {len(scored)} cases"] = f"{np.mean([case.mean_dsc for case in scored]):.4f}"
    for name, words, unit, digits in (
        ("duration_s", "for the run", "s", 1),
        ("flare_gpu_mem_mib", "GPU memory, whole card", "MB", 0),
        ("peak_rss_mib", "RAM of this run, at most", "MB", 0),
    ):
        if monitor.get(name) is not None:
            facts[words] = f"{monitor[name]:,.{digits}f} {unit}"
    versions = content.get("versions", {})
    setting = [
        f"Run of {_when(content.get('started', ''))}",
        f"weights {str(content.get('weights', {}).get('sha256', 'unknown'))[:12]}",
        ", ".join(str(content[name]) for name in ("device", "dtype") if name in content),
        f"{content['threads']} threads" if "threads" in content else "",
        ", ".join(f"{name} {versions[name]}" for name in ("python", "torch") if name in versions),
    ]
    items = "".join(f"<li><b>{escape(value)}</b>{escape(words)}</li>" for words, value in facts.items())
    line = escape("; ".join(part for part in setting if part))
    return f'<h1>Segmentation of abdominal organs</h1>\n<p class="soft">{line}</p>\n<ul class="facts">{items}</ul>\n'


def _when(started: str) -> str:
    """20261123T213542Z, for people."""
    if len(started) < 15:
        return started or "an unknown time"
    return f"{started[:4]}-{started[4:6]}-{started[6:8]} {started[9:11]}:{started[11:13]} UTC"


def _problems(run: Run, cases: Sequence[CaseReport]) -> str:
    lines = []
    status = run.content.get("exit_status")
    if status not in (0, 1):
        lines.append(f"<b>The run did not come to its end</b> (exit status {escape(str(status))}).")
    if run.content.get("monitor", {}).get("error"):
        lines.append(f"Monitor: {escape(str(run.content['monitor']['error']))}")
    lines += [f"{_bold(case)} failed: {escape(case.record.error)}" for case in cases if case.record.error]
    for case in cases:
        lines += [f"{_bold(case)}: {escape(text)}" for text in (*case.record.warnings, *case.notes)]
    return problems(lines)


def _bold(case: CaseReport) -> str:
    return f"<b>{escape(case.record.name)}</b>"


# Quality


def _quality(cases: Sequence[CaseReport]) -> str:
    rows = [
        [
            escape(case.record.name),
            Cell(escape(case.record.quality), _style(case)),
            Cell(_reasons(case, "<br>"), "text"),
        ]
        for case in cases
        if case.record.quality
    ]
    if not rows:
        return ""
    return (
        "<p>What the program itself says of its masks, by rules of anatomy: <b>look</b> is unusual in a patient, "
        "<b>implausible</b> is seen in none.</p>\n" + table(["case", "quality", Cell("why", "text")], rows)
    )


def _style(case: CaseReport) -> str:
    return {"look": "fair", "implausible": "poor"}.get(case.record.quality, "")


def _reasons(case: CaseReport, separator: str) -> str:
    return separator.join(map(escape, case.record.reasons))


# Accuracy


def _accuracy(scored: Sequence[CaseReport]) -> str:
    organs = [organ for organ in ORGANS if any(organ.label in case.scores for case in scored)]
    left_out = ", ".join(organ.name for organ in ORGANS if organ not in organs)
    tolerances = ", ".join(f"{organ.abbreviation} {TOLERANCES_MM[organ.label]}" for organ in organs)
    intro = (
        f"<p>By FLARE22's rules, {len(scored)} cases. The paper's figures (its Table 3; its mean NSD is "
        f"{paper.NSD:.2f}) are of 50 other patients: they stand here for scale. "
        + (f"Not annotated, and out of every mean, the paper's too: {left_out}." if left_out else "")
        + f'</p>\n<p class="soft">NSD tolerances in mm: {tolerances}.</p>\n'
    )
    tints = f"tinted below {FAIR} and below {POOR}"
    return intro + _organ_scores(scored, organs) + "".join(_case_scores(scored, organs, k, tints) for k in (0, 1))


def _organ_scores(scored: Sequence[CaseReport], organs: Sequence[Organ]) -> str:
    summary = summarise({case.record.name: case.scores for case in scored})
    published = [paper.TABLE_3[organ.abbreviation] for organ in organs]
    rows = []
    for organ, ours in zip(organs, published, strict=True):
        statistics = summary["per_organ"][organ.abbreviation]
        dsc = [case.scores[organ.label].dsc for case in scored if organ.label in case.scores]
        spread = [f"{value:.4f}" for value in (statistics["DSC"]["std"], min(dsc), max(dsc))]
        nsd = [_score(statistics["NSD"]["mean"]), f"{statistics['NSD']['std']:.4f}"]
        papers = [f"{value:.4f}" for value in ours]
        rows.append([_organ(organ), _score(statistics["DSC"]["mean"]), *spread, *nsd, str(statistics["n"]), *papers])
    means = {metric: f"{summary['over_organs'][metric]['mean']:.4f}" for metric in METRICS}
    paper_means = [f"{np.mean(column):.4f}" for column in zip(*published, strict=True)]
    foot = ["mean of the organs", means["DSC"], "", "", "", means["NSD"], "", "", *paper_means]
    heads = ["organ", "DSC", "SD", "worst", "best", "NSD", "SD", "cases"]
    return table([*heads, "paper's DSC", "paper's, without unlabelled data"], rows, foot)


def _case_scores(scored: Sequence[CaseReport], organs: Sequence[Organ], metric: int, tints: str) -> str:
    """A row for each case: metric 0 is DSC, 1 NSD."""
    rows = []
    for case in scored:
        scores = {label: score[metric] for label, score in case.scores.items()}
        cells = (_score(scores[organ.label]) if organ.label in scores else "" for organ in organs)
        rows.append([escape(case.record.name), _score(np.mean([*scores.values()])), *cells])
    heads = [METRICS[metric], "mean", *(organ.abbreviation for organ in organs)]
    return table(heads, rows, caption=f"{METRICS[metric]} of each case, {tints}", wide=True)


def _score(value: float) -> Cell:
    return Cell(f"{value:.4f}", "poor" if value < POOR else "fair" if value < FAIR else "")


def _best_and_worst(scored: Sequence[CaseReport]) -> str:
    """As the paper's Fig. 4: successful and failed cases side by side."""
    drawn = sorted((case for case in scored if case.overviews), key=lambda case: -case.mean_dsc)
    number = min(COMPARED, len(drawn) // 2)
    if not number:
        return ""
    columns = []
    for case in drawn[:number]:
        columns.append(_comparison(case, "best", ("truth", "axial", "errors"), "slice with the most organs"))
    for case in drawn[-number:]:
        names = ("worst truth", "worst prediction", "worst errors")
        columns.append(_comparison(case, "worst", names, "slice with the most wrong pixels"))
    return (
        f'<p class="soft">From top to bottom: truth; prediction; what is {key(ERROR_COLOURS)}</p>\n'
        f'<div class="columns">{"".join(columns)}</div>\n'
    )


def _comparison(case: CaseReport, kind: str, names: Sequence[str], where: str) -> str:
    caption = f"<b>{kind}: {escape(case.record.name)}</b><br>mean DSC {case.mean_dsc:.4f}; {where}"
    return figure([case.overviews[name] for name in names], caption)


# Volumes


def _volumes(cases: Sequence[CaseReport]) -> str:
    measured = [case for case in cases if case.volumes]
    if not measured:
        return ""
    words = {"absent": "<br>not found", "small": "<br>small", "large": "<br>large", "": ""}
    rows = [
        [
            escape(case.record.name),
            *(Cell(f"{v.ml:.1f}{words[v.mark]}", "fair" if v.mark else "") for v in case.volumes.values()),
        ]
        for case in measured
    ]
    heads = ["ml", *(organ.abbreviation for organ in ORGANS)]
    return (
        "<p>Tinted is what lies outside the plausible range: less than half of the smallest or more than twice the "
        "largest healthy organ. It asks for a look at the pictures; the patient may be so. An organ that reaches the "
        "first or last slice goes on outside the scan, and is not called small.</p>\n" + table(heads, rows, wide=True)
    )


def _references() -> str:
    rows = []
    for organ in ORGANS:
        reference = REFERENCES[organ.label]
        healthy = f"{reference.low:g} to {reference.high:g}" if reference.low else f"up to {reference.high:g}"
        texts = (Cell(escape(text), "text") for text in (reference.basis, reference.source))
        rows.append([_organ(organ), f"{healthy} {reference.unit}", *texts])
    return (
        "<p>What the literature says of healthy adults. A volume is marked when it is more than "
        f"{WIDENING} times smaller or larger. In ml/cm: volume per length along the scan, of tubes that the field of "
        "view cuts.</p>\n" + table(["organ", "healthy", Cell("how", "text"), Cell("source", "text")], rows)
    )


# Resources


def _breakdown(run: Run) -> str:
    """Where each second of the run went, in order; what is left over is by difference."""
    total_s = run.content.get("monitor", {}).get("duration_s")
    if not total_s:
        return ""
    seconds = {"start-up": run.content.get("start_up_s", 0.0)}
    if run.samples:
        seconds["waiting for a CT"] = waiting_s(run.samples)
    for case in run.cases:
        for stage, value in case.seconds.items():
            if stage != "read":  # in the background
                seconds[stage] = seconds.get(stage, 0) + value
    seconds["everything else"] = max(0.0, total_s - sum(seconds.values()))
    if run.outside_s is not None:
        seconds = {"outside the program": run.outside_s} | seconds
        total_s += run.outside_s
    read_s = sum(case.seconds.get("read", 0) for case in run.cases)
    words = {
        "outside the program": "container and interpreter, before its first line and after its last",
        "start-up": "import PyTorch, find the device, load the weights; the first CT is read meanwhile",
        "waiting for a CT": f"of {read_s:.2f} s of reading, most goes on beside other stages",
        "everything else": "find the cases, records, failed cases",
    }
    done = max(1, sum(case.status == "done" for case in run.cases))
    rows = [
        [
            escape(stage), f"{value:.2f}", f"{value / done:.2f}", f"{value / total_s:.1%}",
            Cell(bar(value / total_s, STAGE_COLOURS.get(stage, OTHER_STAGE)), "text"),
            Cell(words.get(stage, ""), "text"),
        ]
        for stage, value in seconds.items()
    ]  # fmt: skip
    foot = ["whole run", f"{total_s:.2f}", f"{total_s / done:.2f}", "", "", ""]
    if run.outside_s is None:
        span = (
            "From the program's first line to its last: <code>evaluation.efficiency</code> measures what is around it."
        )
    else:
        span = "From starting the container, as <code>evaluation.efficiency</code> measured it."
    return (
        f"<h3>Where each second went</h3>\n<p>{span} Alone, as the "
        "organizers run it, every case pays the start-up.</p>\n"
        + table(["stage", "s", "s per case", "share", "", ""], rows, foot)
    )


def _curves(run: Run) -> str:
    picture = curves(run.samples)
    if picture is None:
        return "<p>This run left no monitor.csv: no curves.</p>\n"
    return figure(picture, style="plain")


def _challenge_figures(run: Run) -> str:
    monitor = run.content.get("monitor", {})
    done = sum(case.status == "done" for case in run.cases)
    if not done or not monitor.get("duration_s"):
        return ""
    rows = []
    for name, words, summed, published in (
        ("duration_s", "time, s", True, paper.SECONDS_PER_CASE),
        ("flare_gpu_mem_mib", "largest GPU memory, MB", False, paper.MAX_GPU_MB),
        ("auc_gpu_mib_s", "area under GPU memory, MB s", True, paper.AUC_GPU_MB_S),
        ("auc_cpu_percent_s", "area under CPU use, % s", True, paper.AUC_CPU_PERCENT_S),
    ):
        value = monitor.get(name)
        ours = ["no GPU"] * 2 if value is None else [f"{value:,.2f}", f"{value / done if summed else value:,.2f}"]
        rows.append([words, *ours, f"{published:,.2f}"])
    caption = "By the organizers' formulas: GPU memory and CPU of the whole machine, other programs included"
    return table(["", "this run", "per case", "paper, per case"], rows, caption=caption)


# Cases


def _case(case: CaseReport) -> str:
    record = case.record
    facts = [record.status]
    if case.mean_dsc is not None:
        facts.append(f"mean DSC {case.mean_dsc:.4f}")
    if record.seconds:
        facts.append(", ".join(f"{stage} {value:.2f} s" for stage, value in record.seconds.items()))
    html = f'<article>\n<h3>{escape(record.name)}</h3>\n<p class="soft">{escape("; ".join(facts))}</p>\n'
    if record.quality:
        reasons = _reasons(case, "; ")
        html += f'<p><span class="{_style(case)}">{escape(record.quality)}</span>{reasons and f": {reasons}"}</p>\n'
    html += problems([escape(record.error)] if record.error else [])
    if case.overviews:
        html += _overviews(case)
    if case.strips:
        html += f'<div class="strips">{"".join(_strip(case, organ) for organ in ORGANS)}</div>\n'
    return html + "</article>\n"


def _overviews(case: CaseReport) -> str:
    captions = {"axial": "prediction, axial", "coronal": "prediction, coronal"}
    if case.scores:
        captions = {
            "axial": "prediction",
            "truth": "truth",
            "errors": key(ERROR_COLOURS),
            "coronal": "prediction, coronal",
        }
    figures = "".join(figure(case.overviews[name], caption) for name, caption in captions.items())
    legend = key({organ.name: organ.colour for organ in ORGANS})
    filled = key({words: colour for words, colour in ERROR_COLOURS.items() if words != "correct"})
    meaning = f'<p class="soft">Below, filled where this organ is {filled}</p>\n' if case.scores else ""
    columns = "columns" if case.scores else "columns two"
    return f'<div class="{columns}">{figures}</div>\n<p class="soft legend">{legend}</p>\n{meaning}'


def _strip(case: CaseReport, organ: Organ) -> str:
    volume = case.volumes[organ.label]
    words = [_organ(organ), f"{volume.ml:.1f} ml"]
    if volume.mark:
        words.append(f'<span class="fair">{"not found" if volume.mark == "absent" else volume.mark}</span>')
    if case.scores:
        score = case.scores.get(organ.label)
        words.append(f"DSC {score.dsc:.4f}, NSD {score.nsd:.4f}" if score else "not annotated")
    caption = "; ".join(words)
    return figure(case.strips[organ.label], caption) if organ.label in case.strips else figure([], caption)


def _organ(organ: Organ) -> str:
    return key({organ.name: organ.colour})
