"""Pieces there and back: what arrives is what was sent, and what is damaged on the way is named."""

import subprocess

import numpy as np
import pytest
import torch

from app.weights import load_weights
from tests.training_data import add_case, config, phantom_store
from training import checkpoint
from training.carry import main
from training.pieces import PiecesError, join, split
from training.store import read_cases, read_pixels
from training.train import Run


@pytest.fixture
def folder(tmp_path):
    """Files in folders, 3.5 MiB."""
    rng = np.random.default_rng(0)
    for name, size in (("a/one", 2_500_000), ("a/b/two", 1_200_000), ("empty", 0), ("three", 10)):
        path = tmp_path / "sent" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(size))
    return tmp_path / "sent"


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_arrives_is_what_was_sent(folder, tmp_path):
    pieces = split(folder, tmp_path / "pieces", 1)
    assert len(pieces) == 4 and all(piece.stat().st_size <= 2**20 for piece in pieces)
    sums = subprocess.run(["sha256sum", "-c", "pieces.sha256"], cwd=tmp_path / "pieces", capture_output=True)
    assert sums.returncode == 0
    join(tmp_path / "pieces", tmp_path / "arrived")
    assert content(tmp_path / "arrived") == content(folder)
    with pytest.raises(PiecesError, match="holds pieces already"):
        split(folder, tmp_path / "pieces", 1)


@pytest.mark.parametrize("fault", ["missing", "flipped", "short", "no sums"])
def test_damage_is_named_and_nothing_is_unpacked(folder, tmp_path, fault, capsys):
    piece = split(folder, tmp_path / "pieces", 1)[2]
    data = bytearray(piece.read_bytes())
    data[1000] ^= 1
    {
        "missing": piece.unlink,
        "flipped": lambda: piece.write_bytes(data),
        "short": lambda: piece.write_bytes(data[:-1]),
        "no sums": (tmp_path / "pieces" / "pieces.sha256").unlink,
    }[fault]()
    assert main(["unpack", str(tmp_path / "pieces"), str(tmp_path / "arrived")]) == 1
    assert ("pieces.sha256 is missing" if fault == "no sums" else piece.name) in capsys.readouterr().err
    assert not (tmp_path / "arrived").exists()


def test_a_store_arrives_rounded_inside_the_noise(tmp_path):
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 200, (3, 64, 64)).round().clip(-1024, 3000).astype(np.int16)
    labels = rng.integers(0, 14, hu.shape).astype(np.uint8)
    add_case(tmp_path / "store", "a", hu, labels)
    add_case(tmp_path / "store", "cut", hu.clip(None, 275), labels, saturated_hu=275)
    add_case(tmp_path / "store", "u", hu, None)
    pieces = str(tmp_path / "pieces")
    assert main(["store", str(tmp_path / "store"), pieces, "--step-hu", "8", "--piece-mib", "0.01"]) == 0
    assert main(["unpack", pieces, str(tmp_path / "there")]) == 0
    for before, after in zip(read_cases(tmp_path / "store"), read_cases(tmp_path / "there"), strict=True):
        assert (after.name, after.mean_hu, after.std_hu, after.organ_pixels) == (
            before.name, before.mean_hu, before.std_hu, before.organ_pixels,
        )  # fmt: skip
        (sent, sent_labels), (arrived, arrived_labels) = (
            read_pixels(tmp_path / name, case) for name, case in (("store", before), ("there", after))
        )
        assert np.array_equal(sent_labels, arrived_labels)
        assert np.abs(arrived - sent.clip(-250, 1300)).max() <= 4
        limit_hu = before.saturated_hu or 3000
        assert np.array_equal(arrived >= limit_hu, sent >= limit_hu)


def test_a_checkpoint_comes_home_as_weights(tmp_path, capsys):
    store = phantom_store(tmp_path / "store", 32, [17], labelled=1)
    run = Run(config(store, tmp_path / "run", lambda_=0.0))
    run.save()
    pieces = str(tmp_path / "pieces")
    assert main(["checkpoint", str(run.path), pieces, "--piece-mib", "15"]) == 0
    assert "4 pieces, 58.8 MiB" in capsys.readouterr().out  # two branches of 29 MiB
    assert main(["weights", pieces, str(tmp_path / "w.pt")]) == 0
    images = torch.randn(1, 1, 32, 32)
    run.branches[0].eval()
    with torch.no_grad():
        sent = run.branches[0](images)
        arrived = load_weights(tmp_path / "w.pt").network(torch.device("cpu"), torch.float32)(images)
    torch.testing.assert_close(arrived, sent, rtol=0.01, atol=0.01 * sent.abs().max().item())
    assert main(["unpack", pieces, str(tmp_path / "home")]) == 0
    branches, _ = checkpoint.load_branches(tmp_path / "home" / checkpoint.FILE_NAME)
    assert len(branches) == 2
    torch.save({}, tmp_path / "none.pt")
    assert main(["checkpoint", str(tmp_path / "none.pt"), str(tmp_path / "more")]) == 1
    assert "none.pt is not a checkpoint" in capsys.readouterr().err
