"""Where the network looks: place of the crop, rotation (section 2.1), zoom and a smooth warp, as one resampling."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.batch import Array, Slices
from training.config import Config

WARP_POINT_PX = 64  # between the points of a smooth warp: about the size of an organ
ORGAN_SHIFT = 0.25  # of the crop: how far the centre may lie from the organ that a slice was drawn for


class View(NamedTuple):
    """What a crop shows.

    Attributes:
        matrix: float32 (N, 2, 2), rotation and zoom: from offsets (x, y) in the crop to offsets in the frame.
        shift_px: float32 (N, 2), (x, y) of the crop's centre from the frame's, where no organ decides.
        organ: int64 (N,), label value to centre on; 0: none.
        organ_pixel: float32 (N,), which of the organ's pixels, 0..1 of the way from the first to the last.
        organ_shift_px: float32 (N, 2), (x, y) of the crop's centre from that pixel.
        warp_px: float32 (N, 2, points, points), displacement (x, y) at points over the crop.
    """

    matrix: Array
    shift_px: Array
    organ: Array
    organ_pixel: Array
    organ_shift_px: Array
    warp_px: Array


def draw(rng: np.random.Generator, slices: Slices, config: Config, labelled: bool) -> View:
    """Uniform angles, log-uniform zooms, uniform places in the stored slice; half of the slices are not warped."""
    count, crop = len(slices.entry), config.crop_px
    largest_deg = np.where(slices.negative, config.negative_rotation_deg, config.rotation_deg)
    largest_zoom = np.where(slices.negative, config.negative_zoom, config.zoom)
    angle = np.deg2rad(rng.uniform(-1, 1, count) * largest_deg)
    zoom = largest_zoom ** rng.uniform(-1, 1, count)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    room_px = np.maximum(slices.size_px[:, ::-1] - crop, 0) / 2
    shift_px = rng.uniform(-1, 1, (count, 2)) * room_px
    organ_shift_px = rng.uniform(-1, 1, (count, 2)) * ORGAN_SHIFT * crop
    points = max(4, round(crop / WARP_POINT_PX) + 1)
    warp_sd_px = rng.uniform(-1, 1, (count, 1, 1, 1)).clip(min=0) * config.warp_px
    return View(
        np.stack([cos, -sin, sin, cos], axis=1).reshape(count, 2, 2).astype(np.float32),
        shift_px.astype(np.float32),
        slices.organ,
        rng.random(count, np.float32),
        organ_shift_px.astype(np.float32),
        (rng.normal(0, 1, (count, 2, points, points)) * warp_sd_px).astype(np.float32),
    )


def grid(labels: Tensor, drawn: View, config: Config) -> Tensor:
    """Where each pixel of the crop lies: float32 (N, crop, crop, 2), (x, y), -1..1 over the frame.

    Args:
        labels: uint8 (N, frame, frame), to find the organ in.
        drawn: Of these slices.
        config: `crop_px`; whether there are organs to centre on and warps.
    """
    crop, frame_px = config.crop_px, labels.shape[-1]
    shift_px = drawn.shift_px
    if config.organ_share and crop < frame_px:  # a crop of the whole frame has no other place to go
        found, at_px = _organ_pixel(labels, drawn.organ, drawn.organ_pixel)
        shift_px = torch.where(found[:, None], at_px - frame_px / 2 + drawn.organ_shift_px, shift_px)
    affine = torch.cat([drawn.matrix * crop / frame_px, 2 / frame_px * shift_px[:, :, None]], dim=2)
    places = F.affine_grid(affine, [len(labels), 1, crop, crop], align_corners=False)
    if config.warp_px:
        warp_px = F.interpolate(drawn.warp_px, (crop, crop), mode="bicubic", align_corners=True)
        places = places + 2 / frame_px * warp_px.permute(0, 2, 3, 1)
    return places


def _organ_pixel(labels: Tensor, organ: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each slice shows its organ, bool (N,), and (x, y) of one of its pixels, float32 (N, 2)."""
    seen = ((labels == organ[:, None, None]) & (organ > 0)[:, None, None]).flatten(1)  # (N, frame * frame)
    running = seen.cumsum(dim=1, dtype=torch.int32)
    count = running[:, -1]
    rank = (which * count).int().clamp(max=count - 1) + 1
    pixel = torch.searchsorted(running, rank[:, None])[:, 0].clamp(max=seen.shape[1] - 1)
    y, x = pixel // labels.shape[-1], pixel % labels.shape[-1]
    return count > 0, torch.stack([x, y], dim=1).float()


def sample(values: Tensor, places: Tensor, beyond: float, mode: str) -> Tensor:
    """Values (N, frame, frame) at places of a grid: (N, 1, crop, crop); `beyond` outside of the frame."""
    return F.grid_sample((values - beyond)[:, None], places, mode=mode, align_corners=False) + beyond
