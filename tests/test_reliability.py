"""A small sample of each reliability trial: `python -m tests.reliability` is the whole of them."""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests.reliability import determinism, dicom, disks, hostile, kills, locked, long_run, metamorphic
from tests.reliability.trial import Row, main, row

SAMPLES = {
    hostile: {"files": 120, "names": 8, "seed": 1},
    dicom: {"plain": 16, "compressed": 3, "seed": 1},
    kills: {"kills": 2, "terminations": 1, "interrupts": 1, "seed": 1},
    disks: {"disks": 2, "changes": 1, "pairs": 1, "seed": 1},
    long_run: {"cases": 30, "monitor_percent": 20},  # of a core, whatever else the machine does
    determinism: {"runs": 2, "slices": 4},  # of one alone, number formats may differ by more than the 0.1 %
    metamorphic: {"orientations": 2, "scans": 1, "slices": 4},
    locked: {"changes": 2, "runs": 1, "seed": 1},
}


@pytest.mark.parametrize("module", SAMPLES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_nothing_is_lost(module):
    with tempfile.TemporaryDirectory() as folder:  # pytest's are closed to other users, of whom a trial makes one
        for entry in module.trial(Path(folder), **SAMPLES[module]):
            assert entry.lost == 0, entry
            assert entry.tried > 0 or entry.facts["not tried"]


def trial_of(problems):
    def trial(folder, times=3):
        assert folder.is_dir()
        yield row("what", problems, times=times)
        yield Row("elsewhere", 0, 0, {"not tried": "why"})

    return trial


def test_what_was_lost_is_counted_said_and_merged(tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.json"
    for name, problems in (("first", [[], ["wrong"]]), ("second", [[]]), ("first", [[], ["wrong", "very"], []])):
        monkeypatch.setattr(sys, "argv", ["trial", "--times", "5", "-o", str(output)])
        assert main(f"tests.reliability.{name}", trial_of(problems)) == (name == "first")
    assert "1 lost" in capsys.readouterr().out
    trials = json.loads(output.read_text())["trials"]
    assert [*trials] == ["first", "second"]
    broken, not_tried = trials["first"]["rows"]
    assert (broken["tried"], broken["lost"], broken["facts"]) == (3, 1, {"times": 5, "broken": ["wrong"]})
    assert not_tried["tried"] == 0
    assert trials["second"]["command"] == "python -m tests.reliability.second"
    assert trials["second"]["commit"] and trials["second"]["torch"]
