"""Every setting of a training run, its default the paper's, with the reason where the paper is silent.

The command line is made from this class, a checkpoint carries it, and an unknown key is an error.
"""

import argparse
import dataclasses
import shlex
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from evaluation.organs import parse_organs


def setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    store: str = setting("data/store", "slice store made by training.prepare")
    out: str = setting("runs/cps", "folder for checkpoints and TensorBoard logs")
    fold: int = setting(-1, "fold (from 0) of --folds to leave out and validate on; -1 trains on everything")
    folds: str = setting("training/folds.json", "JSON list of lists of patients, written down before training")
    seed: int = setting(0, "of sampling and augmentation; branch k is initialised from 1000 * (seed + 1) + k")
    init: str = setting("", "checkpoint or exported weights to start from, instead of Kaiming; several: A.pt,B.pt")
    stop_after_s: float = setting(
        0.0, "seconds to save and pause after (exit status 3); the same command goes on; 0: never"
    )
    device: str = setting("auto", "auto, cuda or cpu")
    workers: int = setting(2, "processes of each loader (with --lambda there are two); 0 loads in the training process")
    resident: bool = setting(False, "keep all slices in the device's memory, 0.8 MB each: no loader, and the fastest")
    compile: bool = setting(False, "torch.compile the branches")
    bf16: bool = setting(True, "bfloat16 autocast where the hardware has it; parameters and losses stay float32")

    # Method (sections 2.2 and 3.2, table 2)
    branches: int = setting(2, "2 is cross pseudo supervision; 1 (with --lambda 0) trains one network at half the cost")
    lambda_: float = setting(0.5, "weight of the CPS loss (eq. 3); 0 takes no unlabelled slices: the paper's 'w/o un'")
    lambda_warmup_share: float = setting(
        0.0, "of the run, lambda linear from 0: branches from Kaiming know nothing yet"
    )
    min_confidence: float = setting(0.0, "pseudo-labels of a lower probability teach nothing (FixMatch); 0: all teach")
    strong_views: bool = setting(False, "pseudo-labels from slices without jitter, noise and blur (FixMatch, UniMatch)")
    dice_weight: float = setting(0.0, "weight of a soft Dice term beside eq. 1; 0 is the paper's loss")
    cutmix: bool = setting(True, "CutMix on unlabelled slices, as in the CPS authors' paper (Chen et al., 2021)")
    without_labels: str = setting("", "patients whose labels are not used, A,B,C: unlabelled ones with known truth")
    cps_on_labelled: bool = setting(False, "CPS on labelled slices too, where their label map leaves a pixel open")
    labelled_per_batch: int = setting(48, "half of the paper's batch of 96, over all processes")
    unlabelled_per_batch: int = setting(48, "the other half; with --lambda 0 not drawn")
    crop_px: int = setting(512, "side of what the network sees: a random part of larger slices, smaller ones in air")

    # Optimisation (table 2)
    optimiser: str = setting("sgd", "sgd (the paper's) or adamw")
    lr: float = setting(0.02, "initial learning rate, reached after the warm-up")
    momentum: float = setting(0.1, "of SGD")
    weight_decay: float = setting(1e-4, "of SGD or AdamW")
    epochs: float = setting(400.0, "one epoch is one pass over the labelled slices: they bound the supervision")
    train_s: float = setting(0.0, "seconds to train for instead of --epochs: the schedule ends with them; 0: by epochs")
    warmup_share: float = setting(0.0125, "of the run, linear from 0; the paper gives no length: 5 epochs of its 400")
    poly_power: float = setting(0.9, "of the poly decay after the warm-up, DeepLab's")

    # Sampling and augmentation (section 2.1)
    organ_share: float = setting(0.0, "share of labelled samples drawn by organ (uniform), crop centred on it")
    drawn_organs: str = setting("1-13", "which organs those samples are drawn for: 4-8,12 or pancreas,LAG")
    true_hu_share: float = setting(
        0.0, "share of labelled samples drawn only from cases whose HU are not saturated; others come from all"
    )
    negative_share: float = setting(0.0, "the same of cases without any organ: heads, limbs")
    negative_rotation_deg: float = setting(180.0, "rotation_deg of these cases: few heads must stand for many")
    negative_zoom: float = setting(2.0, "zoom of these cases")
    empty_share: float = setting(0.15, "share of empty slices, in cases with organs: unseen, they fill with liver")
    rotation_deg: float = setting(15.0, "uniform in +-this; patients lie askew by less")
    zoom: float = setting(1.0, "uniform (log) in 1/this..this: patient size and pixel spacing; 1 is the paper's: none")
    warp_px: float = setting(0.0, "largest standard deviation of a smooth random warp; half of the slices get none")
    organ_offset_hu: float = setting(20.0, "organ-intensity jitter: standard deviation of an organ's offset")
    organ_scale: float = setting(0.05, "organ-intensity jitter: standard deviation of an organ's scale around 1")
    phase_share: float = setting(0.0, "share of labelled slices that get another contrast phase")
    slice_offset_hu: float = setting(
        10.0, "standard deviation of a slice's offset; unlabelled slices have no other jitter"
    )
    slice_scale: float = setting(0.05, "standard deviation of a slice's scale around 1")
    noise_hu: float = setting(0.0, "largest standard deviation of added noise; half of the slices get none")
    blur: float = setting(0.0, "largest share of a 1 px Gaussian mixed in; drawn negative it sharpens; half get none")
    statistics_jitter: float = setting(0.0, "mean +- this * std and std * (1 +- this): the field of view shifts both")

    # Bookkeeping
    log_every: int = setting(20, "steps between log lines")
    validate_every_epochs: float = setting(10.0, "epochs between validations (with --fold)")
    checkpoint_every_s: float = setting(300.0, "seconds between checkpoints")

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise ValueError(message)

        require(self.branches in (1, 2), f"branches must be 1 or 2, got {self.branches}")
        require(self.branches == 2 or self.lambda_ == 0, "one branch has no other to supervise it: --lambda 0")
        require(self.optimiser in ("sgd", "adamw"), f"optimiser must be sgd or adamw, got {self.optimiser}")
        require(self.crop_px % 16 == 0 and 32 <= self.crop_px <= 512, "crop_px must be a multiple of 16 in 32..512")
        require(self.train_s >= 0, f"train_s must not be negative, got {self.train_s}")
        require(self.epochs > 0 and self.labelled_per_batch > 0, "epochs and labelled_per_batch must be positive")
        paired = not self.lambda_ or not self.cutmix or self.unlabelled_per_batch % 2 == 0
        require(paired, "unlabelled_per_batch must be even: CutMix mixes pairs")
        for name in ("zoom", "negative_zoom"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("empty_share", "phase_share", "warmup_share", "lambda_warmup_share", "min_confidence"):
            require(0 <= getattr(self, name) <= 1, f"{name} must be in 0..1, got {getattr(self, name)}")
        try:
            parse_organs(self.drawn_organs)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"drawn_organs: {error}") from None
        shares = (self.organ_share, self.true_hu_share, self.negative_share)
        require(min(shares) >= 0 and sum(shares) <= 1, "the shares by organ, true HU and negative must add up to 0..1")


