"""What a GPU would complain of, found without one.

On torch's meta device there are shapes and no values. Tensors of two devices do not mix there, and whatever waits for
a value (`.item()`, an `if` over a tensor, a shape that depends on data) is an error; on a card it would be a stop in
every step. float16, which a card computes in, is simulated by rounding.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.fx.experimental import _config

from app.fuse import fold_batch_norm
from app.network import DeepLabV3Plus
from app.options import WEIGHTS
from app.postprocess import labels_from_logits
from app.preprocess import WINDOW_HU, clipped_statistics, normalise
from app.volume import read_volume
from app.weights import load_weights
from benchmarks.scan import EXAMPLE
from tests.training_data import config, phantom_store, sampler
from training.augmentations import augment
from training.method import Examples, gradients
from training.resident import ResidentBatches

META = torch.device("meta")


@pytest.mark.parametrize("cutmix", [False, True])
def test_a_training_step_stays_on_its_device_and_never_waits(tmp_path, cutmix):
    store = phantom_store(tmp_path, 64, [12, 24], labelled=1, unlabelled=1)
    settings = config(
        store, tmp_path, dice_weight=1.0, organ_share=0.5, zoom=1.2, warp_px=2.0, noise_hu=5.0, blur=0.3,
        phase_share=0.5, statistics_jitter=0.1, strong_views=True,
    )  # fmt: skip
    examples = []
    for labelled in (True, False):
        batch = ResidentBatches(sampler(store, settings, labelled), store, slice(0, 4), META).batch(0)
        weak_images, _ = augment(batch, settings, weak=True)
        examples.append(Examples(*augment(batch, settings), batch.slices.unannotated, weak_images))
    branches = [DeepLabV3Plus().to(META, memory_format=torch.channels_last) for _ in range(2)]
    boxes = torch.zeros(4, 4, dtype=torch.int64, device=META) if cutmix else None
    losses = gradients(branches, *examples, boxes, 0.5, 1.0, 0.9, nullcontext)
    assert all(loss.device == META and loss.shape == () for loss in losses)
    for branch in branches:
        assert all(parameter.grad.device == META for parameter in branch.parameters())
        torch.optim.SGD(branch.parameters(), lr=0.1, momentum=0.1).step()


def test_labels_of_slices_stay_on_their_device(monkeypatch):
    monkeypatch.setattr(_config, "meta_nonzero_assume_all_nonzero", True)  # the one shape that depends on data
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())  # meta has none
    network = DeepLabV3Plus().eval().to(META, torch.float16, memory_format=torch.channels_last)
    with torch.no_grad():
        labels = labels_from_logits(network.quarter_logits(torch.empty(2, 1, 64, 96, dtype=torch.float16, device=META)))
    assert (labels.device, labels.dtype, labels.shape) == (META, torch.uint8, (2, 64, 96))


def test_float16_holds_the_shipped_network_on_a_real_scan():
    """Far from overflow (65,504), and its rounding, after every layer, moves hardly a label."""
    hu = read_volume(EXAMPLE).hu
    two = torch.from_numpy(hu[[len(hu) // 3, len(hu) // 2]]).clamp(*WINDOW_HU)[:, None]
    images = normalise(two, *clipped_statistics(hu))
    network = DeepLabV3Plus()
    network.load_state_dict({name: value.float() for name, value in load_weights(WEIGHTS).state.items()})
    network = fold_batch_norm(network.eval())
    with torch.inference_mode():
        expected = labels_from_logits(network.quarter_logits(images))
    largest = 0.0

    def rounded(module, inputs, output):
        nonlocal largest
        largest = max(largest, output.abs().max().item())
        return output.half().float()

    network.half().float()
    for module in (child for child in network.modules() if not list(child.children())):
        module.register_forward_hook(rounded)
    with torch.inference_mode():
        labels = labels_from_logits(network.quarter_logits(images))
    assert 1 < largest < 65504 / 50
    assert (expected > 0).any() and (labels != expected).float().mean() < 1e-3
