"""The fused network against the plain one."""

import pytest
import torch
from torch import nn

from app.fuse import fold_batch_norm, fuse
from app.network import DeepLabV3Plus
from tests.scans import needs_bfloat16, random_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))


def plain() -> DeepLabV3Plus:
    """Of random weights and random batch norm statistics, in evaluation mode."""
    network = DeepLabV3Plus()
    network.load_state_dict(random_network().state_dict())
    return network.eval()


@pytest.mark.parametrize("kind", ["folded", "fused", "by a torch that does not show the fused convolution"])
def test_outputs_stay_the_same(kind, images, monkeypatch):
    network = plain()
    if "torch" in kind:
        monkeypatch.setattr(torch.ops, "mkldnn", object())
    with torch.inference_mode():
        expected = network(images)
        changed = fold_batch_norm(network) if kind == "folded" else fuse(network, CPU)
        assert changed is network
        assert not any(isinstance(module, nn.BatchNorm2d) for module in changed.modules())
        torch.testing.assert_close(changed(images), expected, rtol=1e-4, atol=1e-4)


def test_on_a_cpu_no_relu_is_left_to_itself(images):
    network = fuse(plain(), CPU)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        network(images)
    ran = {event.key for event in profile.key_averages()}
    assert any("convolution" in name for name in ran)
    assert not {name for name in ran if "relu" in name or "clamp" in name or "add_" in name}


@needs_bfloat16
def test_bfloat16_is_near_float32(images):
    expected = plain()
    network = fuse(plain(), CPU).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.inference_mode():
        agree = network(images.bfloat16()).argmax(1) == expected(images).argmax(1)
    assert agree.float().mean() > 0.9  # random logits lie close together
