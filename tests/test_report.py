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
import xml.etree.ElementTree as ElementTree

import nibabel
import numpy as np
import pytest
from PIL import Image

from app.labels import ORGANS
from app.plausible import plausible_ml
from evaluation import accuracy
from evaluation.organs import ALL_LABELS
from evaluation.report.__main__ import main
from evaluation.report.case import report_case
from evaluation.report.curves import stage_spans, waiting_s
from evaluation.report.run import find_run, read_run
from evaluation.report.views import FALSE_NEGATIVE, FALSE_POSITIVE, Scan, displayed, organ_strip, overviews
from tests.dicom_series import Series
from tests.label_maps import save
from tests.scans import save_ct, smooth_hu

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


def tables_of(html):
    """Of the page, which is well-formed XML: a table is a list of rows, a row a list of its cells' text."""
    return [
        [["".join(cell.itertext()).strip() for cell in row] for row in table.iter("tr")]
        for table in ElementTree.fromstring(html).iter("table")
    ]


def table_of(html, *heads):
    """{first cell: the others} of the rows under the table's heads, of which these are the first."""
    (found,) = [table for table in tables_of(html) if tuple(table[0][: len(heads)]) == heads]
    return {row[0]: row[1:] for row in found[1:]}


def body(seed):
    """(x, y, z) labels: a box for each organ, side by side; none in the first and last slice."""
    random = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    for label in ALL_LABELS:
        x, y = 4 + 16 * ((label - 1) % 4), 4 + 14 * ((label - 1) // 4)
        size = random.integers(5, 12, 2)
        labels[x : x + size[0], y : y + size[1], random.integers(2, 8) : random.integers(14, 22)] = label
    return labels


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path)


def make_root(root, names=NAMES):
    """A run of three cases and one that failed, with truths: in/, out/, truth/."""
    random = np.random.default_rng(9)
    for seed, name in enumerate(names):
        labels = body(seed)
        hu = np.where(labels > 0, 60 + 8 * labels.astype(np.int16), -80).astype(np.int16)
        save(root / "in" / f"{name}_0000.nii.gz", hu + random.integers(-9, 9, SHAPE).astype(np.int16), AFFINE)
        save(root / "truth" / f"{name}.nii.gz", labels, AFFINE)
        found = np.roll(labels, seed, axis=0)
        found[found == 9] = 0  # the gallbladder is never found
        save(root / "out" / f"{name}.nii.gz", found, AFFINE)
    write_run(root, names=names)
    return root


def write_run(root, started="20260101T000000Z", gpu="", names=NAMES, **changes):
    folder = root / "out" / "logs" / started
    folder.mkdir(parents=True)

    def entry(name, status="done", error=None, **more):
        files = {"input": str(root / "in" / f"{name}_0000.nii.gz"), "mask": str(root / "out" / f"{name}.nii.gz")}
        return {"name": name, **files, "status": status, "error": error, **more}

    seconds = {"preprocess": 0.1, "segment": 0.75, "write": 0.05, "read": 0.4}
    cases = [entry(name, warnings=[], seconds=seconds) for name in names]
    cases[0]["quality"] = {"verdict": "implausible", "reasons": ["no <lung>", "no spine"]}
    cases[1]["quality"] = {"verdict": "ok", "reasons": []}
    cases[0]["warnings"] = ["air < -1000 HU & <script>alert(1)</script>"]
    cases.insert(1, entry("broken", "failed", "broken_0000.nii.gz: truncated <b>"))
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


def change_record(root, change):
    """Let `change` edit run.json's content."""
    path = find_run(root / "out") / "run.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def record_of(root, name):
    (record,) = [case for case in read_run(root / "out").cases if case.name == name]
    return record


def report(root, *options, pictures=False, status=0):
    output = root / "report" / "report.html"
    options = [*options] if pictures else ["--no-pictures", *options]
    assert main([str(root / "out"), "-o", str(output), *map(str, options)]) == status
    return output.read_text()


def decoded(uri):
    kind, data = uri.split(",", 1)
    data = base64.b64decode(data)
    return data.decode() if "svg" in kind else np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


# --- the page ---


