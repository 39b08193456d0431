"""The objective against the truth, on a model of 2 x 2 images: there are only 16, so p(x) can be summed over all."""

import functools
import itertools
import math

import pytest
import torch
from numpy.testing import assert_allclose

from draw.noise import seeded
from draw.objective import log_weight, losses
from tiny import inputs, random_model

IMAGES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64).reshape(16, 1, 2, 2)
SAMPLES = 4096  # posterior samples of each image: standard errors of a percent, in about a second


@functools.cache
def model():
    """A model whose images depend on its latents, and whose bounds are not tight.

    No image is rare. Posteriors are near the prior in mean and no narrower: importance weights have light tails.
    """
    model = random_model(height=2, width=2, read_n=2, write_n=2, z_size=2, steps=2, enc_size=4, dec_size=4, spread=0.7)
    with torch.no_grad():
        for layer, scale, bias in ((model.to_mu, 0.3, 0.0), (model.to_log_sigma, 0.1, 0.1)):
            layer.weight *= scale
            layer.bias.fill_(bias)
        model.canvas0.zero_()
        model.write.to_patch.weight *= 0.4
        model.write.to_patch.bias.zero_()
    return model


def normal(*shape, key):
    return torch.randn(shape, dtype=torch.float64, generator=seeded(key))


@functools.cache
def measured(key):
    """log weights, loss_x and loss_z of the 16 images, each (16, SAMPLES)."""
    x = IMAGES.repeat_interleave(SAMPLES, dim=0)
    with torch.no_grad():
        drawing = model()(normal(2, len(x), 2, key=key), x)
        found = log_weight(x, drawing, model().likelihood), *losses(x, drawing, model().likelihood)
    return [value.reshape(16, SAMPLES) for value in found]


@functools.cache
def generated_probability():
    """p(x) of the 16 images and its standard error: the mean of D(x | c_T) over canvases drawn from the prior."""
    with torch.no_grad():
        canvas = model()(normal(2, 16 * SAMPLES, 2, key="prior")).canvas
    mean = torch.sigmoid(canvas)[None]
    x = IMAGES[:, None]
    given = (x * mean + (1 - x) * (1 - mean)).flatten(2).prod(dim=2)
    return given.mean(dim=1), given.std(dim=1) / math.sqrt(given.shape[1])


def mean_and_error(values):
    """The mean over samples and its standard error."""
    return values.mean(dim=-1), values.std(dim=-1) / math.sqrt(values.shape[-1])


def importance_bound(weights, k):
    """-log of the mean of K weights, averaged over the groups of K samples, with its standard error; (16,) each."""
    groups = weights.unflatten(1, (-1, k))
    return mean_and_error(math.log(k) - groups.logsumexp(dim=2))


def test_the_estimated_probabilities_of_all_sixteen_images_sum_to_one():
    p, error = mean_and_error(measured("posterior")[0].exp())
    total_error = error.square().sum().sqrt().item()
    # Four standard errors; the seed is fixed, so the outcome is too. The error must be small for this to say anything.
    assert total_error < 0.01
    assert abs(p.sum().item() - 1) < 4 * total_error


def test_an_image_is_as_probable_by_inference_as_it_is_by_generation():
    # trap: "samples" that are reconstructions
    inferred, inferred_error = mean_and_error(measured("posterior")[0].exp())
    generated, generated_error = generated_probability()
    error = (inferred_error.square() + generated_error.square()).sqrt()
    # The largest of 16 standard normal numbers passes 4 once in 1,000 seeds.
    assert ((inferred - generated).abs() < 4 * error).all()
    assert (error < 0.05 * generated).all()


def test_the_bound_lies_above_the_negative_log_probability_of_every_image():
    _, loss_x, loss_z = measured("posterior")
    bound, error = mean_and_error(loss_x + loss_z)
    p, p_error = generated_probability()
    margin = bound + p.log()
    # A bound by more than its error: this model's posterior is far from the true one.
    assert (margin > 4 * (error.square() + (p_error / p).square()).sqrt()).all()


def test_the_bound_is_minus_the_mean_log_weight():
    weights, loss_x, loss_z = measured("posterior")
    gap, error = mean_and_error(weights + loss_x + loss_z)
    # Both estimate the same number: one has the divergence in closed form, the other sampled.
    assert (gap.abs() < 4 * error).all()


@pytest.mark.parametrize(("few", "many"), [(1, 8), (8, 64)])
def test_the_importance_weighted_bound_tightens_with_more_samples(few, many):
    # From different noise, as nested groups of the same weights would be ordered whatever the weights.
    loose, loose_error = importance_bound(measured("posterior")[0], few)
    tight, tight_error = importance_bound(measured("more")[0], many)
    error = (loose_error.square() + tight_error.square()).sum().sqrt().item()
    assert (loose - tight).sum().item() > 4 * error


