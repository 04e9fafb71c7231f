import pytest
import torch

from training.precision import mixed_precision


@pytest.mark.parametrize(
    ("has_bfloat16", "wanted", "enabled"), [(True, True, True), (True, False, False), (False, True, False)]
)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_bfloat16_where_it_is_wanted_and_not_emulated(monkeypatch, kind, has_bfloat16, wanted, enabled):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16 or including_emulation
    )
    # without a card a real one for CUDA would be disabled anyway
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: (kind, dtype, enabled))
    assert mixed_precision(torch.device(kind), wanted) == (kind, torch.bfloat16, enabled)