def test_page_is_self_contained_and_every_image_is_described(root):
    html = report(root, "--truth", root / "truth", pictures=True)
    page = ElementTree.fromstring(html)
    images = [*page.iter("img")]
    assert len(images) > 3 * 13
    for image in images:
        assert len(image.get("alt")) > 20 and image.get("src").startswith("data:image/")
        picture = decoded(image.get("src"))
        if isinstance(picture, str):
            assert "<svg" in picture and not re.search(r"(href|src)=.(?!#)", picture) and "url(http" not in picture
        else:
            assert picture.shape[:2] == (int(image.get("height")), int(image.get("width")))
    ids = [f"#{element.get('id')}" for element in page.iter("h2")]
    assert [element.get("href") for element in page.iter("a")] == ids and len(ids) == 8
    assert not {"script", "link", "iframe", "object"} & {element.tag for element in page.iter()}
    assert "@import" not in html and "url(" not in html and "http" not in re.sub(r"data:image[^\"]*", "", html)


def test_failures_warnings_and_quality_are_shown_as_text(root):
    html = report(root)
    assert "<b>broken</b> failed: broken_0000.nii.gz: truncated &lt;b&gt;" in html
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html
    assert table_of(html, "case", "quality", "why") == {
        "one": ["implausible", "no <lung>no spine"],
        "three": ["ok", ""],
    }
    assert "no &lt;lung&gt;<br/>no spine" in html
    assert '<p><span class="poor">implausible</span>: no &lt;lung&gt;; no spine</p>' in html
    places = ("truncated", 'id="quality"', 'id="organ-volumes"', "no &lt;lung&gt;; no spine")
    assert sorted(places, key=html.index) == list(places)
    change_record(root, lambda content: [case.pop("quality", None) for case in content["cases"]])  # of an older program
    assert 'id="quality"' not in report(root)


@pytest.mark.parametrize(
    ("organs", "cases"),
    [("1-11,13", ["one", "three", "two"]), ("case\tannotated\none\t1-11,13\ntwo\tLiver,Spleen\n", ["one", "two"])],
    ids=["list", "table"],
)
def test_scores_are_those_of_accuracy(root, tmp_path, capsys, organs, cases):
    if len(cases) == 2:
        (tmp_path / "organs.tsv").write_text(organs)
        organs = str(tmp_path / "organs.tsv")
        (root / "truth" / "three.nii.gz").write_bytes(b"not even read")
    html = report(root, "--truth", root / "truth", "--organs", organs)
    assert ("the table of --organs does not name three: not scored" in capsys.readouterr().err) == (len(cases) == 2)
    argv = [str(root / "out"), str(root / "truth"), "-o", str(tmp_path / "s.csv"), "--organs", organs]
    assert accuracy.main([*argv, "--workers", "1"]) == 3 - len(cases)
    summary = json.loads((tmp_path / "s.json").read_text())
    with (tmp_path / "s.csv").open() as file:
        per_case = {row["Name"].removesuffix(".nii.gz"): row for row in csv.DictReader(file)}
    table = table_of(html, "organ", "DSC")
    scored = [organ for organ in ORGANS if organ.label != 12]
    assert list(table) == [*(organ.name for organ in scored), "mean of the organs"]
    for organ in scored:
        statistics = summary["per_organ"][organ.abbreviation]
        column = [float(cell) for case in per_case.values() if (cell := case[f"{organ.abbreviation}_DSC"])]
        expected = [*statistics["DSC"].values(), min(column), max(column), *statistics["NSD"].values()]
        assert table[organ.name][:7] == [*(f"{value:.4f}" for value in expected), str(statistics["n"])]
    assert table["spleen"][-2:] == ["0.9208", "0.8784"]  # the paper's Table 3
    assert table["mean of the organs"][0] == f"{summary['over_organs']['DSC']['mean']:.4f}"
    for metric in ("DSC", "NSD"):
        rows = table_of(html, metric, "mean")
        assert list(rows) == cases
        for name, (mean, *scores) in rows.items():
            assert scores == [per_case[name][f"{organ.abbreviation}_{metric}"] for organ in scored]
            assert float(mean) == pytest.approx(np.mean([float(score) for score in scores if score]), abs=1e-4)


def test_best_and_worst_cases_stand_side_by_side(root):
    html = report(root, "--truth", root / "truth", pictures=True)
    dsc = {name: float(row[0]) for name, row in table_of(html, "DSC", "mean").items()}
    best, worst = max(dsc, key=dsc.get), min(dsc, key=dsc.get)
    assert [f"best: {best}", f"worst: {worst}"] == re.findall(r"(?:best|worst): \w+", html)


