"""Small CTs and weights files for the tests: random, but of the real formats and the real network."""

import functools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from app.labels import ORGANS
from app.network import DeepLabV3Plus, initialise
from benchmarks.machine import dtypes
from training.checkpoint import halved
from training.export import switch_off, write

needs_bfloat16 = pytest.mark.skipif(torch.bfloat16 not in dtypes("cpu"), reason="this CPU convolves no bfloat16")
AFFINE = np.diag([0.75, 0.75, 5.0, 1.0])


def smooth_hu(shape=(3, 64, 64), seed=0) -> np.ndarray:
    """int16 (z, y, x): air before blurred noise around soft tissue, whose network output has regions."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0.5, 4, 4), mode="wrap")
    hu = (noise / max(noise.std(), 1e-9) * 150).clip(-900, 2000).astype(np.int16)
    hu[:, : -(-shape[1] // 32)] = -1000
    return hu


def save_ct(path: Path, hu: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    """Write a volume (z, y, x) whose file axes are x, y, z."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray((smooth_hu() if hu is None else hu).T), affine), path)
    return path


def mask_array(path: Path) -> np.ndarray:
    """Voxels of a mask, in its file's axes."""
    return np.asarray(nib.load(path).dataobj)


@functools.cache
def random_network(seed: int = 0) -> DeepLabV3Plus:
    """The network in evaluation mode, its batch norms with statistics of their own; not to be changed."""
    network = initialise(DeepLabV3Plus(), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.8, 1.2),
                (module.weight.data, 0.8, 1.2),
                (module.bias.data, -0.1, 0.1),
            ):
                tensor.uniform_(low, high, generator=generator)
    network.classifier.bias.data.uniform_(-0.1, 0.1, generator=generator)
    return network.requires_grad_(False)


def weights_content(seed: int = 0, **info) -> dict:
    """What training.export writes, of an untrained network; frames of 64 pixels keep the tests quick."""
    info = {
        "classes": ["Background", *(organ.abbreviation for organ in ORGANS)],
        "window_hu": [-100, 1000],
        "frame_px": 64,
        "spacing_mm": [0.5, 1.0],
        "switched_off": [],
        **info,
    }
    state = halved(switch_off(random_network(seed).state_dict(), info["switched_off"]))
    return {"format": 1, "state_dict": state, "info": info}


def save_weights(path: Path, seed: int = 0, **info) -> Path:
    write(weights_content(seed, **info), path)
    return path
