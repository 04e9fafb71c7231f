import pytest
import torch

from training.schedule import learning_rate, warm_up


def test_hand_worked():
    rates = [learning_rate(tenth / 10, 0.2, 0.02, 0.9) for tenth in range(12)]
    assert rates[:3] == pytest.approx([0, 0.01, 0.02])  # linear, the peak at the warm-up's end
    assert rates[6] == pytest.approx(0.02 * 0.5**0.9)  # halfway from there
    assert rates[10] == rates[11] == 0
    assert learning_rate(0.5, 1.0, 0.02) == pytest.approx(0.01)  # all warm-up
    assert [warm_up(done, 0.4) for done in (0, 0.1, 0.4, 0.9)] == pytest.approx([0, 0.25, 1, 1])
    assert warm_up(0, 0) == 1  # none


def test_against_torch_polynomial_decay():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=0.02)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=50, power=0.9)
    for step in range(50):
        assert learning_rate(step / 50, 0, 0.02, 0.9) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