# What changes nothing that is learned.
OF_ONE_MACHINE = (
    *("store", "out", "folds", "init", "device", "workers", "resident", "compile"),
    *("stop_after_s", "log_every", "validate_every_epochs", "checkpoint_every_s"),
)
# What may differ when a run goes on from its checkpoint: a longer or shorter one has the schedule of its new length.
FREE = ("epochs", "train_s", *OF_ONE_MACHINE)


def changed(before: dict, now: Config) -> list[str]:
    """Settings of a checkpoint that a run which goes on from it must not change but does: "lr 0.02 -> 0.01"."""
    values = dataclasses.asdict(now)
    return [f"{k} {v} -> {values[k]}" for k, v in before.items() if k not in FREE and k in values and values[k] != v]


def parse(arguments: list[str] | None = None) -> Config:
    """The command line as a Config. Flags are the field names with dashes; `--lambda` is `lambda_`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Cross pseudo supervision. Defaults are the paper's; see also torchrun --help for many GPUs. "
        "@FILE stands for the flags that a file holds.",
        fromfile_prefix_chars="@",
    )
    parser.convert_arg_line_to_args = partial(shlex.split, comments=True)  # type: ignore[method-assign]
    for item in dataclasses.fields(Config):
        flag = "--" + item.name.rstrip("_").replace("_", "-")
        kind = {"action": argparse.BooleanOptionalAction} if item.type is bool else {"type": item.type}
        help_text = f"{item.metadata['help']} (default: {item.default})".replace("%", "%%")
        parser.add_argument(flag, dest=item.name, default=item.default, help=help_text, **kind)
    try:
        return Config(**vars(parser.parse_args(arguments)))
    except ValueError as error:
        parser.error(str(error))


def from_dict(values: dict) -> Config:
    """A Config from a checkpoint's plain dictionary.

    Raises:
        ValueError: An unknown key, named.
    """
    unknown = set(values) - {item.name for item in dataclasses.fields(Config)}
    if unknown:
        raise ValueError(f"unknown setting(s): {', '.join(sorted(unknown))}")
    return Config(**values)
