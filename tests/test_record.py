"""run.json: whole at every moment, in a folder of its own, and proof enough to skip a case."""

import csv
import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest

from app import __version__
from app import record as module
from app.record import RunRecord, finished_masks
from app.runjson import read_record


def entry(name, status="done", **sums):
    return {"name": name, "status": status, "input_sha256": "i", "mask_sha256": "m", **sums}


def recorded(folder):
    return json.loads((folder / "run.json").read_text())


def make_run(outputs, weights, *cases):
    record = RunRecord(outputs)
    record.content["weights"] = {"sha256": weights}
    for case in cases:
        record.add_case(case)
    return record


def test_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module.time, "strftime", lambda *_: "20260102T030405Z")  # all in one second
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda _: RunRecord(tmp_path / "out").folder, range(40)))
    assert len(set(folders)) == 40
    assert all(folder.parent == tmp_path / "out" / "logs" for folder in folders)
    assert tmp_path / "out" / "logs" / "20260102T030405Z" in folders


def test_the_record_after_each_case(tmp_path):
    record = RunRecord(tmp_path)
    for count, status in enumerate(("done", "failed", "skipped", "done"), start=1):
        record.add_case(entry(str(count), status))
        assert recorded(record.folder)["cases"] == record.content["cases"]
        assert len(record.content["cases"]) == count
    assert [record.count(status) for status in ("done", "failed", "skipped")] == [2, 1, 1]
    header = {"format": 1, "version": __version__, "exit_status": None}  # null: a killed run's record says so
    assert recorded(record.folder).items() >= header.items()
    assert read_record(record.folder / "run.json") == record.content
    assert sorted(path.name for path in record.folder.iterdir()) == ["run.json", "volumes.csv"]


def test_a_killed_runs_half_written_record_goes_with_the_next_run(tmp_path):
    killed = make_run(tmp_path, "w", entry("a"))
    for name in (".run.json.part", ".volumes.csv.part"):
        (killed.folder / name).write_text("{")
    RunRecord(tmp_path)
    assert sorted(path.name for path in killed.folder.iterdir()) == ["run.json", "volumes.csv"]


def test_a_living_runs_record_is_written_though_another_begins(tmp_path, monkeypatch, caplog):
    record, replace = RunRecord(tmp_path), os.replace

    def another_begins(*paths):
        monkeypatch.setattr(module.os, "replace", replace)
        RunRecord(tmp_path)
        replace(*paths)

    monkeypatch.setattr(module.os, "replace", another_begins)
    record.add_case(entry("a"))
    assert [case["name"] for case in recorded(record.folder)["cases"]] == ["a"]
    assert caplog.messages == []


def test_a_record_that_cannot_be_written_is_said_once_and_the_one_before_stands(tmp_path, monkeypatch, caplog):
    record = RunRecord(tmp_path)
    record.add_case(entry("a"))
    replace, full = os.replace, Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    monkeypatch.setattr(module.os, "replace", full)
    record.add_case(entry("b"))
    record.add_case(entry("c"))
    assert record.write() is False
    assert [case["name"] for case in recorded(record.folder)["cases"]] == ["a"]
    assert sorted(path.name for path in record.folder.iterdir()) == ["run.json", "volumes.csv"]
    assert caplog.messages == [f"{record.folder}: the record of this run cannot be written: No space left on device"]
    monkeypatch.setattr(module.os, "replace", replace)
    assert record.write() is True
    assert [case["name"] for case in recorded(record.folder)["cases"]] == ["a", "b", "c"]


def test_volumes_as_a_table(tmp_path):
    record = RunRecord(tmp_path)
    head = ["ml", "mean_hu", "sd_hu", "first_slice", "last_slice"]
    liver, absent = zip(head, (1234.5, 101.5, 20.25, 0, 30), strict=True), dict.fromkeys(head) | {"ml": 0.0}
    organs = {"Liver": dict(liver), "Spleen": absent}
    quality = {"verdict": "look", "reasons": ["no spleen"]}
    record.add_case(entry("a,\n\udcff", organs=organs, quality=quality))  # a name may be any bytes
    record.add_case(entry("b", "failed"))
    assert recorded(record.folder)["cases"][0]["name"] == "a,\n\udcff"
    with (record.folder / "volumes.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [*csv.reader(file)] == [
            ["case", "organ", *head, "quality"],
            ["a,\n\udcff", "Liver", "1234.5", "101.5", "20.25", "0", "30", "look"],
            ["a,\n\udcff", "Spleen", "0.0", "", "", "", "", "look"],
        ]


def test_what_is_finished(tmp_path):
    assert finished_masks(tmp_path / "nothing") == {}
    make_run(tmp_path, "w1", entry("a"), entry("b", "failed"))
    make_run(tmp_path, "w2", entry("a", mask_sha256="m2"))
    assert finished_masks(tmp_path) == {"a": {("i", "w1", "m"), ("i", "w2", "m2")}}


def test_a_mask_made_of_slabs_or_looks_is_not_finished_where_every_slice_is_asked_for(tmp_path):
    made = {"thin": (3, 1), "looked": (1, 8), "both": (2, 4), "all": (1, 1)}
    entries = [entry(name, slices_per_slab=slab, slabs_per_look=look) for name, (slab, look) in made.items()]
    make_run(tmp_path, "w", *entries, entry("older"))
    assert set(finished_masks(tmp_path)) == {*made, "older"}
    assert set(finished_masks(tmp_path, every_slice=True)) == {"all", "older"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *dict.fromkeys(
            (b"", b"{", b"[]", b"null", b'{"cases": 3}', b"\xff\xfe\x00"), "not the record of a run"
        ).items(),
        (b'{"cases": [{"status": "done"}]}', "not the record of a run (KeyError: 'name')"),
        (b'{"cases": [{"status": "done", "name": "a"}], "weights": 1}', None),
        (b'{"format": 2}', "a record of format 2; this program reads format 1: passed over"),
    ],
)
def test_a_record_that_cannot_be_used_proves_nothing_and_hides_nothing(tmp_path, content, said, caplog):
    make_run(tmp_path, "w", entry("a"))
    (tmp_path / "logs" / "broken").mkdir()
    (tmp_path / "logs" / "broken" / "run.json").write_bytes(content)
    for _ in range(2):  # it is said once
        assert finished_masks(tmp_path) == {"a": {("i", "w", "m")}}
    assert [f"{tmp_path}/logs/broken/run.json: {said}" in line for line in caplog.messages] == ([True] if said else [])
