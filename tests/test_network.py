"""Parameters and FLOPs counted by hand; the outputs against the network written again in NumPy, and torchvision's."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from app.network import DeepLabV3Plus, initialise
from tests.scans import random_network

# The network as a table: input channels, output channels, kernel, pixels per input pixel of 512 x 512 (the stride
# so far), whether batch norm follows. He et al. 2016, table 1 (18 layers); Chen et al. 2018; the paper's section 2.2.
LAYERS = [
    (1, 64, 7, 2, True),
    *[(64, 64, 3, 4, True)] * 4,
    *[(64, 128, 3, 8, True), (128, 128, 3, 8, True), (64, 128, 1, 8, True), *[(128, 128, 3, 8, True)] * 2],
    *[(128, 256, 3, 16, True), (256, 256, 3, 16, True), (128, 256, 1, 16, True), *[(256, 256, 3, 16, True)] * 2],
    *[(256, 512, 3, 16, True), (512, 512, 3, 16, True), (256, 512, 1, 16, True), *[(512, 512, 3, 16, True)] * 2],
    (512, 256, 1, 16, True),  # ASPP: 1x1
    *[(512, 256, 3, 16, True)] * 3,  # rates 6, 12, 18
    (512, 256, 1, 512, True),  # image pooling: one pixel
    (5 * 256, 256, 1, 16, True),  # the five joined
    (64, 48, 1, 4, True),  # low-level features
    (256 + 48, 14, 3, 4, False),  # the prediction: a bias instead of batch norm
]


def test_parameters_counted_by_hand():
    # A convolution has in * out * kernel^2 weights; a batch norm a weight and a bias per channel.
    by_hand = sum(i * o * k * k + (2 * o if norm else o) for i, o, k, _, norm in LAYERS)
    assert by_hand == 15_343_566
    assert sum(parameter.numel() for parameter in random_network().parameters()) == by_hand


def test_flops_counted_by_hand():
    # 2 * in * out * kernel^2 for each output pixel: a multiplication and an addition.
    by_hand = sum(2 * i * o * k * k * (512 // stride) ** 2 for i, o, k, stride, _ in LAYERS)
    assert by_hand == pytest.approx(40.56e9, rel=1e-3)
    with torch.device("meta"):
        network, image = DeepLabV3Plus().eval(), torch.empty(1, 1, 512, 512)
    with FlopCounterMode(display=False) as counter:
        network(image)
    assert counter.get_total_flops() == by_hand


# The second network: NumPy in float64, convolutions as sums of shifted images, upsampling as matrices.


def convolved(x, weight, stride=1, dilation=1):
    reach = dilation * (weight.shape[-1] // 2)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    total = 0
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            shifted = padded[:, row * dilation :: stride, column * dilation :: stride][:, :height, :width]
            total = total + np.tensordot(weight[:, :, row, column], shifted, 1)
    return total


def four_times(x):
    def matrix(size):  # output pixel i lies at (i + 0.5) / 4 - 0.5 between input pixels
        at = np.clip((np.arange(4 * size) + 0.5) / 4 - 0.5, 0, size - 1)
        return np.clip(1 - np.abs(at[:, None] - np.arange(size)), 0, None)

    return matrix(x.shape[1]) @ x @ matrix(x.shape[2]).T


def max_pooled(x):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(3, 4))


def relu(x):
    return np.maximum(x, 0)


class SecondNetwork:
    """Of one image (H, W), with the parameters of a state."""

    def __init__(self, state):
        self.values = {name: value.double().numpy() for name, value in state.items()}

    def normed(self, x, name):
        mean, variance, weight, bias = (
            self.values[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    def unit(self, x, name, stride=1, dilation=1):
        return relu(self.normed(convolved(x, self.values[f"{name}.0.weight"], stride, dilation), f"{name}.1"))

    def block(self, x, name, stride=1, dilation=1):
        inner = self.unit(x, f"{name}.conv1", stride, dilation)
        inner = self.normed(convolved(inner, self.values[f"{name}.conv2.weight"], 1, dilation), f"{name}.bn2")
        if f"{name}.shortcut.0.weight" in self.values:
            x = self.normed(convolved(x, self.values[f"{name}.shortcut.0.weight"], stride), f"{name}.shortcut.1")
        return relu(inner + x)

    def aspp(self, x):
        branches = [self.unit(x, f"aspp.branches.{i}", dilation=rate) for i, rate in enumerate((1, 6, 12, 18))]
        pooled = self.unit(x.mean(axis=(1, 2), keepdims=True), "aspp.image_pooling.1")
        return self.unit(np.concatenate([*branches, np.broadcast_to(pooled, branches[0].shape)]), "aspp.project.0")

    def logits(self, image):
        x = max_pooled(self.unit(image[None], "trunk.stem.0", stride=2))
        low = self.block(self.block(x, "trunk.layer1.0"), "trunk.layer1.1")
        x = self.block(self.block(low, "trunk.layer2.0", stride=2), "trunk.layer2.1")
        x = self.block(self.block(x, "trunk.layer3.0", stride=2), "trunk.layer3.1")
        x = self.block(self.block(x, "trunk.layer4.0", dilation=2), "trunk.layer4.1", dilation=2)
        both = np.concatenate([four_times(self.aspp(x)), self.unit(low, "low_level")])
        prediction = convolved(both, self.values["classifier.weight"])
        return four_times(prediction + self.values["classifier.bias"][:, None, None])


def test_the_network_written_again_gives_the_same_logits():
    network = random_network()
    images = np.random.default_rng(0).normal(size=(2, 64, 96))
    second = SecondNetwork(network.state_dict())
    expected = np.stack([second.logits(image) for image in images])
    double = DeepLabV3Plus().double().eval()
    double.load_state_dict(network.state_dict())
    features = np.random.default_rng(1).normal(size=(512, 20, 21))  # wide enough for every rate
    with torch.inference_mode():
        logits = double(torch.from_numpy(images)[:, None]).numpy()
        joined = double.aspp(torch.from_numpy(features)[None])[0].numpy()
    assert logits.shape == (2, 14, 64, 96)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_allclose(joined, second.aspp(features), rtol=0, atol=1e-10 * np.abs(joined).max())


def test_trunk_against_torchvision(monkeypatch):
    # A CUDA build of torchvision cannot load its operators beside a CPU torch; its ResNet needs none of them.
    monkeypatch.setitem(sys.modules, "torchvision._meta_registrations", types.ModuleType("none"))
    resnet = pytest.importorskip("torchvision.models.resnet").resnet18(weights=None).eval()
    resnet.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    for module in resnet.layer4.modules():  # output stride 16
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (2, 2)
    ours = random_network().trunk
    parts = {"stem.0.0": "conv1", "stem.0.1": "bn1"}
    inside = {"conv1.0": "conv1", "conv1.1": "bn1", "shortcut": "downsample"}
    renamed = {}
    for name, value in ours.state_dict().items():
        for old, new in parts.items() if name.startswith("stem") else inside.items():
            name = name.replace(old, new)
        renamed[name] = value
    missing, unexpected = resnet.load_state_dict(renamed, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    image = torch.randn(1, 1, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        low_level, high_level = ours(image)
        x = resnet.layer1(resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image)))))
        torch.testing.assert_close(low_level, x)
        torch.testing.assert_close(high_level, resnet.layer4(resnet.layer3(resnet.layer2(x))))


@pytest.mark.parametrize("size", [(65, 64), (64, 72), (8, 16), (512, 513)])
def test_a_size_that_is_no_multiple_of_the_stride_is_refused(size):
    with pytest.raises(ValueError, match=rf"multiple of 16, got \({size[0]}, {size[1]}\)"):
        random_network()(torch.zeros(1, 1, *size))


def test_initialisation_follows_the_seed_alone():
    before = torch.random.get_rng_state()
    networks = [initialise(DeepLabV3Plus().requires_grad_(False), seed) for seed in (1, 1, 2)]
    states = [network.state_dict() for network in networks]
    torch.random.set_rng_state(before)
    networks = [initialise(network, seed) for network, seed in zip(networks, (1, 1, 2), strict=True)]
    assert torch.equal(torch.random.get_rng_state(), before)  # the global state is left alone
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        if name.endswith("weight") and value.ndim == 4:
            assert not torch.equal(value, states[2][name]), name


def test_initialisation_is_kaiming_normal():
    network = initialise(DeepLabV3Plus().requires_grad_(False), 5)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            std = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))  # fan out, ReLU
            noise = 5 / math.sqrt(weight.numel())  # five sigma
            assert abs(weight.mean()) < noise * std, name
            assert weight.std().item() == pytest.approx(std, rel=noise), name
            assert (weight.abs() > 2.5 * std).float().mean() < 0.03, name  # normal: 1.2 %
            assert (weight.abs() > 2 * std).any(), name  # uniform of this variance ends at 1.73
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
