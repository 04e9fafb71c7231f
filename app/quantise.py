"""The network in 8-bit integers, for CPUs that convolve no bfloat16: there about twice as fast as in float32.

Not in the paper. Post-training quantisation without data (Nagel et al., ICCV 2019): batch norm says what mean and
standard deviation a convolution's outputs have, and so what range the next one must take. Activations are uint8, with a
scale for each tensor; weights are symmetric, with a scale for each output channel. The first convolution and the last
stay in float32. oneDNN does it all (`torch.ops.onednn`, which torch shows to its compiler alone, as `app.fuse` says).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from app.fuse import fuse
from app.network import ASPP, BasicBlock, DeepLabV3Plus

RANGE_SD = 10.0  # standard deviations that a uint8 reaches: bone, contrast and metal are far from what is usual
# Weights are -63 to 63: AVX2 adds two products in 16 bits, where 2 * 255 * 63 has room and 2 * 255 * 127 has not.
_LARGEST_WEIGHT = 63
_LARGEST, _MIDDLE = 255, 128  # of uint8; the zero of tensors that are negative, too


class Spread(NamedTuple):
    """Mean and standard deviation of each channel of a tensor."""

    mean: Tensor
    sd: Tensor

    def plus(self, other: "Spread") -> "Spread":
        """Of the sum of two tensors, taken as independent."""
        return Spread(self.mean + other.mean, torch.hypot(self.sd, other.sd))

    def scale(self) -> float:
        """What a step of uint8 is worth, behind a ReLU."""
        return float((self.mean + RANGE_SD * self.sd).max().clamp(min=1e-3)) / _LARGEST

    def signed_scale(self) -> float:
        """What a step of uint8 is worth around `_MIDDLE`."""
        return float((self.mean.abs() + RANGE_SD * self.sd).max().clamp(min=1e-3)) / (_LARGEST - _MIDDLE)


def quantise(network: DeepLabV3Plus) -> DeepLabV3Plus:
    """Put 8-bit modules in the place of those of `app.network`.

    Args:
        network: In evaluation mode, its batch norm not folded yet; changed in place.

    Returns:
        The network that was given: float32 slices in, float32 logits out, channels last; to be used under
        `torch.inference_mode` on a CPU.
    """
    parts: Any = network  # for mypy, which takes a module's place as of one type
    trunk = parts.trunk
    spread = _spread_behind(trunk.stem[0])
    fuse(trunk.stem, torch.device("cpu")).append(_ToUint8(spread.scale()))
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        for index, block in enumerate(stage):
            stage[index] = quantised = _Block(block, spread)
            spread = quantised.spread
        if stage is trunk.layer1:
            parts.low_level = QuantisedConv(*_conv_norm(parts.low_level), spread.scale())
    parts.aspp = _ASPP(parts.aspp, spread)
    parts.to(memory_format=torch.channels_last)
    return network


def _conv_norm(module: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Of a ConvBNReLU or a shortcut."""
    conv, norm, *_ = cast(Iterable[Any], module)
    return conv, norm


def _spread_behind(module: nn.Module) -> Spread:
    """What the batch norm of a ConvBNReLU or a shortcut gives."""
    return _spread(_conv_norm(module)[1])


def _spread(norm: nn.BatchNorm2d) -> Spread:
    return Spread(norm.bias.detach(), norm.weight.detach().abs())


class _ToUint8(nn.Module):
    """float32 behind a ReLU to uint8."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return (x * (1 / self.scale)).add_(0.5).clamp_(max=_LARGEST).to(torch.uint8)


class QuantisedConv(nn.Module):
    """Convolution of uint8 with its batch norm, then ReLU; between them, if given, the addition of a residual.

    Args:
        conv, norm: In float32.
        scale: Of the input.
        out_scale: Of the output; None: the output is float32.
        relu: Else the output's zero is `_MIDDLE`.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d, scale: float, out_scale: float | None = None, relu: bool = True
    ) -> None:
        super().__init__()
        folded = fuse_conv_bn_eval(conv, norm)
        weight, self.bias = folded.weight.detach(), cast(Tensor, folded.bias).detach()
        self.weight_scale = weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-12) / _LARGEST_WEIGHT
        steps = (weight / self.weight_scale[:, None, None, None]).round().to(torch.int8)
        self.settings = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        self.weight = torch.ops.onednn.qconv_prepack(steps, self.weight_scale, scale, 0, *self.settings, None)
        self.weight_zero = torch.zeros(len(weight), dtype=torch.int32)
        self.scale, self.relu = scale, "relu" if relu else "none"
        self.out = (1.0, 0, torch.float32) if out_scale is None else (out_scale, 0 if relu else _MIDDLE, torch.uint8)

    def forward(self, x: Tensor, residual: Tensor | None = None, residual_scale: float = 1.0, zero: int = 0) -> Tensor:
        """`residual` may be overwritten."""
        convolution: Any = torch.ops.onednn.qconv2d_pointwise
        taken = (x, self.scale, 0, self.weight, self.weight_scale, self.weight_zero)
        given = (self.bias, *self.settings, *self.out)
        last: tuple[Any, ...] = (self.relu, [], "")
        if residual is None:
            return cast(Tensor, convolution(*taken, *given, *last))
        return cast(Tensor, convolution.binary(*taken, residual, *given, residual_scale, zero, "sum", 1.0, *last))


class _Block(nn.Module):
    """`BasicBlock` of 8-bit convolutions.

    Attributes:
        spread: Of its output, before the ReLU.
    """

    def __init__(self, block: BasicBlock, spread: Spread) -> None:
        super().__init__()
        scale, self.residual = spread.scale(), (spread.scale(), 0)
        between = _spread_behind(block.conv1).scale()
        self.shortcut: nn.Module = nn.Identity()
        if len(block.shortcut):
            spread = _spread_behind(block.shortcut)
            self.residual = (spread.signed_scale(), _MIDDLE)
            self.shortcut = QuantisedConv(*_conv_norm(block.shortcut), scale, self.residual[0], relu=False)
        self.spread = _spread(block.bn2).plus(spread)
        self.conv1 = QuantisedConv(*_conv_norm(block.conv1), scale, between)
        self.conv2 = QuantisedConv(block.conv2, block.bn2, between, self.spread.scale())

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(self.conv1(x), self.shortcut(x), *self.residual))


class _ASPP(nn.Module):
    """`ASPP` of 8-bit convolutions; the pooled branch, of one pixel, in float32. Takes uint8, gives float32."""

    def __init__(self, aspp: ASPP, spread: Spread) -> None:
        super().__init__()
        self.scale = spread.scale()
        branches = [*aspp.branches, aspp.image_pooling[1]]
        joined = max(_spread_behind(branch).scale() for branch in branches)
        self.branches = nn.ModuleList(
            QuantisedConv(*_conv_norm(branch), self.scale, joined) for branch in aspp.branches
        )
        self.pooled = fuse(aspp.image_pooling, torch.device("cpu")).append(_ToUint8(joined))
        self.project = QuantisedConv(*_conv_norm(aspp.project[0]), joined)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True, dtype=torch.float32) * self.scale
        pooled = self.pooled(mean).expand(-1, -1, *x.shape[-2:]).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.project(torch.cat([branch(x) for branch in self.branches] + [pooled], dim=1)))
