"""Apply the drawn augmentation to a batch, on the device: contrast phase, jitter, clip, move, z-score; section 2.1."""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.preprocess import WINDOW_HU, normalise
from training.contrast import wash_out
from training.store import UNCERTAIN

_NOISE_PX = 1024


def noise_bank(device: torch.device | str) -> Tensor:
    """Gaussian noise (1024, 1024), mean 0 and standard deviation 1, always the same; samples take windows of it."""
    return torch.randn(_NOISE_PX, _NOISE_PX, generator=torch.Generator().manual_seed(0)).to(device)


def augment(batch: dict[str, Tensor], crop_size: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels as the network takes them.

    Args:
        batch: Collated items of SliceDataset, on the device of `noise`.
        crop_size: Pixels of the square output.
        noise: From `noise_bank`.

    Returns:
        images float32 (N, 1, crop, crop), z-scored; labels uint8 (N, crop, crop), 0..13 or UNCERTAIN. What lies
        beyond the slice is air, and known to be background even where the slice has no labels.
    """

    def column(name: str) -> Tensor:
        return batch[name].float()[:, None, None]

    labels = batch["labels"]
    hu = batch["hu"].float()
    hu = torch.where(hu < column("saturated_hu"), hu, hu + column("excess_hu") * _interior(hu, column("saturated_hu")))
    hu = torch.minimum(hu, column("saturate_at_hu"))

    organ = labels.where(labels != UNCERTAIN, 0).long()
    phase = batch["washout"].any(dim=1)
    if phase.any():
        hu[phase] = wash_out(hu[phase], organ[phase], batch["washout"][phase])
    sample = torch.arange(len(organ), device=organ.device)[:, None, None]
    hu = hu * batch["organ_scale"][sample, organ] + batch["organ_offset_hu"][sample, organ]
    hu = hu * column("slice_scale") + column("slice_offset_hu")
    if batch["noise_hu"].any():
        hu = hu + column("noise_hu") * _windows(noise, batch["noise_at"], hu.shape[-2:])
    if batch["blur"].any():
        hu = hu + column("blur") * (_gaussian_blur(hu) - hu)

    low = WINDOW_HU[0]
    hu = hu.clamp(*WINDOW_HU) - low  # grid_sample pads with 0: outside the slice is air
    size = (len(hu), 1, crop_size, crop_size)
    grid = F.affine_grid(batch["affine"], size, align_corners=False)
    if batch["warp"].any():
        warp = F.interpolate(batch["warp"], size[-2:], mode="bicubic", align_corners=True)
        grid = grid + warp.permute(0, 2, 3, 1)  # (N, crop, crop, 2)
    images = F.grid_sample(hu[:, None], grid, mode="bilinear", align_corners=False) + low
    cropped = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0].byte()
    statistics = (batch[name][:, None, None, None] for name in ("mean_hu", "std_hu"))
    return normalise(images, *statistics), cropped


def _windows(noise: Tensor, at: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows (N, height, width) of the noise bank; `at` (N, 2) are their first rows and columns."""
    y, x = (at[:, k, None] + torch.arange(size[k], device=noise.device) for k in (0, 1))
    return noise[y[:, :, None], x[:, None, :]]


def _interior(hu: Tensor, saturated_hu: Tensor) -> Tensor:
    """Share of saturated pixels in each pixel's 7x7 neighbourhood: 1 deep inside bone, less at its rim."""
    return F.avg_pool2d((hu >= saturated_hu).float(), 7, 1, 3)


def _gaussian_blur(hu: Tensor) -> Tensor:
    """Gaussian of sigma 1 pixel; 5 taps a side hold 99 % of it."""
    taps = torch.exp(-0.5 * torch.arange(-2.0, 3.0, device=hu.device) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(hu[:, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, 5)), taps.view(1, 1, 5, 1))[:, 0]
