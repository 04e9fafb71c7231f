"""The report: its HTML is parsed, its numbers are compared with other programs' of the same files."""

import base64
import csv
import gzip
import io
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from app.labels import ORGANS
from app.plausible import REFERENCES, mark, plausible_ml
from evaluation import accuracy
from evaluation.organs import ALL_LABELS
from evaluation.report.__main__ import main
from evaluation.report.case import report_case
from evaluation.report.curves import stage_spans, waiting_s
from evaluation.report.run import CaseRecord, find_run, read_run
from evaluation.report.views import FALSE_NEGATIVE, FALSE_POSITIVE, Scan, displayed, organ_strip, overviews
from tests.dicom_series import Series
from tests.scans import save_ct, smooth_hu

CT_DIR = Path(os.environ.get("FLARE22_CT_DIR", Path(__file__).resolve().parents[2] / "shared" / "ct"))
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
SHAPE = (70, 60, 24)  # x, y, z
NAMES = ("one", "three", "two")
MONITOR = """time_s,gpu_used_mib,torch_allocated_mib,torch_reserved_mib,cpu_percent,process_cpu_percent,rss_mib,\
host_ram_used_mib,stage,case
0.0,,,,,,40.0,3000.0,,
0.5,{g},,,50.0,100.0,90.0,3100.0,start-up+read,one
1.0,{g},,,50.0,100.0,140.0,3200.0,start-up,
1.5,{g},,,20.0,90.0,150.0,3200.0,read,one
2.0,{g},,,90.0,300.0,400.0,3500.0,segment+read,one+two
2.5,{g},,,90.0,300.0,410.0,3500.0,segment,one
3.0,{g},,,40.0,100.0,300.0,3400.0,write,one
"""


class Page(HTMLParser):
    """Images, links and tables of a page."""

    void = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, html):
        super().__init__()
        self.images, self.urls, self.tags, self.ids, self.tables = [], [], [], [], []
        self._open, self._cell = [], None
        self.feed(html)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.urls += [attributes[name] for name in ("src", "href", "srcset", "data", "action") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "img":
            self.images.append(attributes)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._cell = ""
        if tag not in self.void:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._cell.strip())
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def table(self, *heads):
        """{first cell: the others} of the table whose first heads are these."""
        (found,) = [table for table in self.tables if tuple(table[0][: len(heads)]) == heads]
        return {row[0]: row[1:] for row in found}


def body(seed):
    """(x, y, z) labels: a box for each organ, side by side; none in the first and last slice."""
    random = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    for label in range(1, 14):
        x, y = 4 + 16 * ((label - 1) % 4), 4 + 14 * ((label - 1) // 4)
        size = random.integers(5, 12, 2)
        labels[x : x + size[0], y : y + size[1], random.integers(2, 8) : random.integers(14, 22)] = label
    return labels


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def case_entry(root, name, **changes):
    return {
        "name": name,
        "input": str(root / "in" / f"{name}_0000.nii.gz"),
        "mask": str(root / "out" / f"{name}.nii.gz"),
        "status": "done",
        "error": None,
        "warnings": [],
        "seconds": {"preprocess": 0.1, "segment": 0.75, "write": 0.05, "read": 0.4},
        **changes,
    }


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path)


def make_root(root, names=NAMES):
    """A run of three cases and one that failed, with truths: in/, out/, truth/."""
    random = np.random.default_rng(9)
    for seed, name in enumerate(names):
        labels = body(seed)
        hu = np.where(labels > 0, 60 + 8 * labels.astype(np.int16), -80).astype(np.int16)
        save(root / "in" / f"{name}_0000.nii.gz", hu + random.integers(-9, 9, SHAPE).astype(np.int16))
        save(root / "truth" / f"{name}.nii.gz", labels)
        found = np.roll(labels, seed, axis=0)
        found[found == 9] = 0  # the gallbladder is never found
        save(root / "out" / f"{name}.nii.gz", found)
    write_run(root, names=names)
    return root


