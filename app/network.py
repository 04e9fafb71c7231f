"""DeepLabv3+ on a ResNet-18 (paper section 2.2; Chen et al., ECCV 2018; He et al., CVPR 2016).

One input channel (a z-scored axial slice), 14 logits a pixel. Output stride 16: the last stage of the trunk keeps its
resolution and dilates its 3x3 convolutions by 2. About 15.3 M parameters and 41 GFLOP for a 512x512 slice. Sizes in the
comments are for that slice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.labels import NUM_CLASSES

OUTPUT_STRIDE = 16
ASPP_RATES = (6, 12, 18)


class ConvBNReLU(nn.Sequential):
    """Convolution that keeps the size at stride 1, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class BasicBlock(nn.Module):
    """ResNet-18's block: two 3x3 convolutions and a shortcut (He et al., 2016, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(in_channels, out_channels, 3, stride, dilation)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(self.conv1(x))) + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    """The trunk, without its classifier. Returns the features that the decoder and the ASPP take."""

    low_level_channels = 64  # of the stride-4 output
    out_channels = 512  # of the stride-16 output

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBNReLU(1, 64, 7, stride=2), nn.MaxPool2d(3, 2, 1))
        self.layer1 = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, stride=2), BasicBlock(128, 128))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, stride=2), BasicBlock(256, 256))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, dilation=2), BasicBlock(512, 512, dilation=2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low_level = self.layer1(self.stem(x))  # (N, 64, 128, 128)
        return low_level, self.layer4(self.layer3(self.layer2(low_level)))  # (N, 512, 32, 32)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1, three dilated 3x3 and an image-pooling branch, joined by a 1x1."""

    def __init__(self, in_channels: int, out_channels: int = 256, rates: tuple[int, ...] = ASPP_RATES) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [ConvBNReLU(in_channels, out_channels, 1)]
            + [ConvBNReLU(in_channels, out_channels, 3, dilation=rate) for rate in rates]
        )
        self.image_pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBNReLU(in_channels, out_channels, 1))
        self.project = nn.Sequential(ConvBNReLU((len(rates) + 2) * out_channels, out_channels, 1), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.image_pooling(x).expand(-1, -1, *x.shape[-2:])
        pooled = pooled.contiguous(memory_format=torch.channels_last)  # torch.cat is slow with mixed layouts
        return self.project(torch.cat([branch(x) for branch in self.branches] + [pooled], dim=1))


class DeepLabV3Plus(nn.Module):
    """Slices to logits.

    Args:
        num_classes: Number of logits, background included.

    Shapes:
        input: (N, 1, H, W) float, H and W multiples of 16.
        output: (N, num_classes, H, W) logits of the input's dtype; of `quarter_logits` a quarter of H and W.

    Raises:
        ValueError: H or W is not a multiple of 16.
    """

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.trunk = ResNet18()
        self.aspp = ASPP(ResNet18.out_channels)
        self.low_level = ConvBNReLU(ResNet18.low_level_channels, 48, 1)
        # One 3x3 convolution makes the prediction (section 2.2); two of 256, as often seen, cost twice.
        self.classifier = nn.Conv2d(256 + 48, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsample_4x(self.quarter_logits(x))  # (N, num_classes, 512, 512)

    def quarter_logits(self, x: Tensor) -> Tensor:
        """Logits before the last upsampling, which inference leaves to `postprocess.labels_from_logits`."""
        if x.shape[-2] % OUTPUT_STRIDE or x.shape[-1] % OUTPUT_STRIDE:
            raise ValueError(f"slice size must be a multiple of {OUTPUT_STRIDE}, got {tuple(x.shape[-2:])}")
        low_level, high_level = self.trunk(x)  # (N, 64, 128, 128), (N, 512, 32, 32)
        high_level = upsample_4x(self.aspp(high_level))  # (N, 256, 128, 128)
        return self.classifier(torch.cat([high_level, self.low_level(low_level)], dim=1))  # (N, num_classes, 128, 128)


def upsample_4x(x: Tensor) -> Tensor:
    """(N, C, h, w) to (N, C, 4 h, 4 w), bilinear."""
    return F.interpolate(x, scale_factor=4.0, mode="bilinear", align_corners=False)


def initialise(network: DeepLabV3Plus, seed: int) -> DeepLabV3Plus:
    """Kaiming-normal weights for every convolution (paper, table 2), ones and zeros for batch norm.

    Args:
        network: Changed in place.
        seed: Seed of this branch; leaves the global random state as it was.

    Returns:
        The network that was given.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return network
