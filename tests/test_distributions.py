"""The distributions against SciPy, Monte Carlo and exact values. Everything is in nats."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from draw.distributions import Bernoulli, StandardNormal, kl, log_density, rsample
from draw.noise import seeded
from draw.types import Gaussian

moderate = settings(derandomize=True, max_examples=60, deadline=None)
means = st.lists(st.floats(-20, 20), min_size=3, max_size=3)
log_sigmas = st.lists(st.floats(-8, 8), min_size=3, max_size=3)
EXACT = {"rtol": 1e-11, "atol": 1e-11}  # float64 arithmetic with a few roundings and little cancellation


def gaussian(mu, log_sigma, dtype=torch.float64):
    return Gaussian(torch.tensor([mu], dtype=dtype), torch.tensor([log_sigma], dtype=dtype))


def standard(z, dtype=torch.float64):
    return StandardNormal(z)(torch.zeros(1, 4, dtype=dtype))


def exact_bernoulli_loss(x, logit):
    """log(1 + e^c) - x c in 120 decimal digits, rounded once."""
    with localcontext() as context:
        context.prec = 120
        return float((1 + Decimal(logit).exp()).ln() - Decimal(x) * Decimal(logit))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("z", [1, 2, 100])
def test_the_divergence_of_the_prior_from_itself_is_exactly_zero_for_any_number_of_latents(dtype, z):
    # trap: KL constant off by up to 900 nats
    zero = [0.0] * z
    assert kl(gaussian(zero, zero, dtype), standard(z, dtype)).item() == 0


def test_the_divergence_of_any_gaussian_from_itself_is_exactly_zero():
    q = gaussian([0.3, -4.0], [1.5, -2.5])
    assert kl(q, q).item() == 0


@moderate
@given(mu=means, log_sigma=log_sigmas)
def test_the_divergence_from_the_prior_is_equation_11_unit_by_unit(mu, log_sigma):
    # trap: KL constant off by up to 900 nats
    paper = sum(
        0.5 * (m**2 + math.exp(s) ** 2 - math.log(math.exp(s) ** 2) - 1) for m, s in zip(mu, log_sigma, strict=True)
    )
    assert_allclose(kl(gaussian(mu, log_sigma), standard(3)).item(), paper, **EXACT)


@moderate
@given(mu=means, log_sigma=log_sigmas, p_mu=means, p_log_sigma=log_sigmas)
def test_a_divergence_is_never_negative(mu, log_sigma, p_mu, p_log_sigma):
    # Within the rounding of terms of size 1 that cancel.
    assert kl(gaussian(mu, log_sigma), gaussian(p_mu, p_log_sigma)).item() >= -1e-14


def test_the_divergence_is_the_integral_that_defines_it():
    q, p = scipy.stats.norm(0.7, math.exp(-0.5)), scipy.stats.norm(-0.4, math.exp(0.3))
    integral = q.expect(lambda z: q.logpdf(z) - p.logpdf(z))
    ours = kl(gaussian([0.7], [-0.5]), gaussian([-0.4], [0.3])).item()
    assert_allclose(ours, integral, rtol=1e-7)  # the accuracy of the quadrature


def test_the_divergence_of_a_sample_is_the_mean_of_its_log_density_ratio():
    q, p = gaussian([0.5, -1.0, 0.2], [-0.7, 0.2, 0.0]), gaussian([0.0, 0.3, 1.0], [0.1, -0.2, 0.4])
    eps = torch.randn(100_000, 3, dtype=torch.float64, generator=seeded("monte carlo"))
    z = rsample(q, eps)
    ratio = (log_density(z, q) - log_density(z, p)).numpy()
    error = ratio.std() / math.sqrt(len(ratio))
    # Four standard errors; the seed is fixed, so the outcome is too.
    assert abs(ratio.mean() - kl(q, p).item()) < 4 * error
    assert error < 0.01


@moderate
@given(z=means, mu=means, log_sigma=log_sigmas)
def test_a_log_density_is_that_of_scipy(z, mu, log_sigma):
    expected = scipy.stats.norm.logpdf(z, mu, np.exp(log_sigma)).sum()
    ours = log_density(torch.tensor([z], dtype=torch.float64), gaussian(mu, log_sigma)).item()
    assert_allclose(ours, expected, rtol=1e-11, atol=1e-10)


def test_a_sample_is_the_mean_plus_sigma_times_the_noise():
    q = gaussian([1.0, -2.0], [math.log(3), 0.0])
    eps = torch.tensor([[2.0, -0.5]], dtype=torch.float64)
    assert_allclose(rsample(q, eps).numpy(), [[7.0, -2.5]], **EXACT)


def test_the_paper_prior_is_standard_normal_whatever_the_decoder_says():
    for h_dec in (torch.zeros(2, 4), torch.ones(2, 4)):
        p = StandardNormal(3)(h_dec)
        assert torch.equal(p.mu, torch.zeros(2, 3))
        assert torch.equal(p.log_sigma, torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(1, 1, 4, 5), (3, 3, 2, 3)])
def test_the_loss_of_binary_images_is_minus_their_log_probability_summed_over_pixels(shape):
    canvas = 3 * torch.randn(shape, dtype=torch.float64, generator=seeded("canvas"))
    x = torch.randint(2, shape, generator=seeded("pixels")).double()
    probability = scipy.special.expit(canvas.numpy())
    expected = -scipy.stats.bernoulli.logpmf(x.numpy(), probability).reshape(shape[0], -1).sum(axis=1)
    assert_allclose(Bernoulli().loss_x(x, canvas).numpy(), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("logit", [-200.0, -20.0, -1.0, 0.0, 1.0, 20.0, 200.0])
def test_the_loss_of_a_pixel_is_exact_at_any_logit(dtype, x, logit):
    pixel, canvas = (torch.full((1, 1, 1, 1), v, dtype=dtype) for v in (x, logit))
    ours = Bernoulli().loss_x(pixel, canvas).item()
    eps = torch.finfo(dtype).eps
    # softplus and the product are rounded at the size of the logit. PyTorch's softplus(c) is c beyond 20, which
    # leaves out log(1 + e^-20) = 2e-9.
    assert_allclose(ours, exact_bernoulli_loss(x, logit), rtol=4 * eps, atol=4 * eps * abs(logit) * (x > 0) + 2.1e-9)


@pytest.mark.parametrize(("x", "logit", "slope"), [(0.0, 200.0, 1.0), (1.0, -200.0, -1.0), (1.0, 200.0, 0.0)])
def test_the_slope_of_the_loss_is_the_error_of_the_mean_even_at_logits_of_200(x, logit, slope):
    canvas = torch.full((1, 1, 1, 1), logit, requires_grad=True)
    Bernoulli().loss_x(torch.full((1, 1, 1, 1), x), canvas).sum().backward()
    assert canvas.grad.item() == slope


@pytest.mark.parametrize("mean", [0.01, 0.1307, 0.5, 0.9])
def test_the_mean_of_a_canvas_made_for_an_intensity_is_that_intensity(mean):
    likelihood = Bernoulli()
    canvas = torch.tensor(likelihood.canvas_of(mean), dtype=torch.float64).reshape(1, 1, 1)
    assert_allclose(likelihood.mean(canvas).item(), mean, **EXACT)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_an_all_black_or_all_white_set_still_gets_a_finite_canvas(mean):
    canvas = Bernoulli().canvas_of(mean)
    assert 3 < abs(canvas) < 20
    assert (canvas > 0) == (mean > 0.5)
