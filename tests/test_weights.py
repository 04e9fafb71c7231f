"""Only a whole, unchanged weights file of this program is taken; each network is its own."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from app.network import DeepLabV3Plus
from app.weights import CLASSES, WeightsError, load_weights
from benchmarks.machine import dtypes
from tests.scans import needs_bfloat16, random_network, save_weights, smooth_hu, weights_content
from tests.test_labels import FLARE22
from training.export import write

CPU = torch.device("cpu")


@pytest.fixture
def images():
    return torch.from_numpy(smooth_hu((2, 64, 64)) / np.float32(300))[:, None]


def test_what_export_writes_is_read(weights_path):
    weights = load_weights(weights_path)
    assert weights.sha256 == hashlib.sha256(weights_path.read_bytes()).hexdigest()
    assert (weights.frame_px, weights.spacing_mm, weights.switched_off) == (64, (0.5, 1.0), ())
    assert weights.slice_mm == 3.0  # of files that do not say
    assert weights_path.stat().st_size < 2.1 * 15_343_566  # its parameters in half precision
    assert ("Background", *FLARE22) == CLASSES


def test_network_is_that_of_the_file_folded(weights_path, images):
    network = load_weights(weights_path).network(CPU, torch.float32)
    assert not network.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    stored = DeepLabV3Plus()
    stored.load_state_dict(weights_content()["state_dict"])  # float16 values
    with torch.inference_mode():
        expected, logits = stored.eval()(images), network(images)
        full = random_network()(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert (logits.argmax(1) == full.argmax(1)).float().mean() > 0.98  # halving the parameters changes little


@needs_bfloat16
def test_networks_of_one_file_are_independent(weights_path, images):
    weights = load_weights(weights_path)
    with torch.inference_mode():
        before = weights.network(CPU, torch.float32)(images)
        weights.network(CPU, torch.bfloat16)(images.bfloat16())
        assert torch.equal(weights.network(CPU, torch.float32)(images), before)


@pytest.mark.parametrize("dtype", dtypes("cpu"))
def test_a_switched_off_class_never_wins(tmp_path, images, dtype):
    on, off = (load_weights(save_weights(tmp_path / f"{i}.pt", switched_off=s)) for i, s in enumerate(([], [2, 5])))
    assert off.switched_off == (2, 5)
    with torch.inference_mode():
        images = images.to(torch.float32 if dtype == torch.int8 else dtype)
        before, after = (weights.network(CPU, dtype)(images).argmax(1) for weights in (on, off))
    assert torch.isin(before, torch.tensor([2, 5])).any()
    assert not torch.isin(after, torch.tensor([2, 5])).any()
    others = ~torch.isin(before, torch.tensor([2, 5]))
    assert torch.equal(before[others], after[others])


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "trust" not in message  # torch advises to load it without the check
    return message


@pytest.mark.fault_weights
def test_a_changed_file_is_refused_with_both_sums(tmp_path):
    path = save_weights(tmp_path / "weights.pt")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = refusal(path)
    assert expected in message
    assert hashlib.sha256(content).hexdigest() in message


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff\xfe\x00", b"0" * 64])
@pytest.mark.fault_weights
def test_a_sum_file_of_any_content_is_a_mismatch(tmp_path, weights_path, text):
    path = tmp_path / "weights.pt"
    path.symlink_to(weights_path)
    assert load_weights(path).sha256 == load_weights(weights_path).sha256  # no sum file is no matter
    (tmp_path / "weights.pt.sha256").write_bytes(text)
    assert "SHA-256 is" in refusal(path)


@pytest.mark.parametrize(
    "content", [b"", b"not weights", b"PK\x03\x04" + bytes(100), bytes(1000), b"\x80\x02}q\x00.", b"\x80", "cut"]
)
@pytest.mark.fault_weights
def test_garbage_is_refused(tmp_path, weights_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(weights_path.read_bytes()[:-1000] if content == "cut" else content)
    assert "not a weights file of this program" in refusal(path)


class Code:
    """Runs when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
@pytest.mark.fault_weights
def test_code_in_a_file_does_not_run(tmp_path, save):
    path, witness = tmp_path / "weights.pt", tmp_path / "witness"
    save(weights_content() | {"extra": Code(witness)}, path)
    assert "not a weights file of this program" in refusal(path)
    assert not witness.exists()


@pytest.mark.fault_weights
def test_a_missing_file(tmp_path):
    assert "No such file" in refusal(tmp_path / "weights.pt")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        *(({key: ...}, f"it has no '{key}'") for key in ("format", "info", "state_dict")),
        ({"format": 2}, "format 2, this program reads 1"),
        ({"info": {"classes": ["Background", "Liver"]}}, "made for other classes: Background, Liver"),
        ({"info": {"window_hu": [-160, 240]}}, r"made for the window [-160, 240] HU, not [-100, 1000]"),
        ({"info": {"frame_px": 500}}, "frame of 500 pixels"),
        ({"info": {"frame_px": 0}}, "frame of 0 pixels"),
        ({"info": {"spacing_mm": [1.0, 0.5]}}, "spacing 1.0 to 0.5 mm"),
        ({"info": {"spacing_mm": [0.0, 0.5]}}, "spacing 0.0 to 0.5 mm"),
        ({"state_dict": {}}, "not a weights file of this program"),
        ({"state_dict": None}, "not a weights file of this program"),
        ({"info": {"slice_mm": -1.0}}, "slice thickness of -1.0 mm"),
        ({"info": {"slice_mm": float("nan")}}, "slice thickness of nan mm"),
        ({"info": {"spacing_mm": None}}, "not a weights file of this program"),
    ],
)
@pytest.mark.fault_weights
def test_weights_for_something_else_are_refused(tmp_path, change, cause):
    content = weights_content()
    for key, value in change.items():
        before = content.pop(key)
        if value is not ...:
            content[key] = before | value if key == "info" else value
    torch.save(content, tmp_path / "weights.pt")
    assert cause in refusal(tmp_path / "weights.pt")


@pytest.mark.fault_weights
def test_parameters_of_another_network_are_refused(tmp_path):
    content = weights_content()
    content["state_dict"] = {name: value[:1] for name, value in content["state_dict"].items() if value.ndim}
    write(content, tmp_path / "weights.pt")
    assert "not a weights file of this program" in refusal(tmp_path / "weights.pt")