def test_case_without_mask_scores_zero(root):
    save(root / "truth" / "broken.nii.gz", body(5), AFFINE)
    assert table_of(report(root, "--truth", root / "truth"), "DSC", "mean")["broken"] == ["0.0000"] * 14


def test_volumes_csv_counts_voxels(root):
    table = table_of(report(root), "ml", "Liver")
    with (root / "report" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["Name"], row["Organ"]) for row in rows] == [(n, organ.abbreviation) for n in NAMES for organ in ORGANS]
    for row, organ in zip(rows, 3 * ORGANS, strict=True):
        labels = np.asarray(nibabel.load(root / "out" / f"{row['Name']}.nii.gz").dataobj)
        voxels = np.argwhere(labels == organ.label)
        ml = len(voxels) * 0.02  # 2 x 2 x 5 mm
        limits = low, high = plausible_ml(organ.label, 5 * len(set(voxels[:, 2])))
        columns = ("ml", "plausible_low_ml", "plausible_high_ml")
        assert [float(row[column]) for column in columns] == pytest.approx([ml, *limits], abs=0.01)
        assert row["mark"] == ("absent" if not ml else "small" if ml < low else "large" if ml > high else "")
        cell = table[row["Name"]][organ.label - 1]
        assert cell.startswith(f"{ml:.1f}") and (row["mark"] == "absent") == cell.endswith("not found")
    assert {"small", "absent"} <= {row["mark"] for row in rows}


def test_an_organ_at_the_end_of_the_scan_is_not_called_small(root):
    labels = np.zeros(SHAPE, np.uint8)
    labels[:10, :10, -3:] = 1
    save(root / "out" / "one.nii.gz", labels, AFFINE)
    assert report_case(record_of(root, "one"), None, (), pictures=False).volumes[1].mark == ""


def test_length_runs_along_the_body_even_where_slices_are_thick_and_pitched(root):
    """Coronal slices 5 mm apart, pitched by 12 degrees: a step between them rises by more mm than one up a column."""
    sin, cos = np.sin(np.radians(12)), np.cos(np.radians(12))
    affine = np.diag([0.8, 1, 1, 1.0])
    affine[1:3, 1], affine[1:3, 2] = np.array([-sin, cos]) * 0.8, np.array([cos, sin]) * 5
    labels = np.zeros((60, 320, 8), np.uint8)
    labels[20:45, 10:310, 3:5] = 5
    save(root / "out" / "one.nii.gz", labels, affine)
    volume = report_case(record_of(root, "one"), None, (), pictures=False).volumes[5]
    assert (volume.low_ml, volume.high_ml) == pytest.approx(plausible_ml(5, 300 * 0.8))


def test_every_second_is_accounted_for(root):
    table = table_of(report(root), "stage", "s")
    seconds = {"start-up": 1.25, "waiting for a CT": 0.5, "preprocess": 0.3, "segment": 2.25, "write": 0.15}
    seconds |= {"everything else": 0.55, "whole run": 5.0}
    assert {stage: float(row[0]) for stage, row in table.items()} == seconds
    assert table["segment"][1:3] == ["0.75", "45.0%"]


def test_what_efficiency_measured_around_the_run_is_added(root):
    folder = root / "out" / "efficiency"
    folder.mkdir()
    (folder / "other.json").write_text('{"run": "20260102T000000Z", "program_s": 5.0, "time": 9.0}')
    (folder / "one_0000.json").write_text('{"run": "20260101T000000Z", "program_s": 5.0, "time": 7.5}')
    table = table_of(report(root), "stage", "s")
    assert table["outside the program"][0] == "2.50" and table["whole run"][0] == "7.50"


@pytest.mark.parametrize(("gpu", "shown"), [("", False), ("1500.0", True)])
def test_curves_have_a_gpu_panel_where_there_was_one(root, gpu, shown):
    write_run(root, "20260102T000000Z", gpu)
    (image,) = ElementTree.fromstring(report(root)).iter("img")
    assert ("GPU memory up to 1500 MB" in image.get("alt")) == shown
    assert "svg" in image.get("src")[:30] and "RAM of this run up to 410 MB" in image.get("alt")


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
    record, truth = record_of(root, "two"), root / "truth" / "two.nii.gz"
    before = report_case(record, truth, ALL_LABELS)
    for path in (record.ct, record.mask, truth):
        turned = nibabel.load(path).as_reoriented(nibabel.orientations.axcodes2ornt("PSL"))
        save(path, np.asarray(turned.dataobj), turned.affine)
    assert nibabel.aff2axcodes(nibabel.load(truth).affine) != ("R", "A", "S")
    after = report_case(record, truth, ALL_LABELS)
    assert after._replace(scores={}) == before._replace(scores={})  # the rules of scoring look at the file's axes


