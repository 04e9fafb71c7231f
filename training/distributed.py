"""Several processes as one: which part of a batch is whose, and sums over all of them."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from app.device import choose_device


def join(device: str) -> tuple[int, int, torch.device]:
    """Rank, number of processes and device; the process group is set up if torchrun started this process.

    Args:
        device: "auto" (CUDA if there is one), "cuda" or "cpu".

    Raises:
        app.device.DeviceError: "cuda" was asked for and does not work.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, choose_device(device)
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    place = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)  # before NCCL starts: it talks through the current card
    dist.init_process_group("nccl" if cuda else "gloo")
    return dist.get_rank(), dist.get_world_size(), place


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def share_of_batch(count: int, rank: int, processes: int) -> slice:
    """This process's samples of a batch of `count`.

    Raises:
        ValueError: The batch does not divide among the processes.
    """
    if count % processes:
        raise ValueError(f"a batch of {count} does not divide among {processes} processes")
    size = count // processes
    return slice(rank * size, (rank + 1) * size)


class _Sum(torch.autograd.Function):
    """all_reduce with its gradient: each process's loss depends on every process's summand."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum, on every process; differentiable. The value itself where there is one process.

    With a loss that every process computes from such sums, the mean of the processes' gradients, which is
    what DistributedDataParallel takes, is the gradient of that loss over the whole batch.
    """
    return _Sum.apply(value) if dist.is_initialized() else value


def first_says(value: float) -> float:
    """The first process's value on every process: their clocks differ, and all must do one thing."""
    if not dist.is_initialized():
        return value
    answer = torch.tensor([value], dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(answer, 0)
    return answer.item()
