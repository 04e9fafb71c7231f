"""What a network finds where there is no organ, before traces are taken for none."""

import numpy as np
import pytest
import torch

from app.inference import segment_volume
from app.options import WEIGHTS
from app.segment import Segmenter
from app.weights import load_weights
from tests.scans import save_weights
from tests.training_data import add_case
from training import negatives
from training.quality_phantom import quality_phantom


def test_every_negative_case_gets_a_line_with_traces(tmp_path, monkeypatch, capsys):
    hu, labels, spacing_mm = quality_phantom(0, 64, 6)
    for name, organs in (("phantom", labels), ("patient", labels + np.uint8(1))):
        add_case(tmp_path / "store", name, hu, organs, spacing_mm)
    add_case(tmp_path / "store", "head", hu, labels, spacing_mm)
    training = {"stages": [{"data": None}, {"data": {"patients": ["head", "patient"]}}]}
    weights = save_weights(tmp_path / "random.pt", training=training, spacing_mm=[0.5, 6.0])
    monkeypatch.setattr("app.segment.segment", lambda network, hu, **_: speck(hu))
    monkeypatch.setattr("sys.argv", ["negatives", str(weights), "--store", str(tmp_path / "store"), "--device", "cpu"])
    negatives.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # 60 pixels of 5.9375 mm in a slice of 3 mm, less than the program keeps; none of the patient, who has organs.
    speck_ml = ["6.3", "ml", "Spleen", "6.3"]
    assert lines == [["head", "trained", "on", *speck_ml], ["phantom", "kept", "out", *speck_ml]]


def test_what_cannot_be_used_is_named(tmp_path, monkeypatch):
    add_case(tmp_path / "store", "patient", np.zeros((1, 8, 8), np.int16), np.ones((1, 8, 8), np.uint8))
    weights = save_weights(tmp_path / "random.pt", training={"stages": []})
    for file, message in ((tmp_path / "no.pt", r"no\.pt"), (weights, "store: no case without organs")):
        monkeypatch.setattr("sys.argv", ["negatives", str(file), "--store", str(tmp_path / "store"), "--device", "cpu"])
        with pytest.raises(SystemExit, match=rf"training\.negatives: .*{message}"):
            negatives.main()


def speck(hu):
    """60 pixels of spleen in one slice."""
    labels = np.zeros(hu.shape, np.uint8)
    labels[2, 20:26, 20:30] = 3
    return labels


@pytest.mark.parametrize("seed", [100, 101])
def test_the_shipped_weights_leave_phantoms_empty(seed):
    """Of seeds that no training drew; weights that had seen heads and thighs alone found litres of liver in them."""
    hu, _, spacing_mm = quality_phantom(seed, 448, 4)
    weights = load_weights(WEIGHTS)
    segmenter = Segmenter(weights, torch.device("cpu"), negatives.BUDGET_MIB)
    labels = segment_volume(segmenter, hu, spacing_mm, weights.spacing_mm, weights.slice_mm, keep_traces=True).labels
    assert np.count_nonzero(labels) * np.prod(spacing_mm) / 1000 < 5