def scan_of(prediction, truth=None):
    return Scan(np.zeros(prediction.shape, np.int16), prediction, truth, (5.0, 1.0, 1.0))


def near(picture, colour):
    """How many pixels are about of a colour over mid-grey, half covered or more."""
    off_grey, towards = decoded(picture.uri) - 102.0, np.array(colour) - 102.0  # 0 HU in the window is 102
    cosine = off_grey @ towards / (np.linalg.norm(off_grey, axis=2) * np.linalg.norm(towards) + 1e-9)
    return np.count_nonzero(cosine > 0.97)


def box(x, y, label=1):
    labels = np.zeros((9, 80, 80), np.uint8)
    labels[2:7, slice(*y), slice(*x)] = label
    return labels


def test_errors_are_filled_in_their_colours_and_told():
    truth = box((20, 60), (20, 60))
    for found, *filled, share in (((20, 60), 0, 0, 100), ((20, 40), 0, 1, 50), ((5, 60), 1, 0, 72)):
        scan = scan_of(box(found, (20, 60)), truth)
        strip = organ_strip("case", scan, 1, 1.0)
        assert [near(strip, colour) > 500 for colour in (FALSE_POSITIVE, FALSE_NEGATIVE)] == filled
        assert f"; {share}% of the organs' pixels are correct" in overviews("case", scan)["errors"].alt


def test_an_organ_that_was_missed_is_shown_where_it_is():
    truth, nothing = box((10, 20), (10, 20), 8), np.zeros((9, 80, 80), np.uint8)
    assert organ_strip("c", scan_of(nothing), 8, 0.0) is None
    strip = organ_strip("c", scan_of(nothing, truth), 8, 0.0)
    assert "not found" in strip.alt and near(strip, FALSE_NEGATIVE) > 500


@pytest.mark.parametrize(("annotated", "share"), [((1, 2), "100%"), ((1, 2, 12), "0%")])
def test_organs_not_annotated_are_not_shown_as_wrong(root, annotated, share):
    labels = np.zeros(SHAPE, np.uint8)
    truth = save(root / "truth" / "one.nii.gz", labels, AFFINE)
    labels[20:50, 20:40, 5:15] = 12
    save(root / "out" / "one.nii.gz", labels, AFFINE)
    case = report_case(record_of(root, "one"), truth, annotated)
    assert f"{share} of the organs' pixels" in case.overviews["worst errors"].alt


# --- wrong input ---


