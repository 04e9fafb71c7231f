"""Values that are not HU: repaired to the very original or refused, and scans that are HU left alone, real ones too."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from app.ct import read_ct
from app.errors import InputError
from app.hounsfield import put_on_hu_scale
from app.volume import read_volume
from benchmarks.scan import EXAMPLE
from tests.nifti_files import CT_DIR
from tests.scans import save_ct

SHAPE = (6, 96, 96)
Y, X = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
OUTSIDE_VIEW = X**2 + Y**2 > 1  # where scanners reconstruct nothing

ODD = {  # what a file can hold instead of HU, and whether that is to be repaired
    "HU + 1024": (lambda hu: hu + 1024, True),
    "HU + 1000": (lambda hu: hu + 1000, True),
    "HU + 8192": (lambda hu: hu + 8192, True),
    "HU - 1024": (lambda hu: hu - 1024, True),
    "HU x 10": (lambda hu: hu * 10, True),
    "HU + 32768": (lambda hu: hu + 32768, False),
    "HU / 10": (lambda hu: hu / 10, False),
    "HU x 1000": (lambda hu: hu * 1000, False),
    "0..1": (lambda hu: (hu + 1024) / 4095, False),
    "1/cm": (lambda hu: 0.2 * (1 + hu / 1000), False),
    "8-bit picture": (lambda hu: (hu + 160).clip(0, 400) / 400 * 255, False),
    "12-bit picture": (lambda hu: (hu + 1000).clip(0, 2000) / 2000 * 4095, False),
}


def stored(values: np.ndarray) -> np.ndarray:
    """As a file's values are decoded: rounded and saturated."""
    return np.clip(np.rint(values), -(2**15), 2**15 - 1).astype(np.int16)


def body(seed=0, width=0.8, fat=0.3, soft_hu=50, lungs=True, noise_hu=12, blur_px=0.7, clip=(-1024, 3071), z=SHAPE[0]):
    """int16 (z, y, x): fat around soft tissue, lungs, a spine and gas, in air."""
    r = np.hypot(X / width, Y / (0.7 * width))
    hu = np.select([r > 1, r > 1 - 0.5 * fat], [-1000, -100], float(soft_hu))
    for side in (-0.4, 0.4) if lungs else ():
        hu[np.hypot((X / width - side) / 0.25, Y / width / 0.35) < 1] = -850
    hu[np.hypot(X, Y + 0.45 * width) < 0.12 * width] = 500
    hu[np.hypot(X, Y - 0.4 * width) < 0.08 * width] = -950
    noise = np.random.default_rng(seed).normal(size=(z, *hu.shape))
    noise = ndimage.gaussian_filter(noise, (0, blur_px, blur_px))
    return stored((hu + noise_hu * noise / noise.std()).clip(*clip))


