import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from app.options import WEIGHTS
from tests.training_data import PLAIN, config, phantom_store
from tests.training_run import frozen
from training import checkpoint
from training.augmentations import augment
from training.cutmix import inside, random_boxes
from training.store import UNCERTAIN, read_cases
from training.train import PAUSED_EXIT, Run, main
from training.validate import dice, validate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return phantom_store(tmp_path_factory.mktemp("store"), 32, [12, 17, 24, 32], labelled=2, unlabelled=2)


class Killed(Exception):
    pass


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(store, tmp_path, monkeypatch):
    settings = config(
        store, tmp_path / "whole", epochs=1.5, warmup_share=0.5, workers=1, dice_weight=1.0, organ_share=0.3,
        true_hu_share=0.1, noise_hu=10.0, blur=0.5, zoom=1.2, statistics_jitter=0.1, momentum=0.9,
    )  # fmt: skip
    Run(settings).train()
    whole = checkpoint.load(tmp_path / "whole" / checkpoint.FILE_NAME)
    assert whole["step"] == whole["total_steps"] == 3

    settings = dataclasses.replace(settings, out=str(tmp_path / "killed"), checkpoint_every_s=0.0)
    run = Run(settings)
    step = run.train_step

    def killed_in_the_second_step(*batches):
        losses = step(*batches)
        if run.step == 2:
            raise Killed
        return losses

    monkeypatch.setattr(run, "train_step", killed_in_the_second_step)
    with pytest.raises(Killed):
        run.train()
    torch.rand(7)  # another process, another state of the global generator
    resumed = Run(settings)
    assert resumed.step == 1
    resumed.train()
    killed = checkpoint.load(resumed.path)
    for key in ("branches", "optimisers", "step"):
        assert_close(whole[key], killed[key], rtol=0, atol=0)
    assert whole["data"] == killed["data"]
    assert not list(tmp_path.glob("*/*.part"))

    with pytest.raises(ValueError, match=r"of another run \(lr 0.02 -> 0.5\).*--init"):
        Run(dataclasses.replace(settings, lr=0.5))
    with pytest.raises(ValueError, match="other cases"):
        Run(dataclasses.replace(settings, store=str(phantom_store(tmp_path / "other", 32, [17], 1, 1))))
    checkpoint.save(checkpoint.compact(killed), resumed.path)
    with pytest.raises(ValueError, match="without its optimisers"):
        Run(settings)
    torch.save({"branches": [], "format": 1}, resumed.path)
    with pytest.raises(ValueError, match=r"checkpoint.pt is a checkpoint of another version \(format 1, not 2\)"):
        Run(settings)


def test_a_store_without_labels_is_named(tmp_path):
    store = phantom_store(tmp_path / "store", 32, [17], 0, 1)
    with pytest.raises(ValueError, match="store: no labelled slice to train on"):
        Run(config(store, tmp_path / "run", branches=1, lambda_=0.0))


def test_two_processes_equal_one_with_the_same_batch(store, tmp_path):
    settings = config(store, tmp_path / "one", epochs=1, dice_weight=1.0, lr=0.01, momentum=0.9, organ_share=0.3)
    run = frozen(Run(settings))
    start = [copy.deepcopy(branch.state_dict()) for branch in run.branches]
    run.train()
    values = json.dumps(dataclasses.asdict(settings) | {"out": str(tmp_path / "two")})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, ROOT / "tests/training_run.py", values], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = checkpoint.load(tmp_path / "two" / checkpoint.FILE_NAME)
    assert run.step == two["step"] == 2
    for branch, other, before in zip(run.branches, two["branches"], start, strict=True):
        for name, after in branch.state_dict().items():
            if after.is_floating_point():
                first, second = after - before[name], other[name] - before[name]
                assert (first - second).norm() <= 1e-3 * first.norm(), name


SUCCESSORS = dict(strong_views=True, noise_hu=60.0, min_confidence=0.4)


