"""Each augmentation against another implementation or a worked example, and all of them together."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from app.preprocess import normalise
from tests.training_data import PLAIN, add_case, batch, config, phantom_store
from training.augmentations import augment, blur, contrast_phase, intensity, noise, saturation, statistics, view
from training.batch import Slices
from training.store import UNCERTAIN, read_cases, read_pixels


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return phantom_store(tmp_path_factory.mktemp("store"), 64, [17, 24], labelled=1, unlabelled=1)


def slices(count, size_px=64, saturated_hu=np.inf):
    """N unsaturated positives that were drawn for no organ."""
    zeros = np.zeros(count)
    return Slices(
        np.arange(count), np.full((count, 2), size_px), zeros.astype(int), zeros.astype(bool),
        np.zeros((count, 14), bool), zeros, np.full(count, 100.0), np.full(count, saturated_hu),
    )  # fmt: skip


def drawn(module, count=2000, labelled=True, **changes):
    """What an augmentation draws for many slices."""
    settings = config("store", "out", **changes)
    return module.draw(np.random.default_rng(0), slices(count), settings, labelled)


def look(values, matrix=((1.0, 0.0), (0.0, 1.0)), shift_px=(0.0, 0.0), warp_px=None, crop_px=64, mode="bilinear"):
    """One square slice as a view shows it."""
    settings = config("store", "out", crop_px=crop_px, warp_px=float(warp_px is not None))
    points = torch.zeros(1, 2, 4, 4) if warp_px is None else torch.tensor(warp_px).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    zero = torch.zeros(1)
    seen = view.View(
        torch.tensor([matrix]).float(), torch.tensor([shift_px]), zero.long(), zero, torch.zeros(1, 2), points.float()
    )
    values = torch.as_tensor(values)[None]
    return view.sample(values.float(), view.grid(values.byte(), seen, settings), -100, mode)[0, 0]


def test_without_augmentation_the_slice_comes_through_exactly(store):
    settings = config(store, store, crop_px=64, **PLAIN)
    given = batch(store, settings)
    case = read_cases(store)[0]
    hu, truth = read_pixels(store, case, int(given.slices.entry[0]))
    given.draws.saturation.cut_at_hu[:] = torch.inf
    images, labels = augment(given, settings)
    assert images.dtype == torch.float32 and labels.dtype == torch.uint8
    expected = normalise(torch.from_numpy(hu), case.mean_hu, case.std_hu)
    torch.testing.assert_close(images[0, 0], expected, rtol=0, atol=1e-4)
    assert np.array_equal(labels[0], truth)


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (saturation, {}),
        (contrast_phase, {"phase_share": 1.0}),
        (noise, {"noise_hu": 40.0}),
        (blur, {"blur": 0.9}),
        (statistics, {"statistics_jitter": 0.1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_augmentation_is_among_all_of_them(store, module, flags):
    settings = config(store, store, crop_px=64, labelled_per_batch=8, **PLAIN | flags)
    given = batch(store, settings)
    draws = given.draws
    if module is not saturation:
        draws.saturation.cut_at_hu[:] = torch.inf
    hu, organ = given.hu.float(), given.labels.long()
    if module is contrast_phase:
        hu = contrast_phase.apply(hu, organ, draws.contrast_phase)
    elif module is not statistics:
        hu = module.apply(hu, getattr(draws, module.__name__.rpartition(".")[2]))
    mean_hu, std_hu = (value[:, None, None] for value in draws.statistics)
    images, _ = augment(given, settings)
    torch.testing.assert_close(images[:, 0], normalise(hu, mean_hu, std_hu), rtol=0, atol=1e-3)
    plain = normalise(given.hu.float(), given.slices.mean_hu[:, None, None], given.slices.std_hu[:, None, None])
    assert (images[:, 0] - plain).abs().amax(dim=(1, 2)).max() > 0.02


def test_statistics_move_by_a_share_of_the_scans_own():
    moved = drawn(statistics, statistics_jitter=0.1)
    assert 9.5 < np.abs(moved.mean_hu).max() <= 10 and 109.5 < moved.std_hu.max() <= 110 and moved.std_hu.min() < 90.5


@pytest.mark.parametrize("degrees", [-14.0, 3.0, 170.0])
def test_rotation_against_scipy(degrees):
    rng = np.random.default_rng(0)
    hu = ndimage.zoom(rng.normal(300, 200, (16, 16)), 4, order=1)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = ((cos, -sin), (sin, cos))
    options = dict(reshape=False, mode="grid-constant", cval=-100, prefilter=False)
    expected = ndimage.rotate(hu, degrees, order=1, **options)
    np.testing.assert_allclose(look(hu, matrix), expected, atol=0.5)
    labels = (hu > 300).astype(np.uint8)
    nearest = ndimage.rotate(labels, degrees, order=0, **options | {"cval": 0})
    assert (look(labels, matrix, mode="nearest").clamp(min=0).numpy() != nearest).mean() < 0.005  # ties of two pixels


def test_zoom_and_place_by_hand():
    hu = np.zeros((64, 64))
    hu[32:] = 800  # an edge between rows 31 and 32
    rows = look(hu, shift_px=(0.0, 8.0), crop_px=32)[:, 5]  # rows 24 to 55
    assert rows.tolist() == [0] * 8 + [800] * 24
    rows = look(hu, ((2.0, 0.0), (0.0, 2.0)), crop_px=32)[:, 5]  # all rows, half as large
    assert rows.round().tolist() == [0] * 16 + [800] * 16


def test_a_warp_that_is_equal_everywhere_is_a_shift():
    hu = np.random.default_rng(0).integers(-100, 1000, (64, 64))
    shifted = look(hu, warp_px=(3.0, 5.0))  # x, y
    np.testing.assert_allclose(shifted[:59, :61], hu[5:, 3:], atol=0.2)


def test_labels_move_with_images(tmp_path):
    """An image that is its own label map keeps being it, but for the interpolated rims."""
    labels = np.zeros((1, 64, 64), np.uint8)
    labels[0, 20:45, 10:50] = 9
    labels[0, 5:15, 30:60] = 4
    add_case(tmp_path, "a", labels.astype(np.int16) * 100, labels)
    settings = config(
        tmp_path, tmp_path, crop_px=48, zoom=1.3, warp_px=2.0, organ_share=0.5, labelled_per_batch=20,
        **PLAIN | {"rotation_deg": 15.0},
    )  # fmt: skip
    given = batch(tmp_path, settings)
    given.draws.saturation.cut_at_hu[:] = torch.inf
    images, moved = augment(given, settings)
    assert images.shape == (20, 1, 48, 48) and moved.shape == (20, 48, 48)
    for k in range(20):
        hu = images[k, 0] * given.slices.std_hu[k] + given.slices.mean_hu[k]
        lowest, highest = (
            f(moved[k], 5, mode="constant", cval=99) for f in (ndimage.minimum_filter, ndimage.maximum_filter)
        )
        inside = torch.from_numpy(lowest == highest) & (hu > -1)  # air beyond the frame is background, at -100
        assert inside.any()
        assert (hu / 100 - moved[k])[inside].abs().max() < 0.01


def test_views_have_the_drawn_sizes():
    views = drawn(view, rotation_deg=15.0, zoom=1.5, warp_px=4.0)
    degrees = np.rad2deg(np.arctan2(views.matrix[:, 1, 0], views.matrix[:, 0, 0]))
    zoom = np.sqrt(np.linalg.det(views.matrix))
    assert 14 < degrees.max() <= 15 and -15 <= degrees.min() < -14
    assert 1.45 < zoom.max() <= 1.5001 and 0.6666 <= zoom.min() < 0.69 and abs(np.log(zoom).mean()) < 0.02
    warp_sd_px = views.warp_px.std(axis=(1, 2, 3))
    assert 0.45 < (warp_sd_px == 0).mean() < 0.55  # half of the slices are not warped
    assert 1.8 < warp_sd_px[warp_sd_px > 0].mean() < 2.1 and warp_sd_px.max() < 6  # of 32 normal draws


def test_organ_jitter_moves_its_organ_alone_and_slice_jitter_all():
    hu = torch.arange(12.0).view(1, 3, 4)
    organ = torch.zeros(1, 3, 4, dtype=torch.int64)
    organ[0, 1] = 5
    offset_hu, scale = torch.zeros(1, 14), torch.ones(1, 14)
    offset_hu[0, 5], scale[0, 5] = 30, 1.1
    still = intensity.Intensity(offset_hu, scale, torch.zeros(1), torch.ones(1))
    expected = hu.clone()
    expected[0, 1] = hu[0, 1] * 1.1 + 30
    torch.testing.assert_close(intensity.apply(hu, organ, still), expected)
    moved = still._replace(slice_offset_hu=torch.tensor([7.0]), slice_scale=torch.tensor([2.0]))
    torch.testing.assert_close(intensity.apply(hu, organ, moved), 2 * expected + 7)


def test_background_and_unlabelled_slices_have_no_organ_jitter():
    labelled = drawn(intensity, organ_offset_hu=20.0, organ_scale=0.05)
    assert not labelled.organ_offset_hu[:, 0].any() and (labelled.organ_scale[:, 0] == 1).all()
    assert labelled.organ_offset_hu[:, 1:].std() == pytest.approx(20, rel=0.05)
    assert labelled.organ_scale[:, 1:].std() == pytest.approx(0.05, rel=0.05)
    unlabelled = drawn(intensity, labelled=False)
    assert not unlabelled.organ_offset_hu.any() and (unlabelled.organ_scale == 1).all()
    assert unlabelled.slice_offset_hu.std() == pytest.approx(10, rel=0.1)


def test_uncertain_pixels_are_no_organ_and_jitter_comes_before_the_clip(store):
    settings = config(store, store, crop_px=64, **PLAIN)
    given = batch(store, settings)
    given.draws.saturation.cut_at_hu[:] = torch.inf
    before, _ = augment(given, settings)
    given.labels[:] = UNCERTAIN
    given.draws.intensity.organ_offset_hu[:, 1:] = 500
    assert torch.equal(augment(given, settings)[0], before)
    given.draws.intensity.slice_offset_hu[:] = 5000
    highest = (1000 - given.slices.mean_hu) / given.slices.std_hu
    torch.testing.assert_close(augment(given, settings)[0], highest[:, None, None, None].expand_as(before))


def test_noise_is_a_window_of_the_bank():
    hu = torch.full((2, 30, 40), 50.0)
    noisy = noise.apply(hu, noise.Noise(torch.tensor([7.0, 0.0]), torch.tensor([[0.5, 0.25], [0.0, 0.0]])))
    bank = noise.bank(hu.device)
    assert bank.mean().abs() < 0.01 and bank.std().sub(1).abs() < 0.01
    torch.testing.assert_close(noisy[0], 50 + 7 * bank[497:527, 246:286])  # halfway down 1024 - 30, a quarter of 984
    assert torch.equal(noisy[1], hu[1])
    sd_hu = drawn(noise, noise_hu=15.0).sd_hu
    assert 0.45 < (sd_hu == 0).mean() < 0.55 and sd_hu.max() < 15
    assert sd_hu[sd_hu > 0].mean() == pytest.approx(7.5, abs=0.5)


def test_blur_against_scipy_and_sharpening_is_its_opposite():
    hu = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0)) * 100
    blurred = blur.apply(hu, blur.Blur(torch.tensor([1.0, -0.5])))
    expected = ndimage.gaussian_filter(hu.numpy(), (0, 1, 1), mode="nearest", truncate=2)
    np.testing.assert_allclose(blurred[0], expected[0], atol=0.05)
    np.testing.assert_allclose(blurred[1], 1.5 * hu[1].numpy() - 0.5 * expected[1], atol=0.05)
    share = drawn(blur, blur=0.5).share
    assert 0.45 < (share == 0).mean() < 0.55 and abs(share).max() <= 0.5


def test_saturated_pixels_get_an_excess_and_others_are_cut_off():
    hu = torch.full((2, 64, 64), 100.0)
    hu[:, 20:40, 20:40] = 275
    given = saturation.Saturation(
        torch.tensor([275.0, torch.inf]), torch.tensor([200.0, 0.0]), torch.tensor([torch.inf, 200.0])
    )
    restored, cut = saturation.apply(hu, given)
    assert restored[30, 30].item() == pytest.approx(475, abs=0.1)  # deep inside
    assert restored[20, 20].item() == pytest.approx(275 + 200 * 16 / 49, abs=0.1)  # of 49 neighbours 16 are saturated
    assert restored[10, 10] == 100 and cut.max() == 200 and cut[10, 10] == 100
    true = drawn(saturation)
    assert not true.excess_hu.any() and np.isfinite(true.cut_at_hu).mean() == pytest.approx(0.2, abs=0.03)
    saturated = saturation.draw(np.random.default_rng(0), slices(2000, saturated_hu=275), config("store", "out"), True)
    assert np.isinf(saturated.cut_at_hu).all() and (saturated.excess_hu > 0).mean() == pytest.approx(0.8, abs=0.03)