def write_run(root, started="20260101T000000Z", gpu="", names=NAMES, **changes):
    folder = root / "out" / "logs" / started
    folder.mkdir(parents=True)
    cases = [case_entry(root, name) for name in names]
    cases[0]["quality"] = {"verdict": "implausible", "reasons": ["no <lung>", "no spine"]}
    cases[1]["quality"] = {"verdict": "ok", "reasons": []}
    cases[0]["warnings"] = ["air < -1000 HU & <script>alert(1)</script>"]
    broken = case_entry(root, "broken", status="failed", error="broken_0000.nii.gz: truncated <b>")
    cases.insert(1, {key: broken[key] for key in ("name", "input", "mask", "status", "error")})
    content = {
        "started": started,
        "exit_status": 1,
        "cases": cases,
        "start_up_s": 1.25,
        "device": "cpu",
        "weights": {"sha256": "0123456789abcdef"},
        "versions": {"python": "3.11", "torch": "2"},
        "monitor": {"duration_s": 5.0, "peak_rss_mib": 410.0, "auc_cpu_percent_s": 170.0, "auc_gpu_mib_s": None},
        **changes,
    }
    (folder / "run.json").write_text(json.dumps(content))
    samples = re.sub(r"\b(one|two)\b", lambda match: names[NAMES.index(match[0])], MONITOR.replace("{g}", gpu))
    (folder / "monitor.csv").write_text(samples, encoding="utf-8", errors="surrogateescape")
    return folder


def report(root, *options, pictures=False):
    output = root / "report" / "report.html"
    options = [*options] if pictures else ["--no-pictures", *options]
    assert main([str(root / "out"), "-o", str(output), *map(str, options)]) == 0
    return output.read_text()


def decoded(uri):
    kind, data = uri.split(",", 1)
    data = base64.b64decode(data)
    if "svg" in kind:
        return data.decode()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


# --- the page ---


def test_page_is_self_contained_and_every_image_is_described(root):
    html = report(root, "--truth", root / "truth", pictures=True)
    page = Page(html)
    assert len(page.images) > 3 * 13
    for image in page.images:
        assert len(image["alt"]) > 20
        picture = decoded(image["src"])
        if isinstance(picture, str):
            assert "<svg" in picture and not re.search(r"(href|src)=.(?!#)", picture) and "url(http" not in picture
        else:
            assert picture.shape[:2] == (int(image["height"]), int(image["width"]))
    for url in page.urls:
        assert url.startswith("data:image/") or (url[0] == "#" and url[1:] in page.ids)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in html and "url(" not in html and "http" not in re.sub(r"data:image[^\"]*", "", html)
    assert "lang" in html[:40] and "@media print" in html


def test_failures_and_warnings_are_shown_as_text(root):
    html = report(root)
    assert "<b>broken</b> failed: broken_0000.nii.gz: truncated &lt;b&gt;" in html
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html
    assert html.index("truncated") < html.index('id="organ-volumes"')


def test_quality_is_shown_in_a_table_and_at_the_case(root):
    html = report(root)
    assert Page(html).table("case", "quality", "why") == {
        "case": ["quality", "why"], "one": ["implausible", "no <lung>no spine"], "three": ["ok", ""],
    }  # fmt: skip
    assert "no &lt;lung&gt;<br>no spine" in html
    assert '<p><span class="poor">implausible</span>: no &lt;lung&gt;; no spine</p>' in html
    assert html.index('id="quality"') < html.index('id="organ-volumes"') < html.index("no &lt;lung&gt;; no spine")


def test_a_run_of_before_quality_was_assessed(root):
    run = find_run(root / "out") / "run.json"
    content = json.loads(run.read_text())
    for case in content["cases"]:
        case.pop("quality", None)
    run.write_text(json.dumps(content))
    assert 'id="quality"' not in report(root)