def checked(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    volume = stored(values)
    return volume, put_on_hu_scale(volume)


BODIES = {
    "plain": {},
    "little fat": {"fat": 0.04},
    "much fat": {"fat": 0.9, "width": 0.95},
    "small": {"width": 0.5, "lungs": False},
    "fills the field of view": {"width": 1.3},
    "no lungs": {"lungs": False},
    "unenhanced": {"soft_hu": 30},
    "enhanced": {"soft_hu": 130},
    "little noise": {"noise_hu": 3},
    "low dose": {"noise_hu": 60},
    "lower than -1024": {"noise_hu": 25, "clip": (-2000, 3071)},
    "begins at -1000": {"clip": (-1000, 3071)},
    "ends at 400": {"clip": (-1024, 400)},
}
CLIPPED = {f"{low} to {high}": (low, high) for low, high in ((-125, 275), (-160, 240), (-100, 1000), (-500, 1500))}


def padded(value):
    hu = body()
    hu[:, OUTSIDE_VIEW] = value
    return hu


PADDING = (-1024, -2000, -2048, -3024, -3072)


# HU are left alone


@pytest.mark.parametrize(
    ("hu", "doubt"),
    [
        *((body(**kind), None) for kind in BODIES.values()),
        *((padded(value), None) for value in PADDING),
        *((body(clip=window), f"no air at -1000 HU (values from {window[0]} to ") for window in CLIPPED.values()),
        (body(width=2, fat=0.9, lungs=False)[:, :70], "no air at -1000 HU"),  # a part of a body
        (body(width=0.25, lungs=False), "little in it is fat or soft tissue (values from "),
    ],
)
def test_hu_are_left_alone(hu, doubt):
    volume, warnings = checked(hu)
    assert np.array_equal(volume, hu)
    assert len(warnings) == (doubt is not None) and all(warning.startswith(doubt) for warning in warnings)


@pytest.mark.parametrize(("rows", "doubt"), [(0, None), (10, "little in it"), (30, "are not HU")])
def test_the_more_is_too_dense_the_greater_the_doubt(rows, doubt):
    hu = body()
    hu[:, :rows] = np.random.default_rng(0).integers(320, 2000, hu[:, :rows].shape)
    if doubt == "are not HU":
        with pytest.raises(InputError, match=doubt):
            checked(hu)
    else:
        warnings = checked(hu)[1]
        assert len(warnings) == (doubt is not None) and all(doubt in warning for warning in warnings)


# Other scales


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("odd", ODD)
def test_another_scale_is_repaired_or_refused(odd, kind):
    hu, (distort, repaired) = body(**BODIES[kind]), ODD[odd]
    if kind == "lower than -1024" and odd == "HU + 1000":  # noise below 0 could be fat
        repaired = False
    if repaired:
        volume, (warning,) = checked(distort(hu.astype(float)))
        assert f" are {odd}" in warning
        assert np.array_equal(volume, hu)
    else:
        with pytest.raises(InputError, match="too coarse when they are rounded" if odd == "HU / 10" else None) as error:
            checked(distort(hu.astype(float)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("window", CLIPPED)
@pytest.mark.parametrize("odd", ODD)
def test_another_scale_of_a_clipped_scan_is_refused(odd, window):
    with pytest.raises(InputError):
        checked(ODD[odd][0](body(clip=CLIPPED[window]).astype(float)))


@pytest.mark.parametrize("offset", [1024, 1000])
@pytest.mark.parametrize("padding", PADDING)
def test_padding_does_not_hide_a_missing_intercept(offset, padding):
    hu = body()
    values = hu + offset
    values[:, OUTSIDE_VIEW] = padding
    volume, (warning,) = checked(values)
    assert f" are HU + {offset}" in warning
    assert np.array_equal(volume[:, ~OUTSIDE_VIEW], hu[:, ~OUTSIDE_VIEW])
    assert volume[:, OUTSIDE_VIEW].max() < -1024


def test_an_intercept_of_1000_or_1024_is_told_by_air():
    """Unsigned values begin at 0: amid the air of HU + 1000, and 24 below it in HU + 1024."""
    measured = body(clip=(-2000, 3071))
    for offset in (1000, 1024):
        volume, (warning,) = checked((measured + offset).clip(0))
        assert f" are HU + {offset}" in warning
        assert np.array_equal(volume, measured.clip(-offset))


def test_both_intercepts_are_possible_where_all_air_is_one_value():
    """Then it is taken for what most scanners have outside their field of view."""
    hu = body(noise_hu=2)
    hu[hu < -980] = -1000
    volume, (warning,) = checked(hu + 1000)
    assert " are HU + 1024" in warning
    assert np.array_equal(volume, hu - 24)


def test_an_intercept_of_1000_applied_twice():
    hu = body(clip=(-1000, 3071))
    volume, (warning,) = checked(hu - 1000)
    assert " are HU - 1000" in warning
    assert np.array_equal(volume, hu)


def test_another_scale_of_a_small_body_is_not_certain():
    with pytest.raises(InputError, match="are not HU"):
        checked(body(width=0.42, lungs=False) + 1024)


@pytest.mark.parametrize("width", [0.36, 0.6])
def test_noise_below_zero_may_be_fat_or_air_of_another_scale(width):
    with pytest.raises(InputError, match=r"which may be HU or HU \+ 1024"):
        checked(body(noise_hu=40, width=width, lungs=False, clip=(-2000, 3071)) + 1024)


def test_bone_is_not_taken_for_a_body():
    """A skull is as dense as soft tissue on the scale of an intercept that was applied twice."""
    hu = body(lungs=False, fat=0.15, soft_hu=35)
    skull = np.abs(np.hypot(X / 0.8, Y / 0.56) - 0.8) < 0.1
    hu[:, skull] = np.random.default_rng(0).normal(1100, 150, hu[:, skull].shape)
    assert "little in it" in checked(hu)[1][0]
    with pytest.raises(InputError, match="are not HU"):
        checked(hu - 1024)


# No body, or no CT


@pytest.mark.parametrize("noise_hu", [0, 2, 15, 40])
@pytest.mark.parametrize("value", [-1024, -1000, -100, 0, 40, 3000])
def test_one_value_with_noise_is_no_body(value, noise_hu):
    noise = np.random.default_rng(0).normal(size=SHAPE)
    with pytest.raises(InputError, match=r"^no body in it, or not HU: values from "):
        checked(value + noise_hu * ndimage.gaussian_filter(noise, (0, 0.7, 0.7)) / 0.4)


def test_air_with_a_table_is_no_body():
    hu = body(width=0.05)
    hu[:, 80:82] = -700
    with pytest.raises(InputError, match=r"^no body in it: nearly all of it is air"):
        checked(hu)


def test_magnetic_resonance_is_refused():
    rng = np.random.default_rng(0)
    tissue = np.select([body(noise_hu=0) < -900, body(noise_hu=0) < -50], [15, 900], 400)
    with pytest.raises(InputError, match="are not HU: fat and soft tissue are not at -100 and 40"):
        checked(np.hypot(tissue + 30 * rng.normal(size=SHAPE), 30 * rng.normal(size=SHAPE)))


def test_much_beyond_int16_is_refused():
    hu = body().astype(float)
    hu[:, OUTSIDE_VIEW] = 63536  # padding of -2000, read as unsigned
    with pytest.raises(InputError):
        checked(hu)
    hu = body().astype(float)
    hu[:, 50:52, 50:52] = 40000  # metal
    assert checked(hu)[1] == ()


def test_random_volumes_never_end_in_another_error():
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(rng.integers(-(2**15), 2**15, 2))
        values = rng.integers(low, high + 1, rng.integers(1, 12, 3))
        try:
            checked(values)
        except InputError as error:
            assert "\n" not in str(error)


# Real scans

CTS = [*sorted(CT_DIR.glob("*/images/*.nii.gz"))[::4], EXAMPLE]


@pytest.mark.parametrize("path", CTS, ids=lambda path: f"{path.parent.parent.name}-{path.name}")
def test_real_scans_are_left_alone_and_repaired_or_refused_where_distorted(path):
    hu = read_volume(path).hu[:: 1 + 3 * (path.stat().st_size > 10**7), ::4, ::4]
    volume, warnings = checked(hu)
    assert np.array_equal(volume, hu)
    clipped = hu.min() > -200
    assert len(warnings) == clipped and (not clipped or "no air at -1000 HU" in warnings[0])
    for odd, (distort, repaired) in ODD.items():
        if repaired and not clipped:
            volume, (warning,) = checked(distort(hu.astype(float)))
            off = 24 if odd == "HU + 1000" and hu.min() > -1000 else 0  # taken for HU + 1024
            assert np.array_equal(volume, hu - off), odd
            assert " are HU" in warning
        else:
            with pytest.raises(InputError):
                checked(distort(hu.astype(float)))


# From file to mask


def test_a_file_is_read_as_hu_and_its_warning_says_so(tmp_path):
    hu = body()
    volume = read_ct(save_ct(tmp_path / "ct.nii.gz", hu + np.int16(1024)))
    assert np.array_equal(volume.hu, hu)
    assert volume.warnings == (
        f"values from 0 to {hu.max() + 1024} are HU + 1024, stored without its intercept: made HU, for only so air, "
        "fat and soft tissue are at their places",
    )


def test_a_refusal_names_the_file(tmp_path):
    path = save_ct(tmp_path / "ct.nii.gz", np.full((3, 9, 9), -1024, np.int16))
    with pytest.raises(InputError) as error:
        read_ct(path)
    assert str(error.value).startswith(f"{str(path)!r}: no body in it, or not HU: values from -1024 to -1024, ")


def test_it_needs_no_second_volume():
    values = np.repeat(body(), 100, axis=0) + np.int16(1024)
    tracemalloc.start()
    try:
        put_on_hu_scale(values)
        assert tracemalloc.get_traced_memory()[1] < values.nbytes / 3
    finally:
        tracemalloc.stop()
    assert values.min() == -1024
