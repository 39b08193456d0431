"""Measuring: every image exactly once, whatever the batch; bounded memory; the estimates are what their names say."""

import copy
import dataclasses
import math
import statistics

import pytest
import torch
from torch.testing import assert_close

from draw.attention import FullWrite
from draw.config import EvalConfig, SpeedConfig
from draw.data import intensities
from draw.distributions import Bernoulli
from draw.errors import UserError
from draw.evaluation import evaluate, spread
from draw.model import DRAW
from draw.objective import log_weight, losses
from draw.words import latents_in_use
from small import data_set, small_config
from tiny import random_model


@pytest.fixture(scope="module")
def model():
    return DRAW(small_config().model, mean_pixel=0.25, seed=3)


@pytest.fixture(scope="module")
def data():
    return data_set()


def mean_bounds(model, images, samples=200):
    """Each image's bound by a loop over images: an independent way to the same expectation."""
    x = images.float() / 255
    eps = model.noise(samples, 9, "oracle")
    with torch.no_grad():
        return torch.stack([losses(many, model(eps, many), model.likelihood).bound.mean()
                            for many in (image.expand(samples, *image.shape) for image in x)])  # fmt: skip


def test_every_image_is_counted_once_and_the_last_batch_too(model, data):  # trap: last partial batch dropped
    for batch_size in (1, 4, 13, 100):
        result = evaluate(model, data, EvalConfig(batch_size=batch_size))
        assert result.images == 13
    seen = []
    evaluate(model, data, EvalConfig(batch_size=4), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 13), (8, 13), (12, 13), (13, 13)]


def test_the_last_image_weighs_as_much_as_any_other(model, data):  # trap: last partial batch dropped
    images = data.images["test"].clone()
    images[-1] = 255  # far more nats than the others
    changed = dataclasses.replace(data, images=data.images | {"test": images})
    before, after = (evaluate(model, d, EvalConfig(batch_size=4, samples=50)) for d in (data, changed))
    alone = mean_bounds(model, images[-1:]) - mean_bounds(model, data.images["test"][-1:])
    assert (after.bound_nats - before.bound_nats) * 13 == pytest.approx(float(alone), abs=1.0)


def test_the_bound_is_the_mean_over_images_of_their_bounds(model, data):
    result = evaluate(model, data, EvalConfig(samples=200))
    bounds = mean_bounds(model, data.images["test"])
    assert result.bound_nats == pytest.approx(float(bounds.mean()), abs=0.2)  # both have a Monte Carlo error of 0.05
    assert result.bound_se == pytest.approx(float(bounds.std() / math.sqrt(13)), rel=0.05)


def test_the_two_parts_and_the_glimpses_add_up(model, data):
    result = evaluate(model, data, EvalConfig(samples=3))
    assert result.bound_nats == pytest.approx(result.loss_x_nats + result.loss_z_nats, rel=1e-6)
    assert result.loss_z_nats == pytest.approx(sum(result.kl_per_glimpse_nats), rel=1e-5)
    assert len(result.kl_per_glimpse_nats) == 3
    assert result.loss_z_nats == pytest.approx(sum(result.kl_per_latent_nats), rel=1e-5)
    assert len(result.kl_per_latent_nats) == model.config.z_size


