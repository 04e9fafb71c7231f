"""Make a trained network faster; only rounding changes its outputs.

Batch norm is folded into the convolution before it. On a CPU, ReLU and the residual block's addition are then done
by the convolution itself, while its result is in the cache: oneDNN can, but torch shows it to its compiler alone
(`torch.ops.mkldnn`), whose minute of compiling no single case pays back.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from app.network import BasicBlock, ConvBNReLU

Network = TypeVar("Network", bound=nn.Module)


def fuse(network: Network, device: torch.device) -> Network:
    """Fold batch norm, and fuse what the device can.

    Args:
        network: In evaluation mode; changed in place.
        device: Where it will run.

    Returns:
        The network that was given; to be used under `torch.inference_mode`.
    """
    fold_batch_norm(network)
    if device.type == "cpu" and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        fuse_activations(network)
    return network


def fold_batch_norm(network: Network) -> Network:
    """Fold every batch norm into the convolution before it.

    Args:
        network: In evaluation mode; changed in place. A batch norm follows its convolution among the
            children of one module, as everywhere in `app.network`.

    Returns:
        The network that was given.
    """
    for module in network.modules():
        previous_name, previous = "", None
        for name, child in list(module.named_children()):
            if isinstance(previous, nn.Conv2d) and isinstance(child, nn.BatchNorm2d):
                setattr(module, previous_name, fuse_conv_bn_eval(previous, child))
                setattr(module, name, nn.Identity())
            previous_name, previous = name, child
    return network


def fuse_activations(network: nn.Module) -> None:
    """Replace the modules of `app.network` that end in a ReLU, in place; batch norm must be folded already."""
    for name, child in list(network.named_children()):
        if isinstance(child, ConvBNReLU) and isinstance(conv := child[0], nn.Conv2d):
            setattr(network, name, _ConvReLU(conv))
        else:
            fuse_activations(child)
            if isinstance(child, BasicBlock):
                setattr(network, name, _Block(child))


class _ConvReLU(nn.Module):
    """Convolution, then ReLU; between them, if given, the addition of a residual."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        conv, convolution = self.conv, torch.ops.mkldnn._convolution_pointwise
        settings = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        if residual is None:
            return convolution(x, conv.weight, conv.bias, *settings, "relu", [], "")
        return convolution.binary(x, residual, conv.weight, conv.bias, *settings, "add", 1.0, "relu", [], "")


class _Block(nn.Module):
    """`BasicBlock` of fused convolutions."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.conv2, self.shortcut = block.conv1, _ConvReLU(block.conv2), block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x), self.shortcut(x))
