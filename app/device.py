"""Where the network runs: device, number format, and how many slices fit the memory budget."""

import logging
import platform
from pathlib import Path

import torch

log = logging.getLogger(__name__)

MIB = 1 << 20
# On a CPU with AMX 2 are fastest, because they fit the caches (benchmarks/README.md). On a GPU 8 is a guess, not a
# measurement: it fills the card's processors and stays far below the budget.
MAX_SLICES_PER_STEP = {"cuda": 8, "cpu": 2}
# Counted in half precision, the decoder holds its upsampled features and their concatenation at once: about 80 bytes
# a pixel. The rest is for cuDNN's workspaces, for `labels_from_logits` where all neighbours disagree, and for the
# interpolated logits of slabs: 11 bytes a pixel, of as many slices at a time as a step has slabs.
STEP_BYTES_PER_PX = 160
CONTEXT_MIB = 700  # allowed for the CUDA context and cuDNN; in a container NVML cannot tell per process


class DeviceError(Exception):
    """The device asked for cannot be used; the message says why."""


def choose_device(name: str) -> torch.device:
    """The device for `--device`.

    Args:
        name: "auto" (CUDA if it works, else CPU), "cuda" or "cpu".

    Raises:
        DeviceError: "cuda" was asked for and does not work.
    """
    if name == "cpu":
        return torch.device("cpu")
    problem = _cuda_problem()
    if problem is None:
        return torch.device("cuda")
    if name == "cuda":
        raise DeviceError(f"--device cuda: {problem}")
    if _has_nvidia_card():
        log.warning("THE GPU IS NOT USED: %s. Going on, slower, on the CPU.", problem)
    return torch.device("cpu")


def _cuda_problem() -> str | None:
    """Why CUDA cannot be used, in one line; None if it can."""
    if torch.version.cuda is None:
        return "this is a CPU build of torch; install the CUDA build (docs/images.md)"
    try:
        torch.zeros(1, device="cuda").add_(1).item()  # creates the context and runs a kernel
    except Exception as error:  # noqa: BLE001  # drivers fail in many ways: after each the CPU takes over
        cause = (str(error) or type(error).__name__).splitlines()[0]
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it: {cause} (docs/images.md)"
    return None


def _has_nvidia_card() -> bool:
    places = (*Path("/dev").glob("nvidia[0-9]*"), Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))  # dxg: WSL 2's
    return any(place.exists() for place in places)


def compute_dtype(device: torch.device) -> torch.dtype:
    """Half precision where the device computes in it: float16 on CUDA, bfloat16 on a CPU that has it.

    Other x86 CPUs get 8-bit integers (`app.quantise`), all the rest float32.
    """
    if device.type == "cuda":
        return torch.float16
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.int8 if has_int8() else torch.float32


def has_int8() -> bool:
    """Whether oneDNN convolves 8-bit integers on this CPU faster than float32, and this torch shows how."""
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return fast and hasattr(torch.ops.onednn, "qconv2d_pointwise")


def slices_per_step(device: torch.device, budget_mib: int, slice_px: int) -> int:
    """How many slices go to the device at a time.

    Args:
        device: On CUDA the budget bounds it; on a CPU only speed does.
        budget_mib: For everything this process takes on the device, its context included.
        slice_px: Pixels of a framed slice.

    Returns:
        At least 1: a budget too small for one slice is tried nevertheless (a step that does not fit
        raises torch.OutOfMemoryError, see `limit_memory`).
    """
    most = MAX_SLICES_PER_STEP[device.type]
    if device.type == "cpu":
        return most
    fitting = int((budget_mib - CONTEXT_MIB) * MIB // (STEP_BYTES_PER_PX * slice_px))
    return max(1, min(most, fitting))


def limit_memory(device: torch.device, budget_mib: int) -> None:
    """Make torch's allocator on the current CUDA device stop at the budget less the context. Nothing on a CPU."""
    if device.type == "cuda":
        total_mib = torch.cuda.get_device_properties(device).total_memory / MIB
        allowed_mib = max(64, budget_mib - CONTEXT_MIB)
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed_mib / total_mib))


def processor() -> str:
    """The CPU's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
