"""Run by the tests in a process of its own: `python compiled_step.py cpu|cuda`. Fails if a fast path differs.

On CUDA the captured update is compared too, over enough steps that the graph is replayed.
"""

import functools
import sys

import pytest
import torch

from draw import deferred
from draw.attention import FullWrite
from draw.config import ModelConfig, SpeedConfig
from draw.errors import UserError
from draw.model import DRAW
from draw.objective import losses
from draw.training import Trainer
from small import data_set, small_config


def outcome(model, eps, x, unroll):
    model.zero_grad()
    bound = losses(x, model(eps, x, unroll=unroll), model.likelihood).bound.mean()
    bound.backward()
    return [bound.detach(), *(weight.grad.clone() for weight in model.parameters())]


def main(device):
    for read_n, write_n in ((2, 3), (None, None)):
        model = DRAW(ModelConfig(7, 6, steps=4, enc_size=16, dec_size=12, z_size=5, read_n=read_n, write_n=write_n))
        model = model.to(device)
        x = torch.rand(9, *model.config.image_shape, device=device).round()
        eps = model.noise(len(x), 1)
        wanted = outcome(model, eps, x, None)
        given = outcome(model, eps, x, deferred.unroll_for(model, compiled=True))
        for one, other in zip(given, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def many_shapes(device):
    """More than the eight that the compiler allows a function; what it makes of them is no matter here."""
    model = DRAW(small_config().model).to(device)
    compiler, torch.compile = torch.compile, functools.partial(torch.compile, backend="eager")
    unroll = deferred.unroll_for(model, compiled=True)
    for b in range(1, 11):
        eps, x = model.noise(b, 1), torch.ones(b, *model.config.image_shape, device=device)
        with torch.no_grad():
            torch.testing.assert_close(model(eps, x, unroll=unroll).canvas, model(eps, x).canvas, rtol=1e-4, atol=1e-4)
    torch.compile = compiler


class ByTurns(FullWrite):
    """A write of two layers in turn."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.other, self.calls = FullWrite(*sizes), 0

    def forward(self, h_dec):
        self.calls += 1
        return self.other(h_dec) if self.calls % 2 else super().forward(h_dec)


def refused(device):
    """As glimpse by glimpse: a piece that uses other layers in one glimpse than in another."""
    config = small_config().model
    model = DRAW(config, write=ByTurns(config.dec_size, *config.image_shape)).to(device)
    eps, x = model.noise(3, 1), torch.ones(3, *config.image_shape, device=device)
    compiler, torch.compile = torch.compile, functools.partial(torch.compile, backend="eager")
    with pytest.raises(UserError, match="other layers in one glimpse than in another"):
        model(eps, x, unroll=deferred.unroll_for(model, compiled=True))
    torch.compile = compiler


def captured(device):
    plain, fast = (
        Trainer(small_config(), data_set(), device, speed=SpeedConfig(compile=how)) for how in ("off", "auto")
    )
    for _ in range(8):
        plain.train_step(0.0)
        fast.train_step(0.0)
    for name, weight in plain.state().items():
        torch.testing.assert_close(fast.state()[name], weight, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1])
    many_shapes(sys.argv[1])
    refused(sys.argv[1])
    if sys.argv[1] == "cuda":
        captured("cuda")
