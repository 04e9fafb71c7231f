import pytest
import torch

from training.schedule import learning_rate


def test_hand_worked():
    rates = [learning_rate(step, 14, 4, 0.02, 0.9) for step in range(14)]
    assert rates[:4] == pytest.approx([0.005, 0.01, 0.015, 0.02])  # linear, the peak at the warm-up's end
    assert rates[4] == 0.02  # poly starts from the peak
    assert rates[9] == pytest.approx(0.02 * 0.5**0.9)
    assert rates[13] == pytest.approx(0.02 * 0.1**0.9)


def test_against_torch_polynomial_decay():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=0.02)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=50, power=0.9)
    for step in range(50):
        assert learning_rate(step, 50, 0, 0.02, 0.9) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()


def test_never_negative_nor_undefined():
    assert learning_rate(10, 10, 0, 0.02) == 0
    assert learning_rate(12, 10, 0, 0.02) == 0
    assert learning_rate(3, 3, 3, 0.02) == 0.02  # all warm-up
