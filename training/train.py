"""Train by cross pseudo supervision: `python -m training.train`, or torchrun for several GPUs.

Every random choice is a function of the seed and the step, so a run goes on from its checkpoint as if it had never
stopped; only where --train-s ends it by the clock does the learning rate depend on the machine's speed. The method is
in training/method.py.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from app.device import DeviceError
from app.labels import ORGANS
from app.network import DeepLabV3Plus, initialise
from training import checkpoint
from training.augmentations import augment
from training.batch import Batch, each
from training.config import Config, changed, parse
from training.cutmix import random_boxes
from training.distributed import first_says, join, leave, share_of_batch
from training.loading import loader
from training.logbook import Logbook
from training.method import Examples, gradients
from training.precision import mixed_precision
from training.resident import ResidentBatches
from training.sampling import Sampler
from training.schedule import learning_rate, warm_up
from training.split import check_unseen, describe, split
from training.store import read_cases
from training.validate import validate

ENDLESS = 1 << 30  # steps of a run that ends by the clock
PAUSED_EXIT = 3  # after --stop-after-s: what needs the finished run must not go on
SWITCHED_OFF_BIAS = -1e3  # exported weights have a lower one for organs that they cannot know


class Run:
    """Everything a training run holds: branches, optimisers, data, step. `train` advances it.

    Raises:
        ValueError: The store lacks what the settings need, or the checkpoint in `out` is of another run.
    """

    def __init__(self, config: Config):
        self.config = config
        self.rank, self.processes, self.device = join(config.device)
        torch.backends.cudnn.benchmark = True  # every batch has the same shape: the fastest kernels are looked for once
        cases = split(read_cases(Path(config.store)), config)
        self.samplers = [Sampler(cases.labelled, config, labelled=True)]
        if config.lambda_:
            self.samplers.append(Sampler(cases.unlabelled, config, labelled=False))
            mine = self._share(config.unlabelled_per_batch)
            if config.cutmix and (mine.stop - mine.start) % 2:
                raise ValueError(
                    f"CutMix mixes pairs: --unlabelled-per-batch {config.unlabelled_per_batch} must give each of "
                    f"{self.processes} processes an even number"
                )
        self.data, self.validation_cases = describe(cases), cases.validation
        self.steps_per_epoch = max(1, len(self.samplers[0]) // config.labelled_per_batch)
        self.total_steps = None if config.train_s else max(1, round(config.epochs * self.steps_per_epoch))

        self.branches = [initialise(DeepLabV3Plus(), 1000 * (config.seed + 1) + k) for k in range(config.branches)]
        self.step, self.trained_s = 0, 0.0
        self.validation: dict[str, Any] = {}  # empty before the first
        self.stages: list[dict] = []
        self.path = Path(config.out) / checkpoint.FILE_NAME
        resumed = checkpoint.load(self.path) if self.path.exists() else None
        if config.init and not resumed:
            self._start_from()
            check_unseen(self.validation_cases, self.stages, config.fold)
        for branch in self.branches:
            branch.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's gap
        self.optimisers = [_optimiser(branch, config) for branch in self.branches]
        if resumed:
            self._resume(resumed)
        self.forward = [self._wrapped(branch) for branch in self.branches]

    def _share(self, per_batch: int) -> slice:
        return share_of_batch(per_batch, self.rank, self.processes)

    def _wrapped(self, branch: nn.Module) -> nn.Module:
        if self.processes > 1:
            if self.device.type == "cuda":
                branch = nn.SyncBatchNorm.convert_sync_batchnorm(branch)  # in place: parameters and names stay
            # Buffers are batch norm's: equal anyway when synchronised. On CPUs, where they cannot be, the first
            # process's statistics are kept.
            branch = DistributedDataParallel(branch, broadcast_buffers=False)
        return torch.compile(branch) if self.config.compile else branch  # type: ignore[return-value]  # it is a Module

    def _start_from(self) -> None:
        """Load `init`: as many branches as it has, then the first again.

        Raises:
            ValueError: It has more branches than are trained: which are meant?
        """
        loaded = [checkpoint.load_branches(Path(path)) for path in self.config.init.split(",")]
        states = [state for states, _ in loaded for state in states]
        self.stages = list(itertools.chain.from_iterable(stages for _, stages in loaded))
        if len(states) > len(self.branches):
            raise ValueError(f"--init: {len(states)} branches for {len(self.branches)}; export the one that is meant")
        if len(states) < len(self.branches) and not self.rank:
            print(f"{len(states)} branch for {len(self.branches)}: they start equal, only dropout and CutMix part them")
        for branch, state in zip(self.branches, itertools.cycle(states), strict=False):
            fresh = {name: value.clone() for name, value in branch.classifier.state_dict().items()}
            branch.load_state_dict(state)
            off = state["classifier.bias"] < SWITCHED_OFF_BIAS
            with torch.no_grad():  # a class that was switched off would never learn again
                for name, parameter in branch.classifier.named_parameters():
                    parameter[off] = fresh[name][off]

    def _resume(self, state: dict) -> None:
        differences = changed(state["config"], self.config)
        if self.data != state["data"]:
            differences.append("other cases in the store or the folds")
        if not state["optimisers"]:
            differences.append("without its optimisers")
        if differences:
            raise ValueError(
                f"{self.path} is of another run ({'; '.join(differences)}): "
                "give another --out, with --init to start from its branches"
            )
        for branch, branch_state in zip(self.branches, state["branches"], strict=True):
            branch.load_state_dict(branch_state)
        for optimiser, optimiser_state in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(optimiser_state)
        self.step, self.trained_s = state["step"], state["trained_s"]
        self.validation, self.stages = state["validation"] or {}, state["stages"]

    def save(self) -> None:
        """Write the checkpoint, on the first process.

        Raises:
            FloatingPointError: A weight is no longer finite; the last checkpoint stands.
        """
        if self.rank:
            return
        if not all(parameter.isfinite().all() for branch in self.branches for parameter in branch.parameters()):
            raise FloatingPointError(f"step {self.step}: weights are no longer finite")
        state = {
            "config": dataclasses.asdict(self.config),
            "data": self.data,
            "branches": [branch.state_dict() for branch in self.branches],
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "total_steps": self.total_steps,
            "trained_s": self.trained_s,
            "validation": self.validation or None,
            "stages": self.stages,
        }
        checkpoint.save(state, self.path)

    def train_step(self, labelled: Batch, unlabelled: Batch | None, done: float) -> dict[str, Tensor]:
        """One update of every branch.

        Args:
            labelled, unlabelled: This process's part of the step's batches, on the device.
            done: Share of the run that is done, which the learning rate depends on.

        Returns:
            The losses, detached, of this process's part, and the learning rate.
        """
        config = self.config
        torch.manual_seed((config.seed * 2**32 + self.step) * 2**10 + self.rank)  # dropout
        # Augmentation stays outside of autocast, which would round the places that slices are sampled at.
        supervised, cps = gradients(
            self.forward,
            self.examples(labelled),
            None if unlabelled is None else self.examples(unlabelled, config.strong_views),
            self._boxes(),
            config.lambda_ * warm_up(done, config.lambda_warmup_share),
            config.dice_weight,
            config.min_confidence,
            partial(mixed_precision, self.device, config.bf16),
        )
        lr = learning_rate(done, config.warmup_share, config.lr, config.poly_power)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return {"loss/supervised": supervised, "loss/cps": cps, "lr": torch.tensor(lr)}

    def examples(self, batch: Batch, strong_views: bool = False) -> Examples:
        """A batch as the networks take it, augmented; for strong views with the weak ones beside them."""
        weak_images = augment(batch, self.config, weak=True)[0] if strong_views else None
        return Examples(*augment(batch, self.config), batch.slices.unannotated, weak_images)

    def _boxes(self) -> Tensor | None:
        """This process's part of the step's CutMix boxes, which are drawn for the whole batch."""
        config = self.config
        if not (config.cutmix and config.lambda_):
            return None
        rng = np.random.default_rng([config.seed, 2, self.step])
        boxes = random_boxes(rng, config.unlabelled_per_batch, config.crop_px, config.crop_px)
        return boxes[self._share(len(boxes))].to(self.device, non_blocking=True)

    def batches(self) -> Iterator[tuple[Batch, Batch | None]]:
        """This process's parts of the labelled and the unlabelled batches, on the device, from the current step on."""
        config, store = self.config, Path(self.config.store)
        shares = [self._share(sampler.per_batch) for sampler in self.samplers]
        steps = range(self.step, self.total_steps or ENDLESS)
        if config.resident:
            resident = [
                ResidentBatches(sampler, store, mine, self.device)
                for sampler, mine in zip(self.samplers, shares, strict=True)
            ]
            batches: Iterable[Sequence[Batch]] = ([source.batch(step) for source in resident] for step in steps)
        else:
            pin = self.device.type == "cuda"
            loaders = [
                loader(sampler, store, mine, steps, config.workers, pin)
                for sampler, mine in zip(self.samplers, shares, strict=True)
            ]
            batches = zip(*loaders, strict=True)
        for pair in batches:
            labelled, *rest = (each(lambda value: value.to(self.device, non_blocking=True), batch) for batch in pair)
            yield labelled, rest[0] if rest else None

    def train(self) -> None:
        """From the current step to the end, with logs, validations and checkpoints; nothing if that was reached.

        Raises:
            FloatingPointError: The loss is no longer finite; the last checkpoint stands.
        """
        if self.finished:
            return
        config = self.config
        slices_per_step = sum(sampler.per_batch for sampler in self.samplers)
        logbook = None if self.rank else Logbook(config.out, self.step, self.total_steps, slices_per_step)
        validate_every = max(1, round(config.validate_every_epochs * self.steps_per_epoch))
        batches = self.batches()
        first = next(batches)  # with --resident this reads the store, which is no training
        start_s = last_save_s = time.monotonic()
        before_s = self.trained_s
        for labelled, unlabelled in itertools.chain([first], batches):
            losses = self.train_step(labelled, unlabelled, self._done(self.step + 0.5))
            self.trained_s = before_s + time.monotonic() - start_s
            if config.train_s or config.stop_after_s:
                self.trained_s = first_says(self.trained_s)
            last = self.finished
            if logbook:
                logbook.bar.update()
                if self.step % config.log_every == 0 or last:
                    logbook.losses(self.step, losses)
                if self.step % validate_every == 0 or last:
                    examples = self.examples(labelled)
                    with mixed_precision(self.device, config.bf16):
                        logbook.picture(self.step, self.branches, examples)
                    self._validate(logbook)  # other processes wait at their next step
            pause = bool(config.stop_after_s) and self.trained_s - before_s > config.stop_after_s
            if last or pause or time.monotonic() - last_save_s > config.checkpoint_every_s:
                self.save()
                last_save_s = time.monotonic()
            if last or pause:
                break
        if logbook:
            logbook.close()

    @property
    def finished(self) -> bool:
        """Whether the run is at its end, or beyond: it was longer once."""
        return self._done(self.step) >= 1

    def _done(self, steps: float) -> float:
        """Share of the run that is done after so many steps; of its seconds, where it ends by the clock."""
        return self.trained_s / self.config.train_s if self.total_steps is None else steps / self.total_steps

    def _validate(self, logbook: Logbook) -> None:
        """DSC of the held-out patients, if there are any."""
        if not self.validation_cases:
            return
        dsc = []
        for branch in self.branches:
            scores = validate(branch, Path(self.config.store), self.validation_cases, self.config, self.data)
            mean = {name: float(np.mean(values)) for name, values in scores.items()}
            dsc.append({**mean, "mean": float(np.mean(list(mean.values())))})
        self.validation = {"step": self.step, "dsc": dsc}
        logbook.validation(self.step, dsc)


def _optimiser(branch: nn.Module, config: Config) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimiser == "adamw":
        return torch.optim.AdamW(branch.parameters(), **options)
    return torch.optim.SGD(branch.parameters(), momentum=config.momentum, **options)


def main() -> None:
    try:
        run = Run(parse())
    except (ValueError, OSError, DeviceError) as error:
        raise SystemExit(f"training.train: {error}") from None
    if run.rank == 0:
        labelled, *unlabelled = run.samplers
        organs = [organ.abbreviation for organ in ORGANS if organ.label not in run.data["annotated"]]
        length = f"{run.total_steps} steps" if run.total_steps else f"{run.config.train_s:g} seconds"
        print(
            f"{len(labelled)} labelled slices of {len(labelled.cases)} cases"
            f"{' (none annotates ' + ', '.join(organs) + ')' if organs else ''}, "
            f"{len(unlabelled[0]) if unlabelled else 0} unlabelled, {len(run.validation_cases)} validation cases; "
            f"{length} from step {run.step} on {run.device}, {run.processes} process(es)",
            flush=True,
        )
    run.train()
    leave()
    if not run.finished:
        raise SystemExit(PAUSED_EXIT)


if __name__ == "__main__":
    main()
