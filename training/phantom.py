"""A synthetic CT with the 13 organs, to try and test the chain without data: `python -m training.phantom OUT`.

Ellipsoids at plausible places, sizes and HU in a body of fat and muscle. It says nothing about accuracy.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

from training.quality_phantom import quality_phantom

FIELD_OF_VIEW_MM = 400.0
SLICE_MM = 5.0


class Ellipsoid(NamedTuple):
    """mm from the middle of the body: x to the patient's right, y forward, z up. Portal-venous HU."""

    label: int
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    hu: float


ORGANS = (  # painted in this order: what comes later lies in front
    Ellipsoid(1, (70, 15, 30), (75, 70, 65), 110),  # liver
    Ellipsoid(3, (-95, -35, 40), (30, 45, 50), 130),  # spleen
    Ellipsoid(11, (-55, 45, 35), (45, 38, 45), 35),  # stomach
    Ellipsoid(4, (-15, 18, -5), (60, 14, 16), 95),  # pancreas
    Ellipsoid(12, (42, 8, -20), (15, 18, 32), 60),  # duodenum
    Ellipsoid(2, (65, -52, -35), (27, 25, 50), 180),  # right kidney
    Ellipsoid(13, (-68, -52, -22), (27, 25, 50), 180),  # left kidney
    Ellipsoid(5, (-12, -28, 0), (11, 11, 1000), 160),  # aorta
    Ellipsoid(6, (22, -26, 0), (13, 12, 1000), 140),  # inferior vena cava
    Ellipsoid(7, (45, -38, 30), (9, 13, 16), 70),  # right adrenal gland
    Ellipsoid(8, (-45, -30, 30), (9, 13, 16), 70),  # left adrenal gland
    Ellipsoid(9, (62, 58, -10), (17, 22, 25), 10),  # gallbladder
    Ellipsoid(10, (-10, -6, 90), (10, 9, 45), 45),  # esophagus
)
BODY_MM, WALL_MM, INSIDE_MM, SPINE_MM = (170, 120), (155, 105), (143, 93), ((0, -65), (22, 20))


def phantom(seed: int, size_px: int = 128, slices: int = 40) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """One case.

    Args:
        seed: Of the patient: sizes, places, HU and noise.
        size_px: Pixels a side of a slice, over 400 mm.
        slices: Of 5 mm.

    Returns:
        hu int16 (z, y, x), labels uint8 (z, y, x), spacing_mm (z, y, x); x runs right, y forward, z up.
    """
    rng = np.random.default_rng(seed)
    spacing_mm = (SLICE_MM, FIELD_OF_VIEW_MM / size_px, FIELD_OF_VIEW_MM / size_px)
    z, y, x = np.ogrid[[slice(-(n - 1) / 2, n / 2) for n in (slices, size_px, size_px)]]
    size = rng.uniform(0.9, 1.1)  # of the patient
    x, y, z = (axis * mm / size for axis, mm in zip((x, y, z), reversed(spacing_mm), strict=True))

    def ellipse(centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
        return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2

    hu = np.full((slices, size_px, size_px), -1000.0)
    labels = np.zeros(hu.shape, np.uint8)
    for radii, value in ((BODY_MM, -100), (WALL_MM, 55), (INSIDE_MM, -90)):
        hu[:, ellipse((0, 0), radii)[0] <= 1] = value
    hu[:, ellipse(*SPINE_MM)[0] <= 1] = 350
    for organ in ORGANS:
        cx, cy, cz = np.add(organ.centre_mm, rng.normal(0, 3, 3))
        rx, ry, rz = np.multiply(organ.radii_mm, rng.uniform(0.9, 1.1, 3))
        inside = ellipse((cx, cy), (rx, ry)) + ((z - cz) / rz) ** 2 <= 1
        hu[inside] = organ.hu + rng.normal(0, 8)
        labels[inside] = organ.label
    hu += rng.normal(0, 12, hu.shape)
    return np.rint(hu).astype(np.int16), labels, spacing_mm


def write(folder: Path, name: str, hu: np.ndarray, labels: np.ndarray | None, spacing_mm: tuple[float, ...]) -> None:
    """Write a case as FLARE22 does: images/NAME_0000.nii.gz and, with labels, labels/NAME.nii.gz."""
    affine = np.diag([*reversed(spacing_mm), 1.0])  # RAS
    for kind, file_name, volume in (("images", f"{name}_0000.nii.gz", hu), ("labels", f"{name}.nii.gz", labels)):
        if volume is not None:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            image = nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine)
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / kind / file_name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.phantom", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="gets images/ and labels/")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="pixels a side of a slice (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--quality", action="store_true", help="phantoms for quality assurance instead, without organs")
    arguments = parser.parse_args()
    make, name = (quality_phantom, "quality_phantom") if arguments.quality else (phantom, "phantom")
    for seed in range(arguments.seed, arguments.seed + arguments.cases):
        hu, labels, spacing_mm = make(seed, arguments.size)
        write(arguments.out, f"{name}_{seed:04d}", hu, labels, spacing_mm)


if __name__ == "__main__":
    main()
