"""Mixed precision in training: bfloat16, which needs no loss scaling, where the hardware computes in it."""

import torch

from app.device import compute_dtype


def mixed_precision(device: torch.device, bf16: bool) -> torch.autocast:
    """Autocast to bfloat16; disabled without `bf16`, and where it is only emulated, which is far slower than float32.

    Args:
        device: Of the network.
        bf16: The setting.
    """
    if device.type == "cuda":  # from Ampere (2020) on
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bfloat16 = compute_dtype(device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and has_bfloat16)
