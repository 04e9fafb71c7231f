"""Cross pseudo supervision (paper section 2.2): `python -m training.train`, or torchrun for several GPUs.

Two branches of one architecture, initialised differently. Each learns the labels of the labelled slices
(eq. 1) and the other's hard pseudo-labels of the unlabelled ones (eq. 2); the sum is eq. 3.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from app.labels import NUM_CLASSES, ORGANS
from app.network import DeepLabV3Plus, initialise
from training.augment import augment, noise_bank
from training.config import Config, parse
from training.cutmix import mix, random_boxes
from training.dataset import SliceDataset, batches, split
from training.losses import marginal_cross_entropy, pseudo_labels, soft_dice_loss
from training.schedule import learning_rate
from training.store import read_cases
from training.validate import validate

CHECKPOINT = "checkpoint.pt"


def supervised_loss(logits: Tensor, labels: Tensor, missing: Tensor, dice_weight: float) -> Tensor:
    """Eq. 1 for one branch, plus the soft Dice term if it has a weight."""
    loss = marginal_cross_entropy(logits, labels, missing).mean()
    if dice_weight:
        loss = loss + dice_weight * soft_dice_loss(logits, labels, missing)
    return loss


def cps_losses(branches: list[nn.Module], images: Tensor, config: Config, rng: np.random.Generator) -> list[Tensor]:
    """Eq. 2, one term a branch, with CutMix: pseudo-labels come from the unmixed images, in evaluation mode off.

    Args:
        branches: Two networks.
        images: (N, 1, H, W) unlabelled slices.
        rng: Draws the boxes.
    """
    with torch.no_grad():
        labels = [pseudo_labels(branch(images)) for branch in branches]
    if config.cutmix:
        boxes = random_boxes(rng, *images[:, 0].shape).to(images.device)
        images = mix(images, images.roll(1, 0), boxes)
        labels = [mix(y, y.roll(1, 0), boxes) for y in labels]
    none_missing = torch.zeros(len(images), NUM_CLASSES, dtype=torch.bool, device=images.device)
    return [
        marginal_cross_entropy(branch(images).float(), other, none_missing).mean()
        for branch, other in zip(branches, reversed(labels), strict=True)
    ]


class Run:
    """Everything a training run holds: branches, optimisers, data, step. `train` advances it."""

    def __init__(self, config: Config):
        self.config = config
        self.rank, self.processes, self.device = _distributed(config)
        torch.manual_seed(config.seed * 1000 + self.rank)  # dropout
        self.store = Path(config.store)
        training, self.validation = split(read_cases(self.store), config.fold)
        self.labelled = SliceDataset(self.store, [c for c in training if c.annotated], config, labelled=True)
        self.unlabelled = None
        if config.lambda_ > 0:
            self.unlabelled = SliceDataset(self.store, [c for c in training if not c.annotated], config, labelled=False)
        self.steps_per_epoch = max(1, len(self.labelled) // config.labelled_per_batch)
        self.total_steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.warmup_steps = round(config.warmup_epochs * self.steps_per_epoch)
        self.branches = [
            initialise(DeepLabV3Plus(), seed=1000 * (config.seed + 1) + k).to(
                self.device, memory_format=torch.channels_last
            )
            for k in range(config.branches)
        ]
        self.optimisers = [_optimiser(branch, config) for branch in self.branches]
        self.step, self.best_dsc = 0, [0.0] * config.branches
        self.noise = noise_bank(self.device)
        if config.init:
            self._start_from(Path(config.init))
        if (Path(config.out) / CHECKPOINT).exists():
            self._resume()
        self.forward = [self._wrap(branch) for branch in self.branches]

    def _wrap(self, branch: nn.Module) -> nn.Module:
        if self.processes > 1:
            if self.device.type == "cuda":
                branch = nn.SyncBatchNorm.convert_sync_batchnorm(branch)
            branch = DistributedDataParallel(branch)
        return torch.compile(branch) if self.config.compile else branch

    def _start_from(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        states = state["branches"] if "branches" in state else [state["state_dict"]]
        for k, branch in enumerate(self.branches):
            branch.load_state_dict(states[k % len(states)])

    def _resume(self) -> None:
        state = torch.load(Path(self.config.out) / CHECKPOINT, map_location=self.device, weights_only=True)
        for branch, branch_state in zip(self.branches, state["branches"], strict=True):
            branch.load_state_dict(branch_state)
        for optimiser, optimiser_state in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(optimiser_state)
        torch.set_rng_state(state["rng"].cpu())
        self.step, self.best_dsc = state["step"], state["best_dsc"]

    def save(self) -> None:
        """Write the checkpoint atomically; with it, killed and uninterrupted runs are the same bit for bit (CPU)."""
        if self.rank:
            return
        path = Path(self.config.out) / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "config": dataclasses.asdict(self.config),
            "branches": [branch.state_dict() for branch in self.branches],
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "rng": torch.get_rng_state(),
            "step": self.step,
            "best_dsc": self.best_dsc,
        }
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def train_step(self, labelled: dict[str, Tensor], unlabelled: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """One update of every branch. Returns the losses, detached."""
        config = self.config
        lr = learning_rate(self.step, self.total_steps, self.warmup_steps, config.lr, config.poly_power)
        images, labels = augment(labelled, config.crop_size, self.noise)
        missing = labelled["missing"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            supervised = [
                supervised_loss(branch(images).float(), labels, missing, config.dice_weight) for branch in self.forward
            ]
            cps = [torch.zeros((), device=self.device)] * config.branches
            if unlabelled is not None:
                images_u, _ = augment(unlabelled, config.crop_size, self.noise)
                rng = np.random.default_rng([config.seed, 2, self.step, self.rank])
                cps = cps_losses(self.forward, images_u, config, rng)
        loss = sum(supervised) + config.lambda_ * sum(cps)  # eq. 3
        loss.backward()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "loss/supervised": sum(supervised).detach() / len(supervised),
            "loss/cps": sum(cps).detach() / len(cps),
            "lr": torch.tensor(lr),
        }

    def train(self) -> None:
        """From the current step to the end, with logs, validations and checkpoints."""
        config = self.config
        writer = SummaryWriter(config.out) if self.rank == 0 else None
        split_args = (self.step, self.total_steps, self.rank, self.processes)
        labelled = batches(self.labelled, config.labelled_per_batch, *split_args)
        pairs = ((batch, None) for batch in labelled)
        if self.unlabelled is not None:
            pairs = zip(labelled, batches(self.unlabelled, config.unlabelled_per_batch, *split_args), strict=True)
        bar = tqdm(
            total=self.total_steps, initial=self.step, disable=self.rank > 0, unit="step", dynamic_ncols=True,
            mininterval=1 if sys.stderr.isatty() else 30,
        )  # fmt: skip
        validate_every = max(1, round(config.validate_every_epochs * self.steps_per_epoch))
        last_save = last_log = time.monotonic()
        for labelled_batch, unlabelled_batch in pairs:
            losses = self.train_step(self._to_device(labelled_batch), self._to_device(unlabelled_batch))
            bar.update()
            if self.step % config.log_every == 0 and writer:
                seconds, last_log = time.monotonic() - last_log, time.monotonic()
                slices = config.log_every * config.labelled_per_batch
                for name, value in losses.items():
                    writer.add_scalar(name, value.item(), self.step)
                writer.add_scalar("labelled_slices_per_s", slices / seconds, self.step)
                bar.set_postfix({name.split("/")[-1]: f"{value.item():.3f}" for name, value in losses.items()})
            if self.validation and (self.step % validate_every == 0 or self.step == self.total_steps):
                self._validate(writer)
            if time.monotonic() - last_save > config.checkpoint_every_s:
                self.save()
                last_save = time.monotonic()
        self.save()
        bar.close()
        if writer:
            writer.close()

    def _to_device(self, batch):
        if batch is None:
            return None
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def _validate(self, writer: SummaryWriter | None) -> None:
        if self.rank:
            return
        dtype = torch.bfloat16 if self.config.bf16 else torch.float32
        for k, branch in enumerate(self.branches):
            scores = np.nanmean(validate(branch, self.store, self.validation, dtype), axis=0)
            mean = float(np.nanmean(scores))
            self.best_dsc[k] = mean
            per_organ = "  ".join(f"{organ.abbreviation} {scores[organ.label]:.3f}" for organ in ORGANS)
            tqdm.write(f"step {self.step} branch {k}: mean DSC {mean:.4f}  {per_organ}")
            for organ in ORGANS:
                writer.add_scalar(f"dsc_branch{k}/{organ.abbreviation}", scores[organ.label], self.step)
            writer.add_scalar(f"dsc_branch{k}/mean", mean, self.step)


def _optimiser(branch: nn.Module, config: Config) -> torch.optim.Optimizer:
    if config.optimiser == "adamw":
        return torch.optim.AdamW(branch.parameters(), config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(branch.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)


def _distributed(config: Config) -> tuple[int, int, torch.device]:
    """Rank, number of processes and device, from torchrun's environment if there is one."""
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, torch.device("cuda" if cuda else "cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    return dist.get_rank(), dist.get_world_size(), device


def main() -> None:
    run = Run(parse())
    if run.rank == 0:
        print(
            f"{len(run.labelled)} labelled slices of {len(run.labelled.cases)} cases, "
            f"{len(run.unlabelled) if run.unlabelled else 0} unlabelled, {len(run.validation)} validation cases; "
            f"{run.total_steps} steps from {run.step} on {run.device}, {run.processes} process(es)",
            flush=True,
        )
    run.train()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
