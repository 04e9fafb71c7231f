"""Memory in use on the card: of the whole card by NVML, and of torch's allocator.

NVML sees what the organizers see, and asking it creates no CUDA context. torch is asked only after the program has
imported it and opened a card: asking earlier would open one.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class GpuMemory:
    """Used memory of one card or MIG instance, by NVML. Closed by `close`.

    Args:
        number: The card's number in nvidia-smi's and Docker's order. None: the first card that CUDA shows this
            process, guessed from CUDA_VISIBLE_DEVICES until `follow_torch` has seen which one torch opened.

    Raises:
        ImportError: The package nvidia-ml-py is missing.
        pynvml.NVMLError: There is no driver, or no card of that number.
    """

    def __init__(self, number: int | None = None) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml = pynvml
        self._settled = number is not None  # no guess any more
        self._handle = or_none(self._guess) if number is None else pynvml.nvmlDeviceGetHandleByIndex(number)

    def used_mib(self) -> float | None:
        """Total less free memory of the whole card; None if CUDA shows none. May raise pynvml.NVMLError."""
        if self._handle is None:
            return None
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return (memory.total - memory.free) / 2**20

    def follow_torch(self) -> bool:
        """Take the card that torch has opened, once there is one. True if another had been guessed. May raise."""
        cuda = _open_cuda()
        if self._settled or cuda is None:
            return False
        self._settled = True
        uuid = cuda.get_device_properties(0).uuid
        guess, self._handle = self._handle, self._find(f"MIG-{uuid}") or self._find(f"GPU-{uuid}") or self._handle
        return guess is not None and self._uuid(guess) != self._uuid(self._handle)

    def close(self) -> None:
        """End the session with NVML."""
        or_none(self._nvml.nvmlShutdown)

    def _guess(self) -> Any:
        entry = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
        if entry.startswith(("GPU-", "MIG-")):  # CUDA takes the first digits of a UUID too
            self._settled = entry.startswith("MIG-")  # torch may name the whole card
            return self._find(entry)
        number = int(entry)  # "" and -1 hide every card
        return self._instances(self._nvml.nvmlDeviceGetHandleByIndex(number))[0] if number >= 0 else None

    def _find(self, uuid: str) -> Any:
        for number in range(self._nvml.nvmlDeviceGetCount()):
            card = or_none(self._nvml.nvmlDeviceGetHandleByIndex, number)
            for handle in self._instances(card) if card else ():
                if self._uuid(handle).startswith(uuid) or self._uuid(card).startswith(uuid):
                    return handle
        return None

    def _instances(self, card: Any) -> list[Any]:
        """The MIG instances of a card, of which CUDA uses the first it may; the card itself if undivided."""
        numbers = range(or_none(self._nvml.nvmlDeviceGetMaxMigDeviceCount, card) or 0)
        instances = (or_none(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, number) for number in numbers)
        return [instance for instance in instances if instance] or [card]

    def _uuid(self, handle: Any) -> str:
        return or_none(self._nvml.nvmlDeviceGetUUID, handle) or ""


def torch_usage() -> dict[str, dict[str, int]]:
    """Current and peak bytes of torch's allocator, by column of monitor.csv; empty before torch has a card."""
    cuda = _open_cuda()
    if cuda is None:
        return {}
    stats = cuda.memory_stats_as_nested_dict(0)
    return {f"torch_{kind}_mib": stats[f"{kind}_bytes"]["all"] for kind in ("allocated", "reserved")}


def _open_cuda() -> Any:
    """torch.cuda, once the program has opened a card with it; else None."""
    cuda = sys.modules.get("torch.cuda")
    return cuda if cuda is not None and cuda.is_initialized() else None


def or_none(read: Callable[..., T], *arguments: Any) -> T | None:
    """A reading, or None where it cannot be had."""
    try:
        return read(*arguments)
    except Exception:  # noqa: BLE001  # drivers and process tables fail in many ways
        return None
