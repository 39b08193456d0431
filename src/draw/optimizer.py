"""AdamW with any power of the mean squared gradient, for the end of a long run."""

from typing import Any

import torch
from torch import Tensor


class PowerAdamW(torch.optim.AdamW):
    """AdamW that divides by v^p instead of v^(1/2), v being the mean square of a weight's gradient.

    Noise of size v^(1/2) in a weight's gradient costs a step about its length times that size. So that a learning rate
    means the same whatever the power, steps are divided by sum v^(1-p) / sum v^(1/2) besides, over all weights; with a
    power of 1/2 that is 1, and this is AdamW. Powers below 1/2 without that scale are Padam (Chen et al. 2018).
    """

    def __init__(self, parameters: Any, power: float, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.power = power

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # one gradient a step is all it needs
        """Update every weight that has a gradient, and its moments; on CUDA, nothing is waited for."""
        (beta1, beta2), eps, rate = (self.defaults[name] for name in ("betas", "eps", "lr"))
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        weights = [p for _, kept in groups for p in kept]
        gradients: list[Tensor] = [p.grad for p in weights]
        steps, m, v = ([self.state[p][name] for p in weights] for name in ("step", "exp_avg", "exp_avg_sq"))

        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(m, gradients, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)

        squares = torch._foreach_div(v, 1 - beta2 ** steps[0])  # without the bias towards the zeros of the start
        torch._foreach_add_(squares, eps**2)
        divisors = torch._foreach_pow(squares, self.power)
        scale = _total(torch._foreach_div(squares, divisors)) / _total(torch._foreach_sqrt(squares))
        for group, kept in groups:
            if group["weight_decay"] and kept:
                torch._foreach_mul_(kept, 1 - rate * group["weight_decay"])
        updates = torch._foreach_div(m, divisors)
        torch._foreach_mul_(updates, -rate / (scale * (1 - beta1 ** steps[0])))
        torch._foreach_add_(weights, updates)


def _total(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).sum()
