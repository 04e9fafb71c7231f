"""What the benchmarks share: their command line, and the result file, which begins with where they ran."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from app.device import has_int8, processor
from app.options import WEIGHTS, positive
from evaluation.output import write_json
from training import results

count, amount = positive(int), positive(float)  # types of options: 0 of something cannot be measured
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")  # those that decide on the speed


def parser(name: str, description: str, devices: Sequence[str] = ("cpu", "cuda")) -> argparse.ArgumentParser:
    """A benchmark's options, but for its own. The first of the devices is the default."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description.splitlines()[0])
    made.add_argument("--device", choices=devices, default=devices[0])
    made.add_argument("--threads", type=count, default=2, help="of torch, and CPUs of programs (default: %(default)s)")
    made.add_argument("--weights", type=Path, default=WEIGHTS, help="(default: the shipped ones)")
    made.add_argument("-o", "--output", type=Path, help=f"result file (default: results/benchmark_{name}[_cuda].json)")
    return made


def save(name: str, options: argparse.Namespace, content: dict) -> None:
    """Write the result file and say where it is."""
    path = options.output or result_path(name, options.device)
    write_json(path, {**provenance(options.device, options.threads), **content})
    print(path)


def provenance(device: str, threads: int) -> dict:
    """Commit, date, processor or GPU, its flags, torch, threads. On CUDA this opens the card."""
    return {
        **results.provenance(torch.device(device)),
        "processor": processor(),
        "flags": cpu_flags(),
        "threads": threads,
    }


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Of FLAGS, those that the processor has, as Linux tells it."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    have = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return [flag for flag in FLAGS if flag in have]


def dtypes(device: str) -> tuple[torch.dtype, ...]:
    """Number formats that the network runs in. oneDNN convolves no bfloat16, not even slowly, without AVX-512."""
    if device == "cuda":
        return torch.float32, torch.bfloat16, torch.float16
    possible = {torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(), torch.int8: has_int8()}
    return torch.float32, *(dtype for dtype, is_possible in possible.items() if is_possible)


def result_path(name: str, device: str) -> Path:
    """Of the result file: the GPU's stand beside the CPU's."""
    return Path(__file__).parents[1] / "results" / f"benchmark_{name}{'_cuda' if device == 'cuda' else ''}.json"
