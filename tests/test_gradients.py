"""Gradients equal numeric ones in float64, and stay finite in float32 however extreme the parameters."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck

from draw.attention import deposit, extract
from draw.distributions import Bernoulli, StandardNormal, kl
from draw.filterbank import axis_filters, window
from draw.model import DRAW
from draw.noise import seeded
from draw.objective import losses
from draw.types import Gaussian, State, Window
from tiny import config, inputs, random_model

# Centres from 3 image sides outside on one side to 3 on the other; e^-30 = 1e-13 and e^30 = 1e13 for the rest.
EXTREMES = [
    (g_X, g_Y, *logs)
    for g_X, g_Y in [(-3.0, 0.0), (0.0, 3.0), (0.0, 0.0), (3.0, -3.0), (-3.0, -3.0), (3.0, 3.0)]
    for logs in itertools.product([-30.0, 0.0, 30.0], repeat=3)
]


def leaf(*shape, seed=0):
    values = torch.randn(shape, dtype=torch.float64, generator=seeded("leaf", seed))
    return values.requires_grad_()


def window_leaves():
    """Two windows on a 4 x 5 image, away from the symmetric points where a gradient would be zero."""
    values = [[1.2, 3.1], [2.3, 0.4], [1.1, 0.7], [0.8, 2.0], [1.5, 0.6]]
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]


def all_finite(tensors):
    return all(torch.isfinite(t).all() for t in tensors)


def test_the_gradient_of_the_filters_is_numeric():
    g, _, delta, sigma2, _ = window_leaves()
    assert gradcheck(lambda *v: axis_filters(*v, n=3, size=5), (g, delta, sigma2))


def test_the_gradient_of_the_filters_is_numeric_for_a_window_off_the_image():
    values = [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (8.3, 1.2, 2.0)]
    assert gradcheck(lambda *v: axis_filters(*v, n=3, size=5), values)


@pytest.mark.parametrize("n", [1, 2])
def test_the_gradient_of_a_window_is_numeric(n):
    raw = leaf(2, 5)
    assert gradcheck(lambda r: tuple(window(r, n, 4, 5)), (raw,))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_gradient_of_reading_is_numeric(n):
    assert gradcheck(lambda x, *w: extract(x, Window(*w), n), (leaf(2, 2, 4, 5), *window_leaves()))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_gradient_of_writing_is_numeric(n):
    assert gradcheck(lambda p, *w: deposit(p, Window(*w), 4, 5), (leaf(2, 1, n, n), *window_leaves()))


def test_the_gradient_of_a_divergence_is_numeric():
    q_p = [leaf(2, 3, seed=seed) for seed in range(4)]
    assert gradcheck(lambda a, b, c, d: kl(Gaussian(a, b), Gaussian(c, d)), q_p)


def test_the_gradient_of_the_likelihood_is_numeric():
    x = torch.rand(2, 1, 3, 2, dtype=torch.float64, generator=seeded("grey"))
    assert gradcheck(lambda canvas: Bernoulli().loss_x(x, canvas), (leaf(2, 1, 3, 2),))


SMALL = {"height": 3, "width": 2, "enc_size": 3, "dec_size": 2, "z_size": 2, "steps": 2}
KINDS = {
    "attention": {"read_n": 2, "write_n": 2},
    "one filter": {"read_n": 1, "write_n": 1},
    "none": {"read_n": None, "write_n": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_one_glimpse_is_numeric(kind):
    model = random_model(**SMALL, **KINDS[kind])
    eps, x = inputs(model, b=1)
    state = State(*(value.detach().requires_grad_() for value in model.initial_state(1)))

    def glimpse(*values):
        after, step = model.step(State(*values), eps[0], x)
        return (*after, step.latent.z)

    assert gradcheck(glimpse, tuple(state))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_whole_loss_is_numeric_in_every_parameter(kind):
    model = random_model(**SMALL, **KINDS[kind])
    eps, x = inputs(model, b=2)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def bound(*values):
        drawing = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (eps, x))
        return losses(x, drawing, model.likelihood).bound

    assert gradcheck(bound, parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind):
    model = random_model(**KINDS[kind])
    eps, x = inputs(model, b=4)
    losses(x, model(eps, x), model.likelihood).bound.sum().backward()
    for name, parameter in model.named_parameters():
        # With one filter the stride plays no part: its row of the head, the fourth, is rightly left at zero.
        rows = [0, 1, 2, 4] if kind == "one filter" and "to_window" in name else slice(None)
        assert (parameter.grad[rows] != 0).any(dim=-1).all(), name


@pytest.mark.parametrize("n", [1, 2, 5])
def test_reading_and_its_gradient_stay_finite_at_extreme_windows(n):
    raw = torch.tensor(EXTREMES, requires_grad=True)
    x = torch.rand(len(EXTREMES), 1, 28, 20, generator=seeded("grey")).requires_grad_()
    patch = extract(x, window(raw, n, 28, 20), n)
    patch.sum().backward()
    assert all_finite([patch, raw.grad, x.grad])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_writing_and_its_gradient_stay_finite_at_extreme_windows(n):
    raw = torch.tensor(EXTREMES, requires_grad=True)
    p = torch.randn(len(EXTREMES), 1, n, n, generator=seeded("patch")).requires_grad_()
    weights = torch.randn(1, 1, 28, 20, generator=seeded("weights"))
    stroke = deposit(p, window(raw, n, 28, 20), 28, 20)
    (stroke * weights).sum().backward()
    assert all_finite([stroke, raw.grad, p.grad])


@pytest.mark.parametrize("heads", [["read"], ["write"], ["read", "write"]], ids="-".join)
def test_the_loss_and_its_gradient_stay_finite_when_a_head_asks_for_an_extreme_window(heads):
    model = DRAW(config(read_n=2, write_n=3, steps=2)).float()
    eps, x = inputs(model, b=2)
    for raw in EXTREMES:
        with torch.no_grad():
            for head in heads:
                getattr(model, head).to_window.bias.copy_(torch.tensor(raw))
        model.zero_grad()
        bound = losses(x, model(eps, x), model.likelihood).bound
        bound.sum().backward()
        assert all_finite([bound, *(p.grad for p in model.parameters())]), raw


@pytest.mark.parametrize("logit", [-200.0, 200.0])
@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_the_loss_and_its_gradient_stay_finite_at_logits_of_200(logit, pixel):
    model = DRAW(config(steps=2))
    eps, x = inputs(model, b=2)
    with torch.no_grad():
        model.canvas0.fill_(logit)
    bound = losses(torch.full_like(x, pixel), model(eps, torch.full_like(x, pixel)), model.likelihood).bound
    bound.sum().backward()
    assert all_finite([bound, *(p.grad for p in model.parameters())])


@pytest.mark.parametrize("log_sigma", [-30.0, 30.0])
def test_the_loss_and_its_gradient_stay_finite_for_extremely_narrow_and_wide_posteriors(log_sigma):
    model = DRAW(config(steps=2))
    eps, x = inputs(model, b=2)
    with torch.no_grad():
        model.to_log_sigma.bias.fill_(log_sigma)
    bound = losses(x, model(eps, x), model.likelihood).bound
    bound.sum().backward()
    assert all_finite([bound, *(p.grad for p in model.parameters())])


@pytest.mark.parametrize("log_sigma", [-30.0, 30.0])
def test_the_divergence_of_extreme_posteriors_is_finite_with_its_gradient(log_sigma):
    q = Gaussian(torch.zeros(1, 3, requires_grad=True), torch.full((1, 3), log_sigma, requires_grad=True))
    divergence = kl(q, StandardNormal(3)(torch.zeros(1, 4)))
    divergence.sum().backward()
    assert all_finite([divergence, q.mu.grad, q.log_sigma.grad])