@pytest.mark.parametrize("successors", [{}, SUCCESSORS], ids=["CPS", "strong views, confident pseudo-labels"])
def test_one_step_is_equations_1_to_3_written_out(store, tmp_path, successors):
    # No rotation: the corners that it brings into view are known to be background, without any pseudo-label.
    settings = config(
        store, tmp_path, dice_weight=0.4, lambda_=1.4, lambda_warmup_share=0.5, weight_decay=1e-2, lr=0.1,
        poly_power=0.0, rotation_deg=0.0, **successors,
    )  # fmt: skip
    run = frozen(Run(settings))
    copies = [copy.deepcopy(branch).double() for branch in run.branches]
    labelled, unlabelled = next(run.batches())
    run.train_step(labelled, unlabelled, done=0.25)  # lambda is at half

    images, labels = augment(labelled, settings)
    unmixed, _ = augment(unlabelled, settings)
    jitter, noise = unlabelled.draws.intensity, unlabelled.draws.noise
    jitter = jitter._replace(slice_scale=torch.ones(4), slice_offset_hu=torch.zeros(4))
    draws = unlabelled.draws._replace(intensity=jitter, noise=noise._replace(sd_hu=torch.zeros(4)))
    weak, _ = augment(unlabelled._replace(draws=draws), settings)
    images, unmixed, weak = images.double(), unmixed.double(), weak.double()
    supervised = 0.0
    for branch in copies:
        logits = branch(images)
        p, terms = logits.softmax(1), []
        for c in range(1, 14):
            truth = labels == c
            if truth.any():
                terms.append(1 - 2 * p[:, c][truth].sum() / (p[:, c].sum() + truth.sum()))
        # Every organ is annotated.
        supervised += F.cross_entropy(logits, labels.long()) + 0.4 * torch.stack(terms).mean()
    p, pseudo = zip(*(branch(weak if successors else unmixed).softmax(1).max(1) for branch in copies), strict=True)
    ignored = [confidence < settings.min_confidence for confidence in p]
    assert all(pixels.any() and not pixels.all() for pixels in ignored) == bool(successors)
    pseudo = [labels.masked_fill(pixels, -100) for labels, pixels in zip(pseudo, ignored, strict=True)]
    mask = inside(random_boxes(np.random.default_rng([0, 2, 0]), 4, 32, 32), 32, 32)
    mixed, mixed_pseudo = unmixed.clone(), [y.clone() for y in pseudo]
    for n in range(4):
        mixed[n, 0][mask[n]] = unmixed[n ^ 1, 0][mask[n]]
        for k in range(2):
            mixed_pseudo[k][n][mask[n]] = pseudo[k][n ^ 1][mask[n]]
    pixel_losses = [F.cross_entropy(copies[k](mixed), mixed_pseudo[1 - k], reduction="none") for k in range(2)]
    cps = sum(losses.mean() for losses in pixel_losses)  # -100 is ignored: a loss of 0
    (supervised + 0.7 * cps).backward()
    for branch, expected in zip(run.branches, copies, strict=True):
        for (name, after), before in zip(branch.named_parameters(), expected.parameters(), strict=True):
            step = after.detach().double() - before.detach()
            by_hand = -0.1 * (before.grad + 1e-2 * before.detach())  # SGD's first step
            assert (step - by_hand).norm() <= 2e-3 * by_hand.norm() + 1e-6, name