def test_the_importance_weighted_bound_stays_above_the_negative_log_probability():
    bound, error = importance_bound(measured("posterior")[0], 64)
    p, p_error = generated_probability()
    gap, gap_error = (bound + p.log()).sum(), (error.square() + (p_error / p).square()).sum().sqrt()
    assert gap > -4 * gap_error
    # And is nearly tight: the gap falls as 1/K.
    loose = (importance_bound(measured("posterior")[0], 1)[0] + p.log()).sum()
    assert gap < loose / 10


@pytest.mark.parametrize("kind", [{}, {"read_n": None, "write_n": None}, {"channels": 3}], ids=str)
@pytest.mark.parametrize(("steps", "z_size"), [(1, 1), (3, 4), (5, 2)])
def test_loss_z_has_the_constant_half_per_latent_of_every_glimpse(kind, steps, z_size):
    # trap: KL constant off by up to 900 nats
    m = random_model(steps=steps, z_size=z_size, **kind)
    eps, x = inputs(m, b=2)
    drawing = m(eps, x)
    mu, log_sigma = drawing.latent.q
    terms = 0.5 * (mu**2 + log_sigma.exp() ** 2 - 2 * log_sigma).sum(dim=(0, 2)) - steps * z_size / 2
    loss_z = losses(x, drawing, m.likelihood).loss_z
    assert_allclose(loss_z.detach().numpy(), terms.detach().numpy(), rtol=1e-11)


def test_loss_z_is_exactly_zero_when_every_posterior_is_the_prior():
    # trap: KL constant off by up to 900 nats
    m = random_model(dtype=torch.float32)
    with torch.no_grad():
        for layer in (m.to_mu, m.to_log_sigma):
            layer.weight.zero_()
            layer.bias.zero_()
    eps, x = inputs(m, b=2)
    assert losses(x, m(eps, x), m.likelihood).loss_z.tolist() == [0, 0]


def test_loss_z_is_the_sum_of_the_divergences_of_all_glimpses():
    m = random_model()
    eps, x = inputs(m, b=2)
    drawing = m(eps, x)
    total = [math.fsum(column) for column in drawing.kl.T.tolist()]
    assert_allclose(losses(x, drawing, m.likelihood).loss_z.tolist(), total, rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_loss_x_is_summed_over_pixels_and_not_averaged(channels):
    m = random_model(channels=channels)
    eps, x = inputs(m, b=2)
    drawing = m(eps, x)._replace(canvas=torch.zeros_like(x))
    # Every pixel costs one bit.
    assert_allclose(losses(x, drawing, m.likelihood).loss_x.tolist(), channels * 6 * 5 * math.log(2), rtol=1e-12)


def test_loss_x_is_of_the_final_canvas():
    m = random_model()
    eps, x = inputs(m, b=2)
    mean = torch.sigmoid(m(eps, x, trace=True).trace.canvas[-1])
    expected = -(x * mean.log() + (1 - x) * (1 - mean).log()).flatten(1).sum(1)
    assert_allclose(losses(x, m(eps, x), m.likelihood).loss_x.tolist(), expected.tolist(), rtol=1e-11)


@pytest.mark.parametrize("b", [1, 2, 5])
def test_every_image_has_a_bound_of_its_own_whatever_the_batch(b):
    m = random_model()
    eps, x = inputs(m, b=5)
    bound = losses(x, m(eps, x), m.likelihood).bound
    part = losses(x[:b], m(eps[:, :b], x[:b]), m.likelihood).bound
    assert part.shape == (b,)
    assert_allclose(part.tolist(), bound[:b].tolist(), rtol=1e-11)


def test_the_log_weight_of_an_image_is_its_own_whatever_the_batch():
    m = random_model()
    eps, x = inputs(m, b=3)
    weights = log_weight(x, m(eps, x), m.likelihood)
    assert weights.shape == (3,)
    assert_allclose(log_weight(x[:1], m(eps[:, :1], x[:1]), m.likelihood).item(), weights[0].item(), rtol=1e-11)


def test_the_bound_is_the_sum_of_its_parts():
    m = random_model()
    eps, x = inputs(m, b=3)
    parts = losses(x, m(eps, x), m.likelihood)
    assert torch.equal(parts.bound, parts.loss_x + parts.loss_z)


@pytest.mark.parametrize("function", [losses, log_weight])
def test_a_generated_drawing_has_no_bound(function):
    # trap: "samples" that are reconstructions
    m = random_model()
    eps, x = inputs(m, b=2)
    with pytest.raises(ValueError, match="pass the images to the model"):
        function(x, m(eps), m.likelihood)
