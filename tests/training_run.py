"""A run of a few steps with batch norm and dropout frozen, alone or under torchrun: `training_run.py CONFIG_JSON`."""

import json
import sys

import torch
from torch import nn

from training.config import from_dict
from training.distributed import leave
from training.train import Run


def frozen(run: Run) -> Run:
    """Batch norm stays in evaluation mode whatever its network does; dropout drops nothing."""
    for branch in run.branches:
        for module in branch.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.train = lambda mode=True, module=module: module
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = frozen(Run(from_dict(json.loads(sys.argv[1]))))
    run.train()
    leave()
