"""Every piece of the network can be another one with the same interface."""

import pytest
import torch
from torch import nn

from draw.attention import AttentiveWrite
from draw.distributions import Bernoulli, kl
from draw.model import DRAW, LSTM
from draw.objective import losses
from draw.types import Gaussian
from tiny import config, inputs


class Shifted(nn.Module):
    """A prior whose mean is learned from the decoder's state."""

    def __init__(self):
        super().__init__()
        self.to_mean = nn.Linear(6, 4)
        nn.init.constant_(self.to_mean.bias, 0.5)  # well away from the paper's 0, whatever the weights are

    def forward(self, h_dec):
        mean = self.to_mean(h_dec)
        return Gaussian(mean, torch.zeros_like(mean))


class ImageAlone(nn.Module):
    """A read that ignores the error image."""

    features = 30

    def forward(self, x, x_hat, h_dec):
        return x.flatten(1), None


class Doubled(nn.Module):
    """A write of twice the paper's stroke."""

    def __init__(self):
        super().__init__()
        self.paper = AttentiveWrite(3, 6, 1, 6, 5)

    def forward(self, h_dec):
        stroke, window = self.paper(h_dec)
        return 2 * stroke, window


class Plain(nn.Module):
    """A recurrent cell without gates."""

    def __init__(self, input_size, size):
        super().__init__()
        self.map = nn.Linear(input_size + size, size)

    def forward(self, input, h, s):
        return self.map(torch.cat([input, h], 1)).tanh(), s


class Squared(Bernoulli):
    """A unit Gaussian about the mean, constants left out."""

    def loss_x(self, x, canvas):
        return 0.5 * (x - self.mean(canvas)).square().flatten(1).sum(1)


@pytest.mark.parametrize(
    "piece",
    [{"prior": Shifted()}, {"read": ImageAlone()}, {"write": Doubled()}, {"cell": Plain}, {"likelihood": Squared()}],
    ids=lambda piece: next(iter(piece)),
)
def test_another_piece_trains_and_changes_the_loss(piece):
    paper, other = DRAW(config()), DRAW(config(), **piece)
    eps, x = inputs(paper, 3)
    bounds = [losses(x, model(eps, x), model.likelihood).bound.mean() for model in (paper, other)]
    bounds[1].backward()
    unused = ("s_enc0", "s_dec0") if "cell" in piece else ()  # a cell without a memory
    assert all(p.grad.isfinite().all() for name, p in other.named_parameters() if name not in unused)
    assert bounds[0].item() != pytest.approx(bounds[1].item(), abs=1e-4)


def test_the_divergence_is_from_the_prior_in_use():
    model = DRAW(config(), prior=Shifted())
    eps, x = inputs(model, 2)
    drawing = model(eps, x)
    assert drawing.latent.p.mu.abs().min() > 0
    torch.testing.assert_close(drawing.kl, kl(drawing.latent.q, drawing.latent.p))


def test_generation_draws_from_the_prior_in_use():
    model = DRAW(config(), prior=Shifted())
    eps, _ = inputs(model, 2)
    latent = model(eps).latent
    torch.testing.assert_close(latent.z, latent.p.mu + eps)


def test_the_papers_cell_is_the_default():
    assert isinstance(DRAW(config()).decoder, LSTM)
