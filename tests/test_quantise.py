"""The network in 8-bit integers: against float32 on real slices, each convolution against plain arithmetic."""

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.device import has_int8
from app.network import DeepLabV3Plus
from app.options import WEIGHTS
from app.preprocess import clipped_statistics, normalise
from app.quantise import RANGE_SD, QuantisedConv, Spread, quantise
from app.weights import load_weights
from benchmarks.scan import EXAMPLE

pytestmark = pytest.mark.skipif(not has_int8(), reason="this CPU has no fast 8-bit convolution")
CPU = torch.device("cpu")


def test_shipped_network_agrees_with_float32_on_real_slices():
    hu = np.asarray(nib.as_closest_canonical(nib.load(EXAMPLE)).dataobj).T.astype(np.int16)
    weights = load_weights(WEIGHTS)
    images = normalise(torch.from_numpy(hu[8:32:6, None]), *clipped_statistics(hu)).contiguous(
        memory_format=torch.channels_last
    )
    with torch.inference_mode():
        exact, found = (weights.network(CPU, dtype).quarter_logits(images) for dtype in (torch.float32, torch.int8))
    assert found.dtype == torch.float32
    labels, organs = found.argmax(1), exact.argmax(1) > 0
    assert (labels == exact.argmax(1)).float().mean() > 0.998
    assert (labels == exact.argmax(1))[organs].float().mean() > 0.98
    assert len(labels.unique()) > 8


def norm_of(channels: int, seed: int) -> nn.BatchNorm2d:
    """Batch norm in evaluation mode that shifts and scales by a little."""
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels).eval()
    norm.running_mean, norm.running_var = (torch.rand(channels, generator=generator) + 0.5 for _ in range(2))
    norm.weight.data, norm.bias.data = (torch.rand(channels, generator=generator) - 0.3 for _ in range(2))
    return norm


@pytest.mark.parametrize("dilation", [1, 6])
@pytest.mark.parametrize("stride", [1, 2])
@torch.inference_mode()
def test_convolution_is_that_of_the_steps_exactly(stride, dilation):
    """The oracle is float64 arithmetic on the numbers that uint8 and int8 stand for."""
    generator = torch.Generator().manual_seed(0)
    conv, norm = nn.Conv2d(32, 24, 3, stride, dilation, dilation, bias=False).eval(), norm_of(24, 1)
    conv.weight.data = torch.randn(24, 32, 3, 3, generator=generator)
    steps = torch.randint(0, 256, (2, 32, 20, 24), generator=generator, dtype=torch.uint8)
    residual = torch.randint(0, 256, (2, 24, *(-(-n // stride) for n in (20, 24))), generator=generator).to(torch.uint8)
    steps, residual = (x.contiguous(memory_format=torch.channels_last) for x in (steps, residual))
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = conv.weight * factor[:, None, None, None]
    scale = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 63
    weight = ((weight / scale).round() * scale).double()
    bias = (norm.bias - norm.running_mean * factor).double()
    plain = F.conv2d(steps.double() * 0.02, weight, bias, stride, dilation, dilation)
    # float32 out; uint8 behind a ReLU; uint8 around its middle; with a residual whose zero is 128
    found = QuantisedConv(conv, norm, 0.02)(steps)
    torch.testing.assert_close(found.double(), plain.clamp(min=0), rtol=1e-5, atol=1e-4)
    out_scale = float(plain.max()) / 200
    found = QuantisedConv(conv, norm, 0.02, out_scale)(steps)
    assert (found.int() - (plain / out_scale).clamp(0, 255)).abs().max() <= 0.501
    found = QuantisedConv(conv, norm, 0.02, out_scale, relu=False)(steps)
    assert (found.int() - 128 - (plain / out_scale).clamp(-128, 127)).abs().max() <= 0.501
    summed = plain + (residual.double() - 128) * 0.1
    found = QuantisedConv(conv, norm, 0.02, out_scale)(steps, residual.clone(), 0.1, 128)
    assert (found.int() - (summed / out_scale).clamp(0, 255)).abs().max() <= 0.501


@torch.inference_mode()
def test_the_largest_sums_do_not_saturate():
    """AVX2 adds products in pairs, in 16 bits: with all inputs and weights at their largest it must not clip."""
    conv, norm = nn.Conv2d(64, 16, 3, padding=1, bias=False).eval(), nn.BatchNorm2d(16, eps=0).eval()
    conv.weight.data.fill_(1.0)
    steps = torch.full((1, 64, 8, 8), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    found = QuantisedConv(conv, norm, 1.0)(steps)
    torch.testing.assert_close(found[0, :, 4, 4], torch.full((16,), 255.0 * 64 * 9))


def test_ranges_hold_what_batch_norm_gives():
    """Of a normal input one value in a million may lie beyond; of a sum of two, too."""
    generator = torch.Generator().manual_seed(0)
    means, sds = torch.randn(2, 8, generator=generator), torch.rand(2, 8, generator=generator)
    spread = Spread(means[0], sds[0])
    both = spread.plus(Spread(means[1], sds[1]))
    values = means[..., None] + sds[..., None] * torch.randn(2, 8, 100_000, generator=generator)
    for found, of in ((spread, values[0]), (both, values.sum(dim=0))):
        assert (of > 255 * found.scale()).float().mean() < 1e-5
        assert (of.abs() > 127 * found.signed_scale()).float().mean() < 1e-5
        assert 255 * found.scale() <= float((found.mean.abs() + RANGE_SD * found.sd).max()) + 1e-5
        torch.testing.assert_close(found.mean, of.mean(dim=1), rtol=0, atol=0.02)
        torch.testing.assert_close(found.sd, of.std(dim=1), rtol=0.02, atol=0)


def test_no_batch_norm_and_no_float_convolution_is_left_but_first_and_last_and_pooled():
    network = quantise(DeepLabV3Plus().eval())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.inference_mode(), torch.profiler.profile() as profile:
        network.quarter_logits(torch.randn(1, 1, 64, 64).contiguous(memory_format=torch.channels_last))
    counts = {event.key: event.count for event in profile.key_averages()}
    assert sum(count for name, count in counts.items() if "qconv2d_pointwise" in name) == 19 + 4 + 1 + 1