def test_scores_are_those_of_accuracy(root, tmp_path):
    page = Page(report(root, "--truth", root / "truth", "--annotated", "1-11,13"))
    argv = [str(root / "out"), str(root / "truth"), "-o", str(tmp_path / "s.csv"), "--organs", "1-11,13"]
    assert accuracy.main([*argv, "--workers", "1"]) == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    with (tmp_path / "s.csv").open() as file:
        per_case = {row["Name"].removesuffix(".nii.gz"): row for row in csv.DictReader(file)}
    table = page.table("organ", "DSC")
    organs = [organ for organ in ORGANS if organ.label != 12]
    assert list(table)[1:-1] == [organ.name for organ in organs]
    for organ in organs:
        row, statistics = table[organ.name], summary["per_organ"][organ.abbreviation]
        column = [float(case[f"{organ.abbreviation}_DSC"]) for case in per_case.values()]
        expected = [statistics["DSC"]["mean"], statistics["DSC"]["std"], min(column), max(column)]
        assert row[:4] == [f"{value:.4f}" for value in expected]
        assert row[4:6] == [f"{statistics['NSD'][key]:.4f}" for key in ("mean", "std")]
    assert table["spleen"][-2:] == ["0.9208", "0.8784"]  # the paper's Table 3
    assert table["mean of the organs"][0] == f"{summary['over_organs']['DSC']['mean']:.4f}"
    for metric in ("DSC", "NSD"):
        for name, row in page.table(metric, "mean").items():
            if name != metric:
                scores = [per_case[name][f"{organ.abbreviation}_{metric}"] for organ in organs]
                assert row[1:] == scores
                assert float(row[0]) == pytest.approx(np.mean([float(score) for score in scores]), abs=5e-5)


def test_organs_case_by_case(root, tmp_path, capsys):
    table = tmp_path / "organs.tsv"
    table.write_text("case\tannotated\none\t1-11,13\ntwo\tLiver,Spleen\nthree\t\n")
    (root / "truth" / "three.nii.gz").write_bytes(b"not even read")
    page = Page(report(root, "--truth", root / "truth", "--organs", table))
    assert "the table of --organs does not name three: not scored" in capsys.readouterr().err
    argv = [str(root / "out"), str(root / "truth"), "-o", str(tmp_path / "s.csv"), "--organs", str(table)]
    assert accuracy.main([*argv, "--workers", "1"]) == 1
    summary = json.loads((tmp_path / "s.json").read_text())
    organs = page.table("organ", "DSC")
    assert "duodenum" not in organs
    for organ, row in ((organ, organs[organ.name]) for organ in ORGANS if organ.label != 12):
        statistics = summary["per_organ"][organ.abbreviation]
        assert [row[0], row[6]] == [f"{statistics['DSC']['mean']:.4f}", str(statistics["n"])]
    assert {row[6] for row in organs.values()} == {"cases", "1", "2", ""}
    cases = page.table("DSC", "mean")
    assert set(cases) == {"DSC", "one", "two"} and "" not in cases["one"]
    liver, spleen = float(cases["two"][1]), float(cases["two"][3])
    assert float(cases["two"][0]) == pytest.approx((liver + spleen) / 2, abs=1e-4)
    assert cases["two"].count("") == 10


def test_best_and_worst_cases_stand_side_by_side(root):
    html = report(root, "--truth", root / "truth", pictures=True)
    dsc = {name: float(row[0]) for name, row in Page(html).table("DSC", "mean").items() if name in NAMES}
    assert len(set(dsc.values())) == 3
    best, worst = max(dsc, key=dsc.get), min(dsc, key=dsc.get)
    assert [f"best: {best}", f"worst: {worst}"] == re.findall(r"(?:best|worst): \w+", html)


def test_case_without_mask_scores_zero(root):
    save(root / "truth" / "broken.nii.gz", body(5))
    page = Page(report(root, "--truth", root / "truth"))
    assert page.table("DSC", "mean")["broken"] == ["0.0000"] * 14


