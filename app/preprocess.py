"""Clip and z-score (paper section 2.1), for training and inference.

The statistics are those of the whole clipped volume. int16 CT has 1,101 values inside the window, so a histogram gives
mean and standard deviation exactly, without a float copy of the volume.
"""

import numpy as np
import torch

WINDOW_HU = (-100, 1000)  # paper section 2.1


def clipped_statistics(hu: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation of a volume clipped to the window.

    Args:
        hu: int16 HU, any shape, at least one voxel.

    Returns:
        (mean_hu, std_hu). The standard deviation is 1 where it would be 0, so that a constant
        volume becomes zeros, not NaN.

    Raises:
        TypeError: `hu` is not int16.
    """
    if hu.dtype != np.int16:
        raise TypeError(f"hu must be int16, got {hu.dtype}")
    low, high = WINDOW_HU
    counts = np.zeros(high - low + 1, np.int64)
    for part in hu if hu.ndim > 2 else (hu,):  # slice by slice: the clipped copy stays small
        counts += np.bincount((np.clip(part, low, high).ravel() - np.int16(low)), minlength=counts.size)
    values = np.arange(low, high + 1, dtype=np.float64)
    total = counts.sum()
    mean = float((counts * values).sum() / total)
    std = float(np.sqrt((counts * (values - mean) ** 2).sum() / total))
    return mean, std if std > 0 else 1.0


def normalise(hu: torch.Tensor, mean_hu: float | torch.Tensor, std_hu: float | torch.Tensor) -> torch.Tensor:
    """Clip to the window and z-score.

    Args:
        hu: HU of any numeric dtype, any shape, on any device.
        mean_hu: Mean of the clipped volume; a tensor must broadcast.
        std_hu: Its standard deviation; a tensor must broadcast.

    Returns:
        float32 tensor of the same shape.
    """
    return (hu.float().clamp(*WINDOW_HU) - mean_hu) / std_hu
