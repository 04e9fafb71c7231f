"""Cross pseudo supervision (paper section 2.2): `python -m training.train`, or torchrun for several GPUs.

Two branches of one architecture, initialised differently. Each learns the labels of the labelled slices
(eq. 1) and the other's hard pseudo-labels of the unlabelled ones (eq. 2); the sum is eq. 3.

Every random choice is a function of the seed and the step, so a run goes on from its checkpoint as if it
had never stopped.
"""

import dataclasses
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from app.labels import ORGANS
from app.network import DeepLabV3Plus, initialise
from training import checkpoint
from training.augment import augment, noise_bank
from training.config import Config, changed, parse
from training.cutmix import inside, mix, random_boxes
from training.dataset import SliceDataset, batches, describe, split
from training.distributed import first_decides, join, leave, part
from training.losses import marginal_cross_entropy, pseudo_labels, soft_dice_loss
from training.picture import panel
from training.precision import mixed_precision
from training.schedule import learning_rate
from training.store import read_cases
from training.validate import validate

SWITCHED_OFF_BIAS = -1e3  # exported weights have a lower one for organs that they cannot know
PICTURED_SLICES = 4


def supervised_loss(logits: Tensor, labels: Tensor, missing: Tensor, dice_weight: float) -> Tensor:
    """Eq. 1 for one branch, plus the soft Dice term if it has a weight."""
    loss = marginal_cross_entropy(logits, labels, missing).mean()
    if dice_weight:
        loss = loss + dice_weight * soft_dice_loss(logits, labels, missing)
    return loss


def cps_losses(
    branches: list[nn.Module], images: Tensor, known: Tensor, missing: Tensor, boxes: Tensor | None
) -> list[Tensor]:
    """Eq. 2, one term a branch; with CutMix as in Chen et al. (2021), the networks learn on mixed images.

    Pseudo-labels come from the unmixed images, in evaluation mode: they are what inference would say but for its
    bias, without dropout and whatever else is in the batch (or on which process). The CPS authors make them in training
    mode, where these forward passes also go into batch norm's running statistics, a second time a step.

    Args:
        branches: Two networks in training mode, giving logits.
        images: (N, 1, H, W) unlabelled slices.
        known, missing: What is known of their pixels all the same, see `pseudo_labels`.
        boxes: (N, 4) from `random_boxes`; None: no CutMix.
    """
    labels = []
    with torch.no_grad():
        for branch in branches:
            branch.eval()
            labels.append(pseudo_labels(branch(images), known, missing))
            branch.train()
    if boxes is not None:
        mask = inside(boxes, *images.shape[-2:])
        images, labels = mix(images, mask), [mix(y, mask) for y in labels]
    none_missing = torch.zeros_like(missing)
    return [
        marginal_cross_entropy(branch(images).float(), other, none_missing).mean()
        for branch, other in zip(branches, reversed(labels), strict=True)
    ]


