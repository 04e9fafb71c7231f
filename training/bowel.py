"""Bowel and stomach contents that were not scanned: fluid, food, oral contrast medium, painted into labelled slices.

Bowel is background and no two patients' are alike. A network that had met few fillings took a fluid-filled duodenum
for the IVC and loops full of contrast medium for the spleen.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STOMACH = 11
POINT_PX = 32  # distance of the random field's points: loops are some 30 to 60 pixels wide
WALL = 0.25  # of the field's standard deviation above 0: a wall of a few pixels
WALL_HU = 40
STOMACH_WALL_PX = 4
SOFT_HU = (-120, 200)  # only fat and soft tissue is painted over: air and bone stay
GAP_PX = 2  # around organs nothing is painted: their edges are the scan's own
TEXTURE_HU = 40


def draw_loops(rng: np.random.Generator, share: float, frame_px: int) -> dict[str, np.ndarray]:
    """What `fill` takes of one sample: all off but in `share`.

    Returns:
        loops float32 (2, n, n): a random field over the frame for each of two fillings, a loop where it is above 0;
        filling_hu float32 (2,); stomach bool: whether the first filling is in the stomach, too.
    """
    n = round(frame_px / POINT_PX) + 1
    threshold = rng.uniform(0.4, 1.3, 2) if rng.random() < share else np.full(2, np.inf)
    oral_contrast = rng.random(2) < 0.4
    return {
        "loops": (rng.normal(size=(2, n, n)) - threshold[:, None, None]).astype(np.float32),
        "filling_hu": np.where(oral_contrast, rng.uniform(130, 600, 2), rng.uniform(-10, 130, 2)).astype(np.float32),
        "stomach": np.bool_(np.isfinite(threshold[0]) and rng.random() < 0.5),
    }


def fill(hu: Tensor, organ: Tensor, loops: Tensor, filling_hu: Tensor, stomach: Tensor, blurred: Tensor) -> Tensor:
    """Slices with loops of bowel painted into the background, and the stomach filled.

    Args:
        hu: float (N, H, W).
        organ: int64 (N, H, W), 0 where none is known.
        loops, filling_hu, stomach: (N, 2, n, n), (N, 2), (N,), from `draw_loops`.
        blurred: `hu`, smoothed: what it lacks is the scan's noise, which the fillings get, too.

    Returns:
        HU like `hu`; unchanged in organs but the stomach, and within GAP_PX of them.
    """
    texture = (hu - blurred).clamp(-TEXTURE_HU, TEXTURE_HU)
    background = ~_grown(organ > 0, GAP_PX) & (blurred > SOFT_HU[0]) & (blurred < SOFT_HU[1])
    lumen = ~_grown(organ != STOMACH, STOMACH_WALL_PX) & stomach[:, None, None]
    fields = F.interpolate(loops, hu.shape[-2:], mode="bicubic", align_corners=True)
    for k in (0, 1):
        field, filling = fields[:, k], filling_hu[:, k, None, None]
        loop = torch.where(field > WALL, filling, WALL_HU) + texture
        hu = torch.where(background & (field > 0), loop, hu)
    return torch.where(lumen, filling_hu[:, :1, None] + texture, hu)


def _grown(mask: Tensor, by_px: int) -> Tensor:
    """Mask (N, H, W), grown by a square's half side."""
    size = 2 * by_px + 1
    rows = F.max_pool2d(mask[:, None].float(), (1, size), 1, (0, by_px))
    return F.max_pool2d(rows, (size, 1), 1, (by_px, 0))[:, 0] > 0