def test_volumes_csv_counts_voxels(root):
    html = report(root)
    with (root / "report" / "volumes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 13
    for row in rows:
        labels = np.asarray(nibabel.load(root / "out" / f"{row['Name']}.nii.gz").dataobj)
        organ = next(organ for organ in ORGANS if organ.abbreviation == row["Organ"])
        voxels = np.argwhere(labels == organ.label)
        ml = len(voxels) * 0.02  # 2 x 2 x 5 mm
        assert float(row["ml"]) == pytest.approx(ml)
        length_mm = 5 * len(set(voxels[:, 2]))
        low, high = plausible_ml(organ.label, length_mm)
        assert [float(row[f"plausible_{side}_ml"]) for side in ("low", "high")] == pytest.approx([low, high], abs=0.01)
        assert row["mark"] == ("absent" if not ml else "small" if ml < low else "large" if ml > high else "")
        cell = Page(html).table("ml", "Liver")[row["Name"]][organ.label - 1]
        assert cell.startswith(f"{ml:.1f}") and (row["mark"] == "absent") == cell.endswith("not found")
    assert {"small", "absent"} <= {row["mark"] for row in rows}


def test_an_organ_at_the_end_of_the_scan_is_not_called_small(root):
    labels = np.zeros(SHAPE, np.uint8)
    labels[:10, :10, -3:] = 1
    save(root / "out" / "one.nii.gz", labels)
    (record,) = [case for case in read_run(root / "out").cases if case.name == "one"]
    assert report_case(record, None, (), pictures=False).volumes[1].mark == ""


def test_every_second_is_accounted_for(root):
    table = Page(report(root)).table("stage", "s")
    seconds = {stage: float(row[0]) for stage, row in table.items() if stage != "stage"}
    assert seconds == {
        "start-up": 1.25,
        "waiting for a CT": 0.5,
        "preprocess": 0.3,
        "segment": 2.25,
        "write": 0.15,
        "everything else": 0.55,
        "whole run": 5.0,
    }
    assert "%" in table["segment"][2]


def test_what_efficiency_measured_around_the_run_is_added(root):
    folder = root / "out" / "efficiency"
    folder.mkdir()
    (folder / "other.json").write_text('{"run": "20260102T000000Z", "program_s": 5.0, "time": 9.0}')
    (folder / "one_0000.json").write_text('{"run": "20260101T000000Z", "program_s": 5.0, "time": 7.5}')
    table = Page(report(root)).table("stage", "s")
    assert table["outside the program"][0] == "2.50" and table["whole run"][0] == "7.50"


@pytest.mark.parametrize(("gpu", "shown"), [("", False), ("1500.0", True)])
def test_curves_have_a_gpu_panel_where_there_was_one(root, gpu, shown):
    write_run(root, "20260102T000000Z", gpu)
    images = [image for image in Page(report(root)).images if "svg" in image["src"][:30]]
    assert len(images) == 1 and ("GPU memory up to 1500 MB" in images[0]["alt"]) == shown
    assert "RAM of this run up to 410 MB" in images[0]["alt"]


def test_stages_overlap_as_they_ran(root):
    samples = read_run(root / "out").samples
    assert sorted(stage_spans(samples)) == [
        ("read", "one", 0.5, 1.0),
        ("read", "one", 1.5, 2.0),
        ("read", "two", 2.0, 2.5),
        ("segment", "one", 2.0, 3.0),
        ("start-up", "", 0.5, 1.5),
        ("write", "one", 3.0, 3.0),
    ]
    assert waiting_s(samples) == 0.5


# --- pictures ---


def test_patients_right_and_front_are_on_the_left_and_the_head_on_top():
    volume = np.zeros((4, 5, 6), np.uint8)
    volume[-1, -1, -1] = 1  # up, forward, right
    for axis, index in enumerate((3, 4, 5)):
        assert np.argwhere(displayed(volume, axis, index)).tolist() == [[0, 0]]


def test_pictures_do_not_depend_on_the_files_axes(root):
    (before,) = [case for case in read_run(root / "out").cases if case.name == "two"]
    pictures = report_case(before, root / "truth" / "two.nii.gz", ALL_LABELS)
    for path in (before.ct, before.mask, root / "truth" / "two.nii.gz"):
        image = nibabel.load(path)
        turned = image.as_reoriented(nibabel.orientations.axcodes2ornt("PSL"))
        assert nibabel.aff2axcodes(turned.affine) != ("R", "A", "S")
        array = np.asarray(turned.dataobj)
        nibabel.save(nibabel.Nifti1Image(array, turned.affine), path)
    again = report_case(before, root / "truth" / "two.nii.gz", ALL_LABELS)
    assert again.volumes == pictures.volumes
    assert {k: p.uri for k, p in again.strips.items()} == {k: p.uri for k, p in pictures.strips.items()}
    assert {k: p.uri for k, p in again.overviews.items()} == {k: p.uri for k, p in pictures.overviews.items()}


def scan_of(prediction, truth=None):
    return Scan(np.zeros(prediction.shape, np.int16), prediction, truth, (5.0, 1.0, 1.0))


def near(picture, colour):
    """How many pixels are about of a colour over mid-grey, half covered or more."""
    rgb = decoded(picture.uri)
    towards = np.array(colour) - 102.0  # 0 HU in the window is 102
    return int(
        (
            ((rgb - 102.0) @ towards) / (np.linalg.norm(rgb - 102.0, axis=2) * np.linalg.norm(towards) + 1e-9) > 0.97
        ).sum()
    )


def test_errors_are_filled_in_their_colours():
    truth = np.zeros((9, 80, 80), np.uint8)
    truth[2:7, 20:60, 20:60] = 1
    low, high = truth.copy(), truth.copy()
    low[:, :, 40:] = 0
    high[2:7, 20:60, 5:20] = 1
    counts = {}
    for name, prediction in (("right", truth), ("low", low), ("high", high)):
        strip = organ_strip("case", scan_of(prediction, truth), 1, 1.0)
        counts[name] = [near(strip, colour) > 500 for colour in (FALSE_POSITIVE, FALSE_NEGATIVE)]
    assert counts == {"right": [False, False], "low": [False, True], "high": [True, False]}


def test_alternative_text_tells_how_much_is_correct():
    truth = np.zeros((5, 60, 60), np.uint8)
    truth[1:4, 10:50, 10:50] = 1
    half = truth.copy()
    half[:, :, 30:] = 0
    assert "100% of the organs' pixels are correct" in overviews("c", scan_of(truth, truth))["errors"].alt
    assert "50% of the organs' pixels are correct" in overviews("c", scan_of(half, truth))["errors"].alt


def test_an_organ_that_was_missed_is_shown_where_it_is():
    truth = np.zeros((5, 60, 60), np.uint8)
    truth[1:4, 10:20, 10:20] = 8
    nothing = np.zeros_like(truth)
    assert organ_strip("c", scan_of(nothing), 8, 0.0) is None
    strip = organ_strip("c", scan_of(nothing, truth), 8, 0.0)
    assert "not found" in strip.alt and near(strip, FALSE_NEGATIVE) > 500


def test_organs_not_annotated_are_not_shown_as_wrong(root):
    labels = np.zeros(SHAPE, np.uint8)
    labels[20:50, 20:40, 5:15] = 12
    save(root / "out" / "one.nii.gz", labels)
    save(root / "truth" / "one.nii.gz", np.zeros(SHAPE, np.uint8))
    (record,) = [case for case in read_run(root / "out").cases if case.name == "one"]
    for annotated, share in (((1, 2), "100%"), ((1, 2, 12), "0%")):
        case = report_case(record, root / "truth" / "one.nii.gz", annotated)
        assert f"{share} of the organs' pixels" in case.overviews["worst errors"].alt


# --- plausible volumes ---


def test_every_organ_has_a_range_and_a_source():
    assert set(REFERENCES) == {organ.label for organ in ORGANS}
    for reference in REFERENCES.values():
        assert 0 <= reference.low < reference.high and re.search(r"\d{4}|Oncol", reference.source) and reference.basis


def test_marks():
    low, high = plausible_ml(1, 0)
    assert (low, high) == (412.25, 3400)  # half and twice of 824.5 to 1700 ml
    assert [mark(1, ml, 0, False) for ml in (0, 412, 413, 3400, 3401)] == ["absent", "small", "", "", "large"]
    assert mark(1, 412, 0, cut=True) == ""
    assert plausible_ml(5, 200)[1] == pytest.approx(2 * 4.37 * 20)  # a tube: 200 mm of aorta


# --- wrong input ---


def fails(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: no truth for")]
    assert line.startswith("error: ")
    return line


def test_a_missing_run(root, capsys):
    assert "no such folder" in fails(capsys, root / "nowhere", "-o", root / "r.html")
    assert "no run.json" in fails(capsys, root / "in", "-o", root / "r.html")


@pytest.mark.parametrize("text", ['{"cases": 3}', '{"cases": [{"name": "x"}]}', '{"cases": []}', '{"format": 2}'])
def test_a_damaged_record(root, capsys, text):
    record = find_run(root / "out") / "run.json"
    record.write_text(text)
    assert str(record) in fails(capsys, root / "out", "-o", root / "r.html")


def test_truth_of_another_geometry(root, capsys):
    save(root / "truth" / "one.nii.gz", body(0), np.diag([2, 2, 4, 1]))
    line = fails(capsys, root / "out", "--truth", root / "truth", "-o", root / "r.html")
    assert "differ in geometry" in line and "one.nii.gz" in line
    assert not (root / "r.html").exists()


def test_a_ct_instead_of_a_mask(root, capsys):
    (root / "truth" / "two.nii.gz").write_bytes((root / "in" / "two_0000.nii.gz").read_bytes())
    line = fails(capsys, root / "out", "--truth", root / "truth", "-o", root / "r.html")
    assert "two.nii.gz: not a mask" in line


def test_no_truth_for_any_case(root, capsys):
    assert "no truth for any case" in fails(capsys, root / "out", "--truth", root / "in", "-o", root / "r.html")


def test_a_mask_of_another_ct(root, capsys):
    save_ct(root / "in" / "one_0000.nii.gz", smooth_hu((9, 48, 48)))
    assert "differ in shape" in fails(capsys, root / "out", "-o", root / "r.html")


@pytest.mark.filterwarnings("ignore:Glyph")  # of the curves' font
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_terminal_cannot_say(tmp_path, monkeypatch, encoding):
    root = make_root(tmp_path, ("肝$_$", "é", os.fsdecode("肾".encode("gbk"))))
    stdout = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    html = report(root, "--truth", root / "truth", pictures=True)
    said = stdout.buffer.getvalue().decode(encoding)
    assert "\\udcc9\\udcf6\n" in said and ("肝$_$\n" if encoding == "utf-8" else "\\u809d$_$\n") in said
    table = Page(html).table("DSC", "mean")
    assert {"肝$_$", "\\udcc9\\udcf6", "é"} <= set(table)
    with (root / "report" / "volumes.csv").open(encoding="utf-8") as file:
        assert {row["Name"] for row in csv.DictReader(file)} == {"肝$_$", "\\udcc9\\udcf6", "é"}


def test_on_a_full_disk_the_report_of_before_stands(root, capsys, monkeypatch):
    before = report(root)
    capsys.readouterr()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    line = fails(
        capsys, root / "out", "--truth", root / "truth", "-o", root / "report" / "report.html", "--no-pictures"
    )
    assert line == f"error: [Errno 28] No space left on device: '{root / 'report' / 'report.html'}'"
    assert (root / "report" / "report.html").read_text() == before
    assert sorted(path.name for path in (root / "report").iterdir()) == ["report.html", "volumes.csv"]


# --- what is there and what is not ---


def test_newest_run_and_named_run(root):
    newer = write_run(root, "20260103T000000Z")
    assert find_run(root / "out") == newer
    assert find_run(root / "out" / "logs" / "20260101T000000Z").name == "20260101T000000Z"


def test_hidden_folders_and_files_are_passed_over(root):
    expected = Page(report(root, "--truth", root / "truth")).tables
    shutil.copytree(root / "out" / "logs" / "20260101T000000Z", root / "out" / "logs" / ".20270101T000000Z")
    (root / "out" / "efficiency").mkdir()
    for name in ("._one_0000.json", ".one_0000.json"):
        (root / "out" / "efficiency" / name).write_text('{"run": "20260101T000000Z", "program_s": 5.0, "time": 7.5}')
    (root / "truth" / "._one.nii.gz").write_bytes(b"\0\5\x16\7")
    assert find_run(root / "out").name == "20260101T000000Z"
    assert Page(report(root, "--truth", root / "truth")).tables == expected


def test_metres_and_a_fourth_dimension_of_1_change_nothing(root):
    expected = Page(report(root, "--truth", root / "truth")).tables
    for path in (root / "out" / "one.nii.gz", root / "truth" / "one.nii.gz", root / "truth" / "two.nii.gz"):
        image = nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), np.diag([0.002, 0.002, 0.005, 1]))
        image.header.set_xyzt_units("meter")
        nibabel.save(image, path)
    for path in (root / "in" / "three_0000.nii.gz", root / "out" / "three.nii.gz"):
        save(path, np.asarray(nibabel.load(path).dataobj)[..., None])
    assert Page(report(root, "--truth", root / "truth", pictures=True)).tables == expected