def test_the_kl_per_latent_is_that_of_each_latent_by_torch(model, data):
    """`torch.distributions` knows the divergence too; a latent with the prior's statistics has none."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for head in (model.to_mu, model.to_log_sigma):
            head.weight[1], head.bias[1] = 0, 0
    x = data.images["test"].float() / 255
    result = evaluate(model, data, EvalConfig(batch_size=len(x)))
    q = model(model.noise(len(x), 0, "bound", 0, 0), x).latent.q
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mu, q.log_sigma.exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert result.kl_per_latent_nats == pytest.approx(divergence.sum(0).mean(0).tolist(), rel=1e-5)
    assert result.kl_per_latent_nats[1] == 0 < result.kl_per_latent_nats[0]


@pytest.mark.parametrize(
    ("per_latent", "used"), [([0.0, 3.0, 0.01, 5.0], 2), ([1.0] * 4, 4), ([0.05, 1.0], 2), ([0.0, 0.0], 0), ([2.0], 1)]
)
def test_the_latents_in_use_are_the_fewest_that_carry_99_percent(per_latent, used):
    assert latents_in_use(per_latent) == used


def test_bits_per_dim_is_nats_over_pixels_and_ln_2(model, data):
    result = evaluate(model, data)
    assert result.bits_per_dim == pytest.approx(result.bound_nats / (6 * 5 * math.log(2)))


def test_intensities_have_no_bits_per_dim(model):  # trap: a cross-entropy beside code lengths
    assert evaluate(model, data_set(grey=True)).bits_per_dim is None


class Dropped(FullWrite):
    def forward(self, h_dec):
        return super().forward(torch.nn.functional.dropout(h_dec, 0.5, self.training))


def test_a_network_is_measured_in_use_and_left_in_training(data):
    model = DRAW(small_config().model, write=Dropped(12, 1, 6, 5))
    model.encoder.eval()
    bounds = {evaluate(model, data).bound_nats for _ in range(2)}
    assert (model.training, model.write.training, model.encoder.training) == (True, True, False)
    assert bounds == {evaluate(model.eval(), data).bound_nats}


def test_what_computes_the_glimpses_can_be_given(model, data):
    calls = []

    def unroll(*arguments):
        calls.append(arguments)
        return model.unroll(*arguments)

    given = evaluate(model, data, EvalConfig(batch_size=5), unroll=unroll)
    assert len(calls) == 3
    assert given.bound_nats == pytest.approx(evaluate(model, data, EvalConfig(batch_size=5)).bound_nats)


def test_the_importance_weighted_estimate_is_asked_for_k_samples_and_takes_k(model, data):
    result = evaluate(model, data, EvalConfig(importance_samples=17, batch_size=4))
    assert result.importance_samples == 17
    assert 1 <= result.effective_sample_size <= 17


def test_without_importance_samples_there_is_no_estimate(model, data):
    result = evaluate(model, data)
    assert (result.iw_nats, result.effective_sample_size, result.importance_samples) == (None, None, 0)


def test_the_estimate_with_one_sample_is_the_bound(model, data):
    many = dataclasses.replace(data, images=data.images | {"test": data.images["test"].repeat(40, 1, 1, 1)})
    result = evaluate(model, many, EvalConfig(importance_samples=1))
    assert result.iw_nats == pytest.approx(result.bound_nats, abs=4 * result.iw_se)
    assert result.effective_sample_size == pytest.approx(1.0)


def test_the_estimate_tightens_with_k(data):
    model = random_model(dtype=torch.float32)  # one whose latents matter
    estimates = [evaluate(model, data, EvalConfig(importance_samples=k)).iw_nats for k in (1, 10, 100, 1000)]
    assert estimates == sorted(estimates, reverse=True)
    assert estimates[3] < evaluate(model, data, EvalConfig(samples=100)).bound_nats


def test_the_estimate_is_minus_the_log_of_the_mean_weight(model, data):
    images, k = data.images["test"][:1], 2_000
    one = dataclasses.replace(data, images=data.images | {"test": images})
    result = evaluate(model, one, EvalConfig(importance_samples=k, batch_size=300))
    x = (images.float() / 255).expand(k, -1, -1, -1)
    with torch.no_grad():
        log_w = log_weight(x, model(model.noise(k, 3, "oracle"), x), model.likelihood)
    # Other noise: the standard error of either is below 0.02.
    assert result.iw_nats == pytest.approx(float(math.log(k) - log_w.logsumexp(0)), abs=0.1)


def test_weights_summed_in_passes_are_weights_summed_at_once(model, data):
    one = dataclasses.replace(data, images=data.images | {"test": data.images["test"][:1]})
    at_once = evaluate(model, one, EvalConfig(importance_samples=4096, batch_size=4096))
    in_passes = evaluate(model, one, EvalConfig(importance_samples=4096, batch_size=64))
    # Other noise, the same expectation: the standard deviation of either is about 0.01.
    assert in_passes.iw_nats == pytest.approx(at_once.iw_nats, abs=0.1)
    assert in_passes.effective_sample_size == pytest.approx(at_once.effective_sample_size, rel=0.3)


def test_no_batch_is_larger_than_asked_whatever_k(model, data):
    largest = 0
    plain = model.step

    def watched(state, eps, x=None):
        nonlocal largest
        largest = max(largest, len(eps))
        return plain(state, eps, x)

    model.step = watched
    try:
        settings = EvalConfig(importance_samples=1000, samples=30, batch_size=16)
        evaluate(model, data, settings, speed=SpeedConfig(compile="off"))
    finally:
        del model.step
    assert largest == 16


def test_the_same_seed_measures_the_same(model, data):
    one, two, other = (evaluate(model, data, EvalConfig(seed=seed)).bound_nats for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_the_error_over_samples_is_what_other_noise_changes(model, data):
    bounds, errors = [], []
    for seed in range(200):
        measured = evaluate(model, data, EvalConfig(seed=seed, samples=4))
        bounds.append(measured.bound_nats)
        errors.append(measured.bound_sampling_se)
    assert torch.tensor(bounds).std().item() == pytest.approx(statistics.mean(errors), rel=0.2)  # 4 times its own error
    assert evaluate(model, data).bound_sampling_se is None  # of one sample nothing is known


def test_a_subset_is_spread_over_the_split():  # trap: the fixed test file is sorted by class
    assert spread(10_000, 10).tolist() == list(range(0, 10_000, 1000))
    assert spread(7, 0).tolist() == list(range(7))
    assert spread(7, 100).tolist() == list(range(7))
    assert spread(7, 3).tolist() == [0, 2, 4]


def test_stochastic_binarization_measures_binary_images(model):  # trap: grey pixels quoted as if binary
    grey = data_set(grey=True, binarization="stochastic")
    treated_as_grey = dataclasses.replace(grey, binarization="none")
    stochastic, none = (evaluate(model, d, EvalConfig(samples=20)) for d in (grey, treated_as_grey))
    assert (stochastic.binarization, none.binarization) == ("stochastic", "none")
    assert stochastic.bound_nats != pytest.approx(none.bound_nats, abs=1e-3)


def test_intensities_have_an_entropy_that_no_canvas_goes_below(model):
    grey = dataclasses.replace(data_set(grey=True), binarization="none")
    x = intensities(grey.images["test"], "none", None)
    entropy = torch.distributions.Bernoulli(probs=x.double()).entropy().sum((1, 2, 3))
    assert_close(Bernoulli().least_loss_x(x).double(), entropy, atol=1e-4, rtol=1e-5)
    best = torch.logit(x.double()).clamp(-50, 50)
    assert_close(Bernoulli().loss_x(x.double(), best), entropy, atol=1e-8, rtol=0)
    measured = evaluate(model, grey)
    assert measured.above_entropy_nats == pytest.approx(measured.bound_nats - entropy.mean().item(), abs=1e-4)
    assert 0 < measured.above_entropy_se < measured.above_entropy_nats
    assert evaluate(model, data_set()).above_entropy_nats is None  # of bits it is the bound itself


def test_images_of_another_size_are_refused(model):
    with pytest.raises(UserError, match="the model draws images of 1 x 6 x 5"):
        evaluate(model, data_set(height=8))


def test_measuring_is_of_images_and_samples_are_not_reconstructions(model, data):  # trap: reconstructions as samples
    x = data.images["test"].float() / 255
    assert model.sample(13, seed=1).equal(model.sample(13, seed=1))
    assert model.reconstruct(x, seed=1).equal(model.reconstruct(x, seed=1))
    assert not model.reconstruct(x, seed=1).equal(model.reconstruct(1 - x, seed=1))
