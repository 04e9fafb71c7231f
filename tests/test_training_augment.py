import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils.data import default_collate

from app.preprocess import normalise
from tests.training_data import PLAIN, add_case, config, phantom_store
from training.augment import augment, noise_bank
from training.dataset import SliceDataset, split
from training.store import UNCERTAIN, read_cases, read_slice

NOISE = noise_bank("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return phantom_store(tmp_path_factory.mktemp("store"), 64, [17, 24], labelled=1)


def draw(store, position=0, **changes):
    """One sample's item, as a batch of one, and the settings."""
    settings = config(store, store, **{"frame_px": 64, "crop_size": 64, **PLAIN, **changes})
    data = SliceDataset(store, split(read_cases(store), settings).labelled, settings, labelled=True)
    return default_collate([data[position]]), settings


def run(batch, settings):
    images, labels = augment(batch, settings.crop_size, NOISE)
    assert images.dtype == torch.float32 and labels.dtype == torch.uint8
    return images, labels


def test_without_augmentation_the_slice_comes_through_exactly(store):
    batch, settings = draw(store)
    batch["saturate_at_hu"][:] = torch.inf
    case = read_cases(store)[0]
    slices = [read_slice(store, case, z) for z in range(2)]
    hu, truth = next(pair for pair in slices if np.array_equal(pair[0], batch["hu"][0]))
    images, labels = run(batch, settings)
    torch.testing.assert_close(
        images[0, 0], normalise(torch.from_numpy(hu), case.mean_hu, case.std_hu), rtol=0, atol=1e-4
    )
    assert np.array_equal(labels[0], truth)


@pytest.mark.parametrize("position", range(3))
def test_rotation_against_scipy(store, position):
    batch, settings = draw(store, position, rotation_deg=15.0)
    batch["saturate_at_hu"][:] = torch.inf
    images, labels = run(batch, settings)
    (cos, minus_sin, _), (sin, _, _) = batch["affine"][0].tolist()
    degrees = np.rad2deg(np.arctan2(sin, cos))
    assert minus_sin == -sin and 0.1 < abs(degrees) <= 15
    hu = batch["hu"][0].numpy().astype(float).clip(-100, 1000)
    options = dict(reshape=False, mode="grid-constant", prefilter=False)
    expected = ndimage.rotate(hu, degrees, order=1, cval=-100, **options)
    expected = (expected - batch["mean_hu"].item()) / batch["std_hu"].item()
    np.testing.assert_allclose(images[0, 0], expected, atol=2e-3)
    nearest = ndimage.rotate(batch["labels"][0].numpy(), degrees, order=0, cval=0, **options)
    assert (labels[0].numpy() != nearest).mean() < 0.005  # ties between two pixels


def test_labels_move_with_images(tmp_path):
    """An image that is its own label map keeps being it, but for the interpolated rims."""
    labels = np.zeros((1, 64, 64), np.uint8)
    labels[0, 20:45, 10:50] = 9
    labels[0, 5:15, 30:60] = 4
    add_case(tmp_path, "a", labels.astype(np.int16) * 100, labels)
    for position in range(10):
        changes = dict(rotation_deg=15.0, zoom=1.3, warp_px=4.0, crop_size=48)
        batch, settings = draw(tmp_path, position, **changes)
        batch["saturate_at_hu"][:] = torch.inf
        images, moved = run(batch, settings)
        assert images.shape == (1, 1, 48, 48) and moved.shape == (1, 48, 48)
        hu = images[0, 0] * batch["std_hu"] + batch["mean_hu"]
        lowest, highest = (
            f(moved[0], 5, mode="constant", cval=99) for f in (ndimage.minimum_filter, ndimage.maximum_filter)
        )
        inside = torch.from_numpy(lowest == highest)
        inside &= hu > -1  # air beyond the frame is background too, at -100
        assert inside.any()
        assert (hu / 100 - moved[0])[inside].abs().max() < 0.01


def test_zoom_and_crop_by_hand(tmp_path):
    hu = np.zeros((1, 64, 64), np.int16)
    hu[0, 32:, :] = 800  # an edge between rows 31 and 32
    add_case(tmp_path, "a", hu, np.ones(hu.shape, np.uint8))
    batch, settings = draw(tmp_path, crop_size=32)
    batch["saturate_at_hu"][:] = torch.inf
    batch["affine"][:] = torch.tensor([[0.5, 0, 0], [0, 0.5, 0.25]])  # half size, centre 8 px down: rows 24..55
    images, _ = run(batch, settings)
    rows = images[0, 0, :, 5] * batch["std_hu"] + batch["mean_hu"]
    assert rows.round().tolist() == [0] * 8 + [800] * 24


def test_a_warp_that_is_the_same_everywhere_is_a_shift(tmp_path):
    hu = np.random.default_rng(0).integers(-100, 1000, (1, 64, 64)).astype(np.int16)
    add_case(tmp_path, "a", hu, (hu > 500).astype(np.uint8))
    batch, settings = draw(tmp_path)
    batch["saturate_at_hu"][:] = torch.inf
    images, labels = run(batch, settings)
    batch["warp"][:, 0], batch["warp"][:, 1] = 2 * 3 / 64, 2 * 5 / 64  # 3 px in x, 5 px in y
    shifted_images, shifted_labels = run(batch, settings)
    torch.testing.assert_close(shifted_images[..., :59, :61], images[..., 5:, 3:], rtol=0, atol=1e-3)
    assert torch.equal(shifted_labels[:, :59, :61], labels[:, 5:, 3:])


def test_warps_have_the_drawn_size_and_half_of_the_slices_none(store):
    largest = []
    for position in range(200):
        batch, _ = draw(store, position, warp_px=4.0)
        largest.append(batch["warp"].std().item() * 64 / 2)
    largest = np.array(largest)
    assert 0.4 < (largest == 0).mean() < 0.6
    assert 1.5 < largest[largest > 0].mean() < 2.5 and largest.max() < 6  # uniform in 0..4, of 32 normal draws


def test_organ_jitter_moves_its_organ_alone(store):
    batch, settings = draw(store)
    batch["saturate_at_hu"][:] = torch.inf
    plain, labels = run(batch, settings)
    batch["organ_offset_hu"][0, 1] = 30
    batch["organ_scale"][0, 1] = 1.1
    batch["labels"][0, :2] = UNCERTAIN
    moved, _ = run(batch, settings)
    liver = labels[0] == 1
    before, after = ((x[0, 0] * batch["std_hu"] + batch["mean_hu"]) for x in (plain, moved))
    assert liver.any()
    torch.testing.assert_close(after[~liver], before[~liver], rtol=0, atol=0.01)
    torch.testing.assert_close(after[liver], before[liver] * 1.1 + 30, rtol=0, atol=0.01)


def test_background_and_unlabelled_slices_have_no_organ_jitter(store):
    settings = config(store, store, frame_px=64, crop_size=64, phase_share=1.0)
    labelled = SliceDataset(store, read_cases(store), settings, labelled=True)[3]
    assert (labelled["organ_offset_hu"][0], labelled["organ_scale"][0]) == (0, 1)
    assert labelled["organ_offset_hu"][1:].all() and labelled["washout"].any()
    unlabelled = SliceDataset(store, read_cases(store), settings, labelled=False)[3]
    assert not unlabelled["organ_offset_hu"].any() and (unlabelled["organ_scale"] == 1).all()
    assert unlabelled["slice_offset_hu"] != 0 and not unlabelled["washout"].any()


def test_jitter_comes_before_the_clip(store):
    batch, settings = draw(store)
    batch["slice_offset_hu"][:] = 5000
    images, _ = run(batch, settings)
    torch.testing.assert_close(images, torch.full_like(images, ((1000 - batch["mean_hu"]) / batch["std_hu"]).item()))


def test_noise_windows_and_blur(store):
    batch, settings = draw(store)
    batch["saturate_at_hu"][:] = torch.inf
    plain, _ = run(batch, settings)
    batch["hu"] += 500  # away from the clip
    base, _ = run(batch, settings)
    batch["noise_hu"][:] = 7
    noisy, _ = run(batch, settings)
    y, x = batch["noise_at"][0].tolist()
    unclipped = (batch["hu"][0] > 0) & (batch["hu"][0] < 900)
    difference = ((noisy - base)[0, 0] * batch["std_hu"])[unclipped]
    torch.testing.assert_close(difference, 7 * NOISE[y : y + 64, x : x + 64][unclipped], rtol=0, atol=0.01)
    batch["noise_hu"][:], batch["blur"][:] = 0, 1
    batch["hu"] -= 500
    blurred, _ = run(batch, settings)
    hu = batch["hu"][0].float().numpy()
    expected = ndimage.gaussian_filter(hu, 1, mode="nearest", truncate=2).clip(-100, 1000)
    np.testing.assert_allclose((blurred[0, 0] * batch["std_hu"] + batch["mean_hu"]).numpy(), expected, atol=0.05)
    assert not torch.equal(plain, blurred)


def test_saturated_pixels_get_an_excess_and_others_are_cut_off(tmp_path):
    hu = np.full((1, 64, 64), 100, np.int16)
    hu[0, 20:40, 20:40] = 275
    add_case(tmp_path, "a", hu, np.ones(hu.shape, np.uint8), saturated_hu=275)
    batch, settings = draw(tmp_path)
    batch["excess_hu"][:] = 200
    images, _ = run(batch, settings)
    out = images[0, 0] * batch["std_hu"] + batch["mean_hu"]
    assert out[30, 30].item() == pytest.approx(475, abs=0.1)  # deep inside
    assert 275 < out[20, 20].item() < 400  # at a corner, 16 of 49 neighbours are saturated
    assert out[20, 20].item() == pytest.approx(275 + 200 * 16 / 49, abs=0.1)
    assert out[10, 10].item() == pytest.approx(100, abs=0.1)
    batch["excess_hu"][:], batch["saturate_at_hu"][:] = 0, 200
    images, _ = run(batch, settings)
    assert (images[0, 0] * batch["std_hu"] + batch["mean_hu"]).max().item() == pytest.approx(200, abs=0.1)