def test_moved_inputs_are_found_again(root):
    (root / "in").rename(root / "elsewhere")
    html = report(root, pictures=True)
    assert html.count("its CT is not where the run found it") == 3 and "data:image/webp" not in html
    assert "data:image/webp" in report(root, "--inputs", root / "elsewhere", pictures=True)


def test_files_that_changed_since_are_noted(root):
    run = find_run(root / "out") / "run.json"
    content = json.loads(run.read_text())
    content["cases"][0] |= {"mask_sha256": "0" * 64, "input_sha256": "0" * 64}
    run.write_text(json.dumps(content))
    assert report(root, pictures=True).count("it has been changed since") == 2


def test_run_that_was_killed(root):
    folder = write_run(root, "20260104T000000Z", exit_status=None, monitor={})
    with (folder / "monitor.csv").open("a") as file:
        file.write("3.5,,,")  # cut off
    html = report(root)
    assert "did not come to its end" in html and "data:image/svg" in html
    (folder / "monitor.csv").unlink()
    assert "no curves" in report(root)


def test_no_pictures(root):
    assert "data:image/webp" not in report(root, "--no-pictures")


def test_the_applications_own_record_is_understood(root, run_app, tmp_path):
    outputs = tmp_path / "masks"
    (root / "in" / "broken_0000.nii.gz").write_bytes(gzip.compress(b"no scan"))
    assert run_app("--inputs", root / "in", "--outputs", outputs, "--quiet").status == 1
    run = read_run(outputs)
    assert [case.status for case in run.cases] == ["failed", "done", "done", "done"]
    assert run.samples and waiting_s(run.samples) >= 0
    record = json.loads((run.folder / "run.json").read_text())
    for case, entry in zip(run.cases, record["cases"], strict=True):
        said = report_case(case, None, (), pictures=False)
        assert not said.notes
        recorded = {name: organ["ml"] for name, organ in entry.get("organs", {}).items()}
        assert {ORGANS[k - 1].abbreviation: volume.ml for k, volume in said.volumes.items()} == pytest.approx(recorded)
    assert main([str(outputs), "-o", str(tmp_path / "r.html"), "--no-pictures"]) == 0