def test_mixed_precision_of_training_and_validation_does_not_round_what_the_network_sees(store, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    run = Run(config(store, tmp_path, bf16=True, blur=0.5))
    labelled, unlabelled = next(run.batches())
    branch, seen, given = run.branches[0], [], []
    branch.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    branch.classifier.register_forward_hook(lambda module, inputs, logits: given.append(logits.dtype))
    run.train_step(labelled, unlabelled, done=0.0)
    assert torch.equal(seen[0], augment(unlabelled, run.config)[0])  # for the pseudo-labels, unmixed
    assert torch.equal(seen[1], augment(labelled, run.config)[0])
    for bf16, dtypes in ((True, {torch.bfloat16}), (False, {torch.float32})):
        validate(branch, store, run.samplers[0].cases[:1], dataclasses.replace(run.config, bf16=bf16), run.data)
        assert set(given) == dtypes
        given.clear()


def test_cutmix_pairs_are_not_split_among_processes(store, tmp_path, monkeypatch):
    monkeypatch.setattr("training.train.join", lambda device: (0, 4, torch.device("cpu")))
    with pytest.raises(ValueError, match="--unlabelled-per-batch 12 must give each of 4 processes an even number"):
        Run(config(store, tmp_path, labelled_per_batch=12, unlabelled_per_batch=12))


def test_lambda_0_is_training_without_unlabelled_slices(store, tmp_path):
    only_labelled = phantom_store(tmp_path / "store", 32, [12, 17, 24, 32], labelled=2)
    weights = []
    for folder in (store, only_labelled):
        run = Run(config(folder, tmp_path / folder.name, branches=1, lambda_=0.0))
        assert len(run.samplers) == 1
        run.train_step(*next(run.batches()), done=0.0)
        weights.append(run.branches[0].state_dict())
    assert_close(*weights, rtol=0, atol=0)


def test_branches_start_by_seed_or_from_checkpoints(store, tmp_path, capsys):
    runs = [Run(config(store, tmp_path / str(seed), branches=1, lambda_=0.0, seed=seed)) for seed in (0, 1)]
    first, second, other = (
        branch.classifier.weight for run in (Run(config(store, tmp_path)), runs[1]) for branch in run.branches
    )
    assert torch.equal(first, runs[0].branches[0].classifier.weight)
    assert not torch.equal(first, second) and not torch.equal(first, other) and not torch.equal(second, other)
    for run in runs:
        run.save()
    both = Run(config(store, tmp_path / "both", init=f"{runs[0].path},{runs[1].path}"))
    for branch, run in zip(both.branches, runs, strict=True):
        assert_close(branch.state_dict(), run.branches[0].state_dict(), rtol=0, atol=0)
    assert both.step == 0 and [stage["config"]["seed"] for stage in both.stages] == [0, 1]
    assert all("store" not in stage["config"] for stage in both.stages)
    assert not capsys.readouterr().out
    Run(config(store, tmp_path / "one", init=str(runs[0].path)))
    assert "1 branch for 2" in capsys.readouterr().out
    both.save()
    assert Run(both.config).stages == both.stages  # a run that goes on remembers what it came from
    with pytest.raises(ValueError, match="3 branches for 2; export the one that is meant"):
        Run(config(store, tmp_path / "three", init=f"{both.path},{runs[0].path}"))


def test_by_the_clock_the_schedule_ends_when_the_time_does(store, tmp_path, monkeypatch):
    """Ten seconds, of which each step takes two; the run is stopped in between and goes on with the time it had."""
    now_s = 100.0
    monkeypatch.setattr("training.train.time.monotonic", lambda: now_s)
    step, rates = Run.train_step, []

    def two_seconds(self, *arguments):
        nonlocal now_s
        now_s += 2
        losses = step(self, *arguments)
        rates.append(losses["lr"].item())
        return losses

    monkeypatch.setattr(Run, "train_step", two_seconds)
    settings = config(store, tmp_path, branches=1, lambda_=0.0, train_s=10.0, stop_after_s=3.0, resident=True)
    Run(settings).train()
    assert checkpoint.load(tmp_path / checkpoint.FILE_NAME)["trained_s"] == 4.0
    now_s += 1000
    Run(dataclasses.replace(settings, stop_after_s=0.0)).train()
    assert rates == pytest.approx([0.02 * (1 - done) ** 0.9 for done in (0, 0.2, 0.4, 0.6, 0.8)])
    state = checkpoint.load(tmp_path / checkpoint.FILE_NAME)
    assert (state["step"], state["trained_s"], state["total_steps"]) == (5, 10.0, None)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(store, tmp_path):
    run = Run(config(store, tmp_path, branches=1, lambda_=0.0, epochs=1))
    run.save()
    with torch.no_grad():
        run.branches[0].classifier.bias[3] = torch.nan
    with pytest.raises(FloatingPointError, match="step 1"):
        run.train()
    with pytest.raises(FloatingPointError, match="weights are no longer finite"):  # losses are read now and then
        run.save()
    kept = checkpoint.load(tmp_path / checkpoint.FILE_NAME)
    assert kept["step"] == 0 and torch.isfinite(kept["branches"][0]["classifier.bias"]).all()


def test_hand_worked_dice():
    truth = np.array([1, 1, 2, UNCERTAIN, 0], np.uint8)
    prediction = np.array([1, 0, 2, 2, 12], np.uint8)
    scores = dice(prediction, truth)
    assert scores[1] == pytest.approx(2 / 3) and scores[2] == pytest.approx(2 / 3)  # one of three labels 2 too many
    assert scores[12] == 0 and scores[5] == 1  # said but not there; neither


def test_two_slices_are_learned_by_heart(tmp_path):
    """The whole chain learns: of large organs that the shipped weights hardly find in a phantom, the DSC rises."""
    store = phantom_store(tmp_path / "store", 96, [18, 25], labelled=1)
    settings = config(
        store, tmp_path / "run", init=str(WEIGHTS), crop_px=96, branches=1, lambda_=0.0, dice_weight=1.0,
        optimiser="adamw", lr=0.002, epochs=16, warmup_share=0.05, labelled_per_batch=2, **PLAIN,
    )  # fmt: skip
    run = Run(settings)

    def dsc_of_large_organs():
        scores = validate(run.branches[0], store, read_cases(store), settings, run.data)
        assert len(scores) == 13
        return np.ravel([scores[name] for name in ("Liver", "RK", "Spleen", "Pancreas", "Stomach", "LK")])

    assert dsc_of_large_organs().mean() < 0.5
    run.train()
    assert dsc_of_large_organs().min() > 0.7 and dsc_of_large_organs().mean() > 0.85


def test_a_paused_run_ends_with_a_status_of_its_own(store, tmp_path, monkeypatch):
    """What needs the finished run, as the next line of a script does, must not go on."""
    flags = "--device cpu --workers 0 --crop-px 32 --labelled-per-batch 4 --branches 1 --lambda 0 --epochs 1"
    command = ["train", "--store", str(store), "--out", str(tmp_path), *flags.split()]
    monkeypatch.setattr("sys.argv", [*command, "--stop-after-s", "1e-9"])
    with pytest.raises(SystemExit) as status:
        main()
    assert status.value.code == PAUSED_EXIT != 0
    monkeypatch.setattr("sys.argv", command)
    main()
    assert checkpoint.load(tmp_path / checkpoint.FILE_NAME)["step"] == 2