class Run:
    """Everything a training run holds: branches, optimisers, data, step. `train` advances it.

    Raises:
        ValueError: The store lacks what the settings need, or the checkpoint in `out` is of another run.
    """

    def __init__(self, config: Config):
        self.config = config
        self.rank, self.processes, self.device = join(config.device)
        cases = split(read_cases(Path(config.store)), config)
        self.labelled = SliceDataset(config.store, cases.labelled, config, labelled=True)
        self.data, self.validation_cases = describe(cases), cases.validation
        self.unlabelled = None
        if config.lambda_:
            self.unlabelled = SliceDataset(config.store, cases.unlabelled, config, labelled=False)
            mine = part(config.unlabelled_per_batch, self.rank, self.processes)
            if config.cutmix and (mine.stop - mine.start) % 2:
                raise ValueError(
                    f"CutMix mixes pairs: --unlabelled-per-batch {config.unlabelled_per_batch} must give each of "
                    f"{self.processes} processes an even number"
                )
        self.steps_per_epoch = max(1, len(self.labelled) // config.labelled_per_batch)
        self.total_steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.warmup_steps = round(config.warmup_epochs * self.steps_per_epoch)

        branches = [initialise(DeepLabV3Plus(), 1000 * (config.seed + 1) + k) for k in range(config.branches)]
        self.step, self.validation, self.stages = 0, None, []
        self.path = Path(config.out) / checkpoint.FILE_NAME
        resumed = checkpoint.load(self.path) if self.path.exists() else None
        if config.init and not resumed:
            self._start_from(branches)
        self.branches = [branch.to(self.device, memory_format=torch.channels_last) for branch in branches]
        self.optimisers = [_optimiser(branch, config) for branch in self.branches]
        if resumed:
            self._resume(resumed)
        self.forward = [self._wrapped(branch) for branch in self.branches]
        self.noise = noise_bank(self.device)

    def _wrapped(self, branch: nn.Module) -> nn.Module:
        if self.processes > 1:
            if self.device.type == "cuda":
                branch = nn.SyncBatchNorm.convert_sync_batchnorm(branch)  # in place: parameters and names stay
            # Buffers are batch norm's: equal anyway when synchronised. On CPUs, where they cannot be, the first
            # process's statistics are kept.
            branch = DistributedDataParallel(branch, broadcast_buffers=False)
        return torch.compile(branch) if self.config.compile else branch

    def _start_from(self, branches: list[nn.Module]) -> None:
        """Load `init`: as many branches as it has, then the first again."""
        loaded = [checkpoint.load_branches(Path(path)) for path in self.config.init.split(",")]
        states = [state for states, _ in loaded for state in states]
        self.stages = list(itertools.chain.from_iterable(stages for _, stages in loaded))
        if len(states) < len(branches) and not self.rank:
            print(f"{len(states)} branch for {len(branches)}: they start equal, only dropout and CutMix part them")
        for branch, state in zip(branches, itertools.cycle(states), strict=False):
            fresh = {name: value.clone() for name, value in branch.classifier.state_dict().items()}
            branch.load_state_dict(state)
            with torch.no_grad():  # a class that was switched off would never learn again
                off = branch.classifier.bias < SWITCHED_OFF_BIAS
                branch.classifier.weight[off], branch.classifier.bias[off] = fresh["weight"][off], fresh["bias"][off]

    def _resume(self, state: dict) -> None:
        differences = changed(state["config"], self.config)
        data = state["data"] or {}
        if self.data | data != self.data:  # an older checkpoint may not know all that is described
            differences.append("other cases in the store or the folds")
        if differences:
            raise ValueError(
                f"{self.path} is of another run ({'; '.join(differences)}): "
                "give another --out, with --init to start from its branches"
            )
        for branch, branch_state in zip(self.branches, state["branches"], strict=True):
            branch.load_state_dict(branch_state)
        for optimiser, optimiser_state in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(optimiser_state)
        self.step, self.validation, self.stages = state["step"], state["validation"], state["stages"]

    def save(self) -> None:
        """Write the checkpoint, on the first process."""
        if self.rank:
            return
        state = {
            "config": dataclasses.asdict(self.config),
            "data": self.data,
            "branches": [branch.state_dict() for branch in self.branches],
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "total_steps": self.total_steps,
            "validation": self.validation,
            "stages": self.stages,
        }
        checkpoint.save(state, self.path)

    def train_step(self, labelled: dict[str, Tensor], unlabelled: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """One update of every branch. Returns the losses, detached, of this process's part of the batch."""
        config = self.config
        torch.manual_seed((config.seed * 2**32 + self.step) * 2**10 + self.rank)  # dropout
        lr = learning_rate(self.step, self.total_steps, self.warmup_steps, config.lr, config.poly_power)
        images, labels = augment(labelled, config.crop_size, self.noise)
        if unlabelled is not None:  # outside of autocast, which would round the places that slices are sampled at
            unlabelled_images, known = augment(unlabelled, config.crop_size, self.noise)
        cps = [torch.zeros((), device=self.device)] * config.branches
        with mixed_precision(self.device, config.bf16):
            supervised = [
                supervised_loss(branch(images).float(), labels, labelled["missing"], config.dice_weight)
                for branch in self.forward
            ]
            if unlabelled is not None:
                missing = unlabelled["missing"]
                cps = cps_losses(self.forward, unlabelled_images, known, missing, self._boxes())
        loss = sum(supervised) + config.lambda_ * sum(cps)  # eq. 3
        loss.backward()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "loss/supervised": sum(supervised).detach() / config.branches,
            "loss/cps": sum(cps).detach() / config.branches,
            "lr": torch.tensor(lr),
        }

    def _boxes(self) -> Tensor | None:
        """This process's part of the step's CutMix boxes, which are drawn for the whole batch."""
        config = self.config
        if not config.cutmix:
            return None
        rng = np.random.default_rng([config.seed, 2, self.step])
        boxes = random_boxes(rng, config.unlabelled_per_batch, config.crop_size, config.crop_size)
        return boxes[part(len(boxes), self.rank, self.processes)].to(self.device)

    def train(self) -> None:
        """From the current step to the end, with logs, validations and checkpoints.

        Raises:
            FloatingPointError: The loss is no longer finite; the last checkpoint stands.
        """
        config = self.config
        writer = SummaryWriter(config.out, purge_step=self.step) if self.rank == 0 else None
        bar = tqdm(
            total=self.total_steps, initial=self.step, disable=self.rank > 0, unit="step", dynamic_ncols=True,
            mininterval=1 if sys.stderr.isatty() else 30,
        )  # fmt: skip
        validate_every = max(1, round(config.validate_every_epochs * self.steps_per_epoch))
        slices_per_step = config.labelled_per_batch + config.unlabelled_per_batch * (self.unlabelled is not None)
        start = last_save = last_log = time.monotonic()
        logged_step = self.step
        for labelled, unlabelled in self._batches():
            losses = self.train_step(labelled, unlabelled)
            bar.update()
            last = self.step == self.total_steps
            if self.step % config.log_every == 0 or last:
                values = {name: value.item() for name, value in losses.items()}
                if not np.isfinite(list(values.values())).all():
                    raise FloatingPointError(f"step {self.step}: {values}")
                now = time.monotonic()
                values["slices_per_s"] = (self.step - logged_step) * slices_per_step / (now - last_log)
                logged_step, last_log = self.step, now
                bar.set_postfix({name.split("/")[-1]: f"{value:.3g}" for name, value in values.items()})
                if writer:
                    for name, value in values.items():
                        writer.add_scalar(name, value, self.step)
            if (self.step % validate_every == 0 or last) and writer:
                self._picture(writer, labelled)
                self._validate(writer)
            stop = config.stop_after_s and first_decides(time.monotonic() - start > config.stop_after_s, self.device)
            if last or stop or time.monotonic() - last_save > config.checkpoint_every_s:
                self.save()
                last_save = time.monotonic()
            if stop:
                break
        bar.close()
        if writer:
            writer.close()

    def _batches(self):
        """Pairs of a labelled and an unlabelled batch (None with lambda 0) on the device, from the current step on."""
        config = self.config
        rest = (self.step, self.total_steps, self.rank, self.processes)
        loaders = [batches(self.labelled, config.labelled_per_batch, *rest)]
        if self.unlabelled is not None:
            loaders.append(batches(self.unlabelled, config.unlabelled_per_batch, *rest))
        for loaded in zip(*loaders, strict=True):
            on_device = [
                {name: value.to(self.device, non_blocking=True) for name, value in batch.items()} for batch in loaded
            ]
            yield on_device[0], on_device[1] if len(on_device) > 1 else None

    def _picture(self, writer: SummaryWriter, labelled: dict[str, Tensor]) -> None:
        images, labels = augment(
            {name: value[:PICTURED_SLICES] for name, value in labelled.items()}, self.config.crop_size, self.noise
        )
        predictions = []
        with torch.no_grad(), mixed_precision(self.device, self.config.bf16):
            for branch in self.branches:
                branch.eval()
                predictions.append(branch(images).argmax(dim=1))
                branch.train()
        writer.add_image("image, labels, predictions", panel(images, labels, predictions), self.step)

    def _validate(self, writer: SummaryWriter) -> None:
        """DSC of the held-out patients; other processes wait at their next step."""
        if not self.validation_cases:
            return
        self.validation = {"step": self.step, "dsc": []}
        for k, branch in enumerate(self.branches):
            scores = validate(branch, Path(self.config.store), self.validation_cases, self.config, self.data)
            mean = {name: float(np.mean(values)) for name, values in scores.items()}
            mean["mean"] = float(np.mean(list(mean.values())))
            self.validation["dsc"].append(mean)
            per_organ = "  ".join(f"{name} {value:.3f}" for name, value in mean.items())
            tqdm.write(f"step {self.step} branch {k}: DSC {per_organ}")
            for name, value in mean.items():
                writer.add_scalar(f"dsc_branch{k}/{name}", value, self.step)


def _optimiser(branch: nn.Module, config: Config) -> torch.optim.Optimizer:
    options = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimiser == "adamw":
        return torch.optim.AdamW(branch.parameters(), **options)
    return torch.optim.SGD(branch.parameters(), momentum=config.momentum, **options)


def main() -> None:
    try:
        run = Run(parse())
    except (ValueError, OSError) as error:
        raise SystemExit(f"training.train: {error}") from None
    if run.rank == 0:
        organs = [organ.abbreviation for organ in ORGANS if organ.label not in run.data["annotated"]]
        print(
            f"{len(run.labelled)} labelled slices of {len(run.labelled.cases)} cases"
            f"{' (none annotates ' + ', '.join(organs) + ')' if organs else ''}, "
            f"{len(run.unlabelled) if run.unlabelled else 0} unlabelled, {len(run.validation_cases)} validation cases; "
            f"{run.total_steps} steps from {run.step} on {run.device}, {run.processes} process(es)",
            flush=True,
        )
    run.train()
    leave()


if __name__ == "__main__":
    main()
