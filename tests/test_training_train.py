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

from tests.training_data import PLAIN, config, phantom_store
from tests.training_run import frozen
from training import checkpoint
from training.augmentations import augment
from training.cutmix import inside, random_boxes
from training.store import UNCERTAIN, read_cases
from training.train import Run
from training.validate import dice, validate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return phantom_store(tmp_path_factory.mktemp("store"), 32, [12, 17, 24, 32], labelled=2, unlabelled=2)


def assert_same(first, second, where="state"):
    """Two checkpoints, bit for bit."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for k, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{k}]")
    else:
        assert first == second, where


class Killed(Exception):
    pass


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(store, tmp_path, monkeypatch):
    settings = config(
        store, tmp_path / "whole", epochs=2, warmup_share=0.5, workers=2, dice_weight=1.0, organ_share=0.3,
        true_hu_share=0.1, noise_hu=10.0, blur=0.5, zoom=1.2, statistics_jitter=0.1, momentum=0.9,
    )  # fmt: skip
    Run(settings).train()
    whole = checkpoint.load(tmp_path / "whole" / checkpoint.FILE_NAME)
    assert whole["step"] == whole["total_steps"] == 4

    settings = dataclasses.replace(settings, out=str(tmp_path / "killed"), checkpoint_every_s=0.0)
    run = Run(settings)
    step = run.train_step

    def killed_in_the_third_step(*batches):
        losses = step(*batches)
        if run.step == 3:
            raise Killed
        return losses

    monkeypatch.setattr(run, "train_step", killed_in_the_third_step)
    with pytest.raises(Killed):
        run.train()
    assert checkpoint.load(tmp_path / "killed" / checkpoint.FILE_NAME)["step"] == 2
    torch.rand(7)  # another process, another state of the global generator
    resumed = Run(settings)
    assert resumed.step == 2
    resumed.train()
    killed = checkpoint.load(tmp_path / "killed" / checkpoint.FILE_NAME)
    for key in ("branches", "optimisers", "step", "data"):
        assert_same(whole[key], killed[key], key)
    assert not list(tmp_path.glob("*/*.part"))

    with pytest.raises(ValueError, match=r"of another run \(lr 0.02 -> 0.5\).*--init"):
        Run(dataclasses.replace(settings, lr=0.5))
    with pytest.raises(ValueError, match="other cases"):
        Run(dataclasses.replace(settings, store=str(phantom_store(tmp_path / "other", 32, [17], 1, 1))))
    checkpoint.save(checkpoint.compact(killed), tmp_path / "killed" / checkpoint.FILE_NAME)
    with pytest.raises(ValueError, match="without its optimisers"):
        Run(settings)


def test_a_store_without_labels_is_named(tmp_path):
    store = phantom_store(tmp_path / "store", 32, [17], 0, 1)
    with pytest.raises(ValueError, match="store: no labelled slice to train on"):
        Run(config(store, tmp_path / "run", branches=1, lambda_=0.0))


def test_stop_after_saves_and_goes_on(store, tmp_path):
    settings = config(store, tmp_path, epochs=1, branches=1, lambda_=0.0, stop_after_s=1e-3)
    Run(settings).train()
    assert checkpoint.load(tmp_path / checkpoint.FILE_NAME)["step"] == 1
    Run(settings).train()
    assert checkpoint.load(tmp_path / checkpoint.FILE_NAME)["step"] == 2


def test_two_processes_equal_one_with_the_same_batch(store, tmp_path):
    settings = config(
        store, tmp_path / "one", epochs=1.5, dice_weight=1.0, lr=0.01, momentum=0.9, labelled_per_batch=4,
        unlabelled_per_batch=4, organ_share=0.3,
    )  # fmt: skip
    start = [copy.deepcopy(branch.state_dict()) for branch in Run(settings).branches]
    for out, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])):
        values = json.dumps(dataclasses.asdict(settings) | {"out": str(tmp_path / out)})
        command = [sys.executable, *launcher, str(ROOT / "tests/training_run.py"), values]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (checkpoint.load(tmp_path / out / checkpoint.FILE_NAME) for out in ("one", "two"))
    assert one["step"] == two["step"] == 3
    for k in range(2):
        for name, before in start[k].items():
            if before.is_floating_point():
                first, second = (state["branches"][k][name] - before for state in (one, two))
                assert (first - second).norm() <= 1e-3 * first.norm(), (k, name)


@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_one_step_is_equations_1_to_3_written_out(store, tmp_path, dice_weight):
    # No rotation: the corners that it brings into view are known to be background, without any pseudo-label.
    settings = config(
        store, tmp_path, dice_weight=dice_weight, lambda_=0.7, weight_decay=1e-2, lr=0.1, rotation_deg=0.0
    )
    run = frozen(Run(settings))
    copies = [copy.deepcopy(branch).double() for branch in run.branches]
    labelled, unlabelled = next(run.batches())
    run.train_step(labelled, unlabelled, done=0.0)

    images, labels = augment(labelled, settings)
    unmixed, _ = augment(unlabelled, settings)
    images, unmixed = images.double(), unmixed.double()
    supervised = 0.0
    for branch in copies:
        logits = branch(images)
        supervised += F.cross_entropy(logits, labels.long())  # every organ is annotated
        if dice_weight:
            p, terms = logits.softmax(1), []
            for c in range(1, 14):
                truth = labels == c
                if truth.any():
                    terms.append(1 - 2 * p[:, c][truth].sum() / (p[:, c].sum() + truth.sum()))
            supervised += dice_weight * torch.stack(terms).mean()
    pseudo = [branch(unmixed).argmax(1) for branch in copies]
    mask = inside(random_boxes(np.random.default_rng([0, 2, 0]), 4, 32, 32), 32, 32)
    mixed, mixed_pseudo = unmixed.clone(), [y.clone() for y in pseudo]
    for n in range(4):
        mixed[n, 0][mask[n]] = unmixed[n ^ 1, 0][mask[n]]
        for k in range(2):
            mixed_pseudo[k][n][mask[n]] = pseudo[k][n ^ 1][mask[n]]
    cps = F.cross_entropy(copies[0](mixed), mixed_pseudo[1]) + F.cross_entropy(copies[1](mixed), mixed_pseudo[0])
    (supervised + 0.7 * cps).backward()
    for branch, expected in zip(run.branches, copies, strict=True):
        for (name, after), before in zip(branch.named_parameters(), expected.parameters(), strict=True):
            step = after.detach().double() - before.detach()
            by_hand = -0.1 * (before.grad + 1e-2 * before.detach())  # SGD's first step
            assert (step - by_hand).norm() <= 2e-3 * by_hand.norm() + 1e-6, name


def test_mixed_precision_does_not_round_what_the_network_sees(store, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    run = Run(config(store, tmp_path, bf16=True, blur=0.5))
    labelled, unlabelled = next(run.batches())
    seen = []
    run.branches[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    given = []
    run.branches[0].register_forward_hook(lambda module, inputs, logits: given.append(logits.dtype))
    run.train_step(labelled, unlabelled, done=0.0)
    assert set(given) == {torch.bfloat16}
    assert torch.equal(seen[0], augment(unlabelled, run.config)[0])  # for the pseudo-labels, unmixed
    assert torch.equal(seen[1], augment(labelled, run.config)[0])


def test_cutmix_pairs_are_not_split_among_processes(store, tmp_path, monkeypatch):
    monkeypatch.setattr("training.train.join", lambda device: (0, 4, torch.device("cpu")))
    with pytest.raises(ValueError, match="--unlabelled-per-batch 12 must give each of 4 processes an even number"):
        Run(config(store, tmp_path, labelled_per_batch=12, unlabelled_per_batch=12))


def test_lambda_0_is_training_without_unlabelled_slices(store, tmp_path):
    only_labelled = phantom_store(tmp_path / "store", 32, [12, 17, 24, 32], labelled=2)
    weights = []
    for k, folder in enumerate((store, only_labelled)):
        run = Run(config(folder, tmp_path / str(k), lambda_=0.0, epochs=1))
        assert len(run.samplers) == 1
        run.train()
        weights.append(run.branches[1].state_dict())
    assert_same(*weights)


def test_branches_start_differently_and_by_seed(store, tmp_path):
    first, second = (run.state_dict()["classifier.weight"] for run in Run(config(store, tmp_path)).branches)
    again = Run(config(store, tmp_path)).branches[0].state_dict()["classifier.weight"]
    other = Run(config(store, tmp_path, seed=1)).branches[0].state_dict()["classifier.weight"]
    assert torch.equal(first, again) and not torch.equal(first, second) and not torch.equal(first, other)


def test_init_from_checkpoints(store, tmp_path, capsys):
    single = dict(branches=1, lambda_=0.0, epochs=0.5)
    for name in "ab":
        Run(config(store, tmp_path / name, seed=ord(name), **single)).train()
    a, b = (tmp_path / name / checkpoint.FILE_NAME for name in "ab")
    run = Run(config(store, tmp_path / "c", init=f"{a},{b}"))
    for branch, path in zip(run.branches, (a, b), strict=True):
        assert_same(dict(branch.state_dict()), dict(checkpoint.load(path)["branches"][0]))
    assert run.step == 0 and [stage["config"]["seed"] for stage in run.stages] == [97, 98]
    assert all("store" not in stage["config"] for stage in run.stages)
    assert not capsys.readouterr().out
    Run(config(store, tmp_path / "d", init=str(a)))
    assert "1 branch for 2" in capsys.readouterr().out


def test_checkpoints_of_another_version_are_named(store, tmp_path):
    run = Run(config(store, tmp_path, branches=1, lambda_=0.0))
    run.save()
    state = torch.load(run.path, weights_only=True)
    torch.save({**state, "format": 1}, run.path)
    with pytest.raises(ValueError, match=r"checkpoint.pt is a checkpoint of another version \(format 1, not 2\)"):
        Run(run.config)


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
    kept = checkpoint.load(tmp_path / checkpoint.FILE_NAME)
    assert kept["step"] == 0 and torch.isfinite(kept["branches"][0]["classifier.bias"]).all()


def test_validation_on_the_fold_and_the_better_branch(store, tmp_path):
    folds = tmp_path / "folds.json"
    folds.write_text('[["p1"]]')
    run = Run(config(store, tmp_path / "run", fold=0, folds=str(folds), epochs=1))
    assert "p1" not in run.data["patients"] and run.data["validation"] == ["p1"]
    run.train()
    state = checkpoint.load(tmp_path / "run" / checkpoint.FILE_NAME)
    assert state["validation"]["step"] == 1 and len(state["validation"]["dsc"]) == 2
    state["validation"]["dsc"] = [{"mean": 0.3}, {"mean": 0.4}]
    assert checkpoint.best_branch(state) == 1
    assert list((tmp_path / "run").glob("events*"))


def test_hand_worked_dice():
    truth = np.array([1, 1, 2, UNCERTAIN, 0], np.uint8)
    prediction = np.array([1, 0, 2, 2, 12], np.uint8)
    scores = dice(prediction, truth)
    assert scores[1] == pytest.approx(2 / 3) and scores[2] == pytest.approx(2 / 3)  # one of three labels 2 too many
    assert scores[12] == 0 and scores[5] == 1  # said but not there; neither


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_validation_is_in_the_precision_of_training(store, tmp_path, monkeypatch, bf16, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    run = Run(config(store, tmp_path, bf16=bf16))
    given = set()
    run.branches[0].classifier.register_forward_hook(lambda module, inputs, logits: given.add(logits.dtype))
    validate(run.branches[0], store, run.samplers[0].cases[:1], run.config, run.data)
    assert given == {dtype}


def test_two_slices_are_learned_by_heart(tmp_path):
    """The whole chain learns: DSC above 0.9 on the slices that it saw, without augmentation."""
    store = phantom_store(tmp_path / "store", 128, [18, 25], labelled=1)
    settings = config(
        store, tmp_path / "run", crop_px=128, branches=1, lambda_=0.0, dice_weight=1.0,
        optimiser="adamw", lr=0.003, epochs=70, warmup_share=0.05, log_every=50, labelled_per_batch=2, **PLAIN,
    )  # fmt: skip
    run = Run(settings)
    run.train()
    scores = validate(run.branches[0], store, read_cases(store), settings, run.data)
    assert len(scores) == 13 and np.mean(list(scores.values())) > 0.9