@pytest.mark.skipif(not (CT_DIR / "labelled").is_dir(), reason="no real scans: set FLARE22_CT_DIR")
def test_real_organs_are_plausible():
    """Of the organs that doctors drew in whole scans, few may be marked; the spleen of 3 l must be."""
    marks = {}
    for path in sorted((CT_DIR / "labelled" / "labels").glob("btcv*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        record = CaseRecord(name, "done", None, (), {}, ct=None, mask=path, sums={})
        volumes = report_case(record, None, (), pictures=False).volumes
        marks |= {(name, label): volume.mark for label, volume in volumes.items() if label != 12}
    assert marks["btcv0009", 3] == "large" and marks["btcv0023", 9] == "absent"
    assert sum(map(bool, marks.values())) < 0.05 * len(marks), {key: word for key, word in marks.items() if word}


def test_dicom_and_folders_below_have_pictures_too(tmp_path, run_app):
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    Series(hu=smooth_hu((3, 48, 64)), number=1).write(inputs / "study")
    Series(hu=smooth_hu((3, 48, 64), seed=1), number=2).write(inputs / "study")
    save_ct(inputs / "below" / "x.nii.gz")
    assert run_app("--inputs", inputs, "--outputs", outputs, "--quiet").status == 0

    def pictured(*arguments):
        assert main([str(outputs), "-o", str(tmp_path / "r.html"), *map(str, arguments)]) == 0
        page = (tmp_path / "r.html").read_text()
        return [name for name in ("study_1", "study_2", "below_x") if f'alt="{name}' in page]

    assert pictured() == ["study_1", "study_2", "below_x"]
    inputs.rename(tmp_path / "elsewhere")
    assert pictured() == []
    assert pictured("--inputs", tmp_path / "elsewhere") == ["study_1", "study_2", "below_x"]
