"""AdamW with any power of the mean squared gradient."""

import pytest
import torch

from draw.optimizer import PowerAdamW

SHAPES = ((4, 3), (5,))


def stepped(make, steps, decay=0.0):
    """Two weights, their moments and their gradients after so many steps with gradients of the same noise."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in SHAPES]
    groups = [{"params": weights[:1], "weight_decay": decay}, {"params": weights[1:], "weight_decay": 0.0}]
    optimizer = make(groups, torch.tensor(0.01, dtype=torch.float64))
    for weight in weights:
        moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": torch.tensor(0.0, dtype=torch.float64)} | moments
    drawn = []
    for _ in range(steps):
        for weight in weights:
            scale = torch.logspace(-3, 0, weight.numel(), dtype=torch.float64).reshape(weight.shape)
            weight.grad = scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        drawn.append([weight.grad.clone() for weight in weights])
        optimizer.step()
    return [weight.detach() for weight in weights], drawn


def with_power(power):
    return lambda groups, rate: PowerAdamW(groups, power, lr=rate)


def test_with_adams_power_it_is_torchs_adamw():
    ours, _ = stepped(with_power(0.5), 20, decay=0.1)
    theirs, _ = stepped(lambda groups, rate: torch.optim.AdamW(groups, lr=rate), 20, decay=0.1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # its epsilon is added to the root


@pytest.mark.parametrize("power", [0.0, 0.25, 0.75, 1.0])
def test_weights_follow_the_recursion(power):
    found, drawn = stepped(with_power(power), 5, decay=0.1)
    (start, other), _ = stepped(with_power(power), 0)
    w = torch.cat([start.flatten(), other])
    decayed = torch.cat([torch.ones(start.numel()), torch.zeros(other.numel())])
    m = v = torch.zeros_like(w)
    for t, gradients in enumerate(drawn, 1):
        g = torch.cat([gradient.flatten() for gradient in gradients])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        mean, square = m / (1 - 0.9**t), v / (1 - 0.999**t)
        scale = (square ** (1 - power)).sum() / (square**0.5).sum()
        w = w - 0.01 * 0.1 * decayed * w - 0.01 * mean / (scale * square**power)
    torch.testing.assert_close(torch.cat([weight.flatten() for weight in found]), w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("power", [0.25, 0.75, 1.0])
def test_a_step_costs_as_much_noise_with_any_power(power):
    def cost(power):  # of a first step, whose v is the gradient's square: its length times the noise, over all weights
        before, _ = stepped(with_power(power), 0)
        after, ((*gradients,),) = stepped(with_power(power), 1)
        return sum(((b - a).abs() * g.abs()).sum() for a, b, g in zip(before, after, gradients, strict=True)).item()

    assert cost(power) == pytest.approx(cost(0.5), rel=1e-6)


def test_a_weight_without_a_gradient_stays_as_it_is():
    used, unused = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = PowerAdamW([used, unused], 0.75, lr=torch.tensor(0.1), weight_decay=0.1)
    for weight in (used, unused):
        moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": torch.tensor(0.0)} | moments
    used.grad = torch.ones(3)
    optimizer.step()
    assert (used < 1).all()
    assert torch.equal(unused, torch.ones(3))
