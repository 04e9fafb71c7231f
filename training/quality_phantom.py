"""A phantom for a CT's quality assurance, in which there is no organ: what a network must not fill with liver.

A body of one material with rods and disks of others, as the ACR's accreditation phantom and Catphan have them, on a
table. Every size, place and material is drawn anew.
"""

import numpy as np
from scipy import ndimage

FIELD_OF_VIEW_MM, TABLE_MM = 380.0, 340.0
SLICE_MM = 3.0
INSERTS_HU = {  # at 120 kV, rounded, as these phantoms' makers give them
    **{"air": -1000, "PMP": -200, "polyethylene": -95, "polystyrene": -35},
    **{"water": 0, "acrylic": 120, "Delrin": 340, "bone": 950},
}
FOAM_HU, CARBON_HU = -150, 60
BODY_HU = (15, 70)  # made to look like soft tissue; of water alone the program says that it is not HU
MODULES = 3  # parts along z, each with inserts of its own


def quality_phantom(
    seed: int, size_px: int = 448, slices: int = 24
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """One case.

    Args:
        seed: Of everything that is drawn.
        size_px: Pixels a side of a slice, over 380 mm.
        slices: Of 3 mm.

    Returns:
        hu int16 (z, y, x), labels uint8 (z, y, x), all background, spacing_mm (z, y, x); y runs forward.
    """
    rng = np.random.default_rng(seed)
    pixel_mm = FIELD_OF_VIEW_MM / size_px
    y, x = (np.ogrid[:size_px, :size_px][axis] * pixel_mm - FIELD_OF_VIEW_MM / 2 for axis in (0, 1))
    half_width_mm = rng.uniform(80, 170)
    half_height_mm = half_width_mm * rng.uniform(0.65, 1)

    def ellipse(centre_mm: np.ndarray, radii_mm: tuple[float, float]) -> np.ndarray:
        return ((x - centre_mm[0]) / radii_mm[0]) ** 2 + ((y - centre_mm[1]) / radii_mm[1]) ** 2 <= 1

    body = ellipse(np.zeros(2), (half_width_mm, half_height_mm))
    plane = np.full((size_px, size_px), -1000.0)
    below_mm = -half_height_mm - y
    for top_mm, bottom_mm, value in ((0, 14, FOAM_HU), (0, 2, CARBON_HU), (12, 14, CARBON_HU)):
        plane[(below_mm > top_mm) & (below_mm < bottom_mm) & (abs(x) < TABLE_MM / 2)] = value
    plane[body] = INSERTS_HU["acrylic"]
    shell_mm = rng.choice([0.0, 6.0])
    plane[ellipse(np.zeros(2), (half_width_mm - shell_mm, half_height_mm - shell_mm))] = rng.uniform(*BODY_HU)

    hu = np.empty((slices, size_px, size_px))
    for module in np.array_split(hu, MODULES):
        module[:] = plane
        for _ in range(rng.integers(0, 9)):
            radius_mm = rng.uniform(4, 40)
            centre_mm = rng.uniform(-0.75, 0.75, 2) * (half_width_mm, half_height_mm)
            insert_hu = rng.choice(list(INSERTS_HU.values())) + rng.normal(0, 15)
            module[:, body & ellipse(centre_mm, (radius_mm, radius_mm))] = insert_hu
    noise = ndimage.gaussian_filter(rng.normal(0, 1, hu.shape), (0, 0.7, 0.7))  # a CT's pixels are not independent
    hu += noise / noise.std() * rng.uniform(4, 25)
    return np.rint(hu).astype(np.int16), np.zeros(hu.shape, np.uint8), (SLICE_MM, pixel_mm, pixel_mm)