def fails(capsys, *arguments):
    assert main([*map(str, arguments)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: no truth for")]
    assert line.startswith("error: ")
    return line


def test_what_is_not_there(root, capsys):
    output = root / "r.html"
    assert "no such folder" in fails(capsys, root / "nowhere", "-o", output)
    assert "no run.json" in fails(capsys, root / "in", "-o", output)
    assert "no truth for any case" in fails(capsys, root / "out", "--truth", root / "in", "-o", output)
    assert "--inputs: " in fails(capsys, root / "out", "--inputs", root / "nowhere", "-o", output)


@pytest.mark.parametrize("text", ['{"cases": 3}', '{"cases": [{"name": "x"}]}', '{"cases": []}', '{"format": 2}'])
def test_a_damaged_record(root, capsys, text):
    record = find_run(root / "out") / "run.json"
    record.write_text(text)
    assert str(record) in fails(capsys, root / "out", "-o", root / "r.html")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda root: save(root / "truth" / "one.nii.gz", body(0), np.diag([2, 2, 4, 1])), "differ in geometry"),
        (lambda root: shutil.copy(root / "in" / "one_0000.nii.gz", root / "truth" / "one.nii.gz"), "not a mask"),
        (lambda root: (root / "out" / "one.nii.gz").write_bytes(b"no mask"), "cannot be read"),
        (lambda root: save_ct(root / "in" / "one_0000.nii.gz", smooth_hu((9, 48, 48))), "differ in shape"),
    ],
)
def test_a_case_that_cannot_be_used_has_its_error_in_the_report(root, capsys, spoil, cause):
    spoil(root)
    html = report(root, "--truth", root / "truth", pictures=True, status=1)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (
        cause in line and "one" in line and f"<b>one</b>: {line.removeprefix('error: ')}" in html.replace("&#39;", "'")
    )
    assert list(table_of(html, "DSC", "mean")) == list(table_of(html, "ml", "Liver")) == ["three", "two"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_terminal_cannot_say(tmp_path, monkeypatch, encoding):
    names = ("肝$_$", "é", os.fsdecode("肾".encode("gbk")))
    root = make_root(tmp_path, names)
    stdout = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    html = report(root, "--truth", root / "truth", pictures=True)
    said = stdout.buffer.getvalue().decode(encoding)
    assert "\\udcc9\\udcf6\n" in said and ("肝$_$\n" if encoding == "utf-8" else "\\u809d$_$\n") in said
    assert set(table_of(html, "DSC", "mean")) == {"肝$_$", "\\udcc9\\udcf6", "é"}
    assert "<h3>1. 肝$_$</h3>" in html
    curves = decoded(re.search(r"data:image/svg[^\"]*", html)[0])
    assert re.findall(r"<!-- (.*) -->\s*<g style=\"fill: #ffffff", curves) == ["1"]  # what is written on the stages
    with (root / "report" / "report.csv").open(encoding="utf-8") as file:
        assert {row["Name"] for row in csv.DictReader(file)} == {"肝$_$", "\\udcc9\\udcf6", "é"}


def test_on_a_full_disk_the_report_of_before_stands(root, capsys, monkeypatch):
    before, output = report(root), root / "report" / "report.html"
    capsys.readouterr()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    line = fails(capsys, root / "out", "--truth", root / "truth", "-o", output, "--no-pictures")
    assert line == f"error: [Errno 28] No space left on device: '{output}'"
    assert output.read_text() == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["report.csv", "report.html"]


# --- what is there and what is not ---


def test_the_newest_run_is_taken_and_hidden_folders_and_files_are_passed_over(root):
    expected = tables_of(report(root, "--truth", root / "truth"))
    shutil.copytree(root / "out" / "logs" / "20260101T000000Z", root / "out" / "logs" / ".20270101T000000Z")
    (root / "out" / "efficiency").mkdir()
    for name in ("._one_0000.json", ".one_0000.json"):
        (root / "out" / "efficiency" / name).write_text('{"run": "20260101T000000Z", "program_s": 5.0, "time": 7.5}')
    (root / "truth" / "._one.nii.gz").write_bytes(b"\0\5\x16\7")
    assert find_run(root / "out").name == "20260101T000000Z"
    assert tables_of(report(root, "--truth", root / "truth")) == expected
    newer = write_run(root, "20260103T000000Z")
    assert find_run(root / "out") == newer
    assert find_run(newer.with_name("20260101T000000Z")).name == "20260101T000000Z"


def test_files_that_changed_since_are_noted(root):
    change_record(root, lambda content: content["cases"][0].update(mask_sha256="0" * 64, input_sha256="0" * 64))
    assert report(root, pictures=True).count("it has been changed since") == 2


def test_run_that_was_killed(root):
    folder = write_run(root, "20260104T000000Z", exit_status=None, monitor={})
    with (folder / "monitor.csv").open("a") as file:
        file.write("3.5,,,")  # cut off
    html = report(root)
    assert "did not come to its end" in html and "data:image/svg" in html
    (folder / "monitor.csv").unlink()
    assert "no curves" in report(root)


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
    assert (tmp_path / "r.html").read_text().count("its CT is not where the run found it") == 3
    assert pictured("--inputs", tmp_path / "elsewhere") == ["study_1", "study_2", "below_x"]


def test_of_two_series_without_a_number_each_case_has_its_own(tmp_path, run_app):
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    for number, slices in ((1, 3), (2, 5)):
        Series(hu=smooth_hu((slices, 48, 64)), number=number, tags={"SeriesNumber": None}).write(inputs / "study")
    assert run_app("--inputs", inputs, "--outputs", outputs, "--quiet").status == 0
    assert {case.name: len(case.ct.files) for case in read_run(outputs).cases} == {"study_x": 3, "study_x_2": 5}
    assert main([str(outputs), "-o", str(tmp_path / "r.html")]) == 0
