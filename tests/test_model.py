"""The network: what is a function of what, bit for bit where it must be."""

import math

import pytest
import torch
from numpy.testing import assert_allclose

from draw.config import ModelConfig
from draw.model import DRAW
from draw.objective import losses
from tiny import config, inputs, random_model

KINDS = {
    "attention": {},
    "colour": {"channels": 3},
    "one filter": {"read_n": 1, "write_n": 1},
    "none": {"read_n": None, "write_n": None},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def tensors(value):
    """Every tensor inside nested tuples, in order."""
    if value is None:
        return []
    return [value] if isinstance(value, torch.Tensor) else [leaf for part in value for leaf in tensors(part)]


def assert_same_bits(ours, theirs):
    ours, theirs = tensors(ours), tensors(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def differs(a, b):
    return not torch.equal(a, b)


@every_kind
@pytest.mark.parametrize("generate", [False, True], ids=["inference", "generation"])
def test_the_same_noise_gives_the_same_bits(kind, generate):
    model = random_model(dtype=torch.float32, **KINDS[kind])
    eps, x = inputs(model, b=3)
    x = None if generate else x
    assert_same_bits(model(eps, x, trace=True), model(eps, x, trace=True))


@every_kind
@every_precision
def test_an_image_alone_is_drawn_as_in_a_batch(kind, dtype):
    model = random_model(dtype=dtype, **KINDS[kind])
    eps, x = inputs(model, b=3)
    together = model(eps, x).canvas[1:2].detach().numpy()
    alone = model(eps[:, 1:2], x[1:2]).canvas.detach().numpy()
    # Matrix products of other shapes add in another order: some hundred roundings at logits of size 10.
    tolerance = 1000 * torch.finfo(dtype).eps
    assert_allclose(alone, together, rtol=tolerance, atol=tolerance)


@every_kind
@pytest.mark.parametrize("generate", [False, True], ids=["inference", "generation"])
def test_asking_for_the_trace_changes_nothing(kind, generate):
    model = random_model(dtype=torch.float32, **KINDS[kind])
    eps, x = inputs(model, b=3)
    x = None if generate else x
    assert_same_bits(model(eps, x, trace=True)._replace(trace=None), model(eps, x))


def test_no_trace_is_kept_unless_asked_for():
    model = random_model()
    assert model(*inputs(model, b=1)).trace is None


@every_kind
@pytest.mark.parametrize("generate", [False, True], ids=["inference", "generation"])
def test_t_glimpses_are_the_first_t_of_more(kind, generate):
    model = random_model(dtype=torch.float32, **KINDS[kind])
    eps, x = inputs(model, b=3, steps=4)
    x = None if generate else x
    more = model(eps, x, trace=True)
    assert_same_bits(model(eps[:3], x, trace=True).trace, [leaf[:3] for leaf in tensors(more.trace)])


@every_kind
@pytest.mark.parametrize("generate", [False, True], ids=["inference", "generation"])
def test_stepping_by_hand_gives_the_bits_of_the_loop(kind, generate):
    model = random_model(dtype=torch.float32, **KINDS[kind])
    eps, x = inputs(model, b=3)
    x = None if generate else x
    state = model.initial_state(3)
    for t, step in enumerate(eps):
        state, made = model.step(state, step, x)
        assert_same_bits(made, [leaf[t] for leaf in tensors(model(eps, x, trace=True).trace)])


def test_the_last_canvas_of_the_trace_is_the_canvas():
    model = random_model()
    drawing = model(*inputs(model, b=2), trace=True)
    assert torch.equal(drawing.trace.canvas[-1], drawing.canvas)


@every_kind
def test_the_noise_of_a_glimpse_changes_that_glimpse_and_later_ones_only(kind):
    # trap: one noise tensor shared by all steps
    model = random_model(**KINDS[kind])
    eps, x = inputs(model, b=2)
    other = eps.clone()
    other[1] += 1
    a, b = (model(e, x, trace=True).trace for e in (eps, other))
    assert torch.equal(a.latent.z[0], b.latent.z[0])
    assert torch.equal(a.canvas[0], b.canvas[0])
    # Glimpse 1 has its posterior from glimpse 0, and its own noise; glimpse 2 sees what was drawn.
    assert torch.equal(a.latent.q.mu[1], b.latent.q.mu[1])
    assert differs(a.canvas[1], b.canvas[1])
    assert differs(a.latent.q.mu[2], b.latent.q.mu[2])


def test_the_noise_of_one_image_leaves_the_other_images_as_they_were():
    model = random_model()
    eps, x = inputs(model, b=2)
    other = eps.clone()
    other[:, 0] += 1
    a, b = model(eps, x).canvas, model(other, x).canvas
    assert differs(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_the_noise_drawn_for_different_glimpses_and_images_is_independent():
    # trap: one noise tensor shared by all steps
    noise = random_model(z_size=500, steps=3).noise(4, "key")
    assert noise.shape == (3, 4, 500)
    correlation = torch.corrcoef(noise.reshape(12, 500)) - torch.eye(12)
    # 66 pairs of correlations with standard error 1/sqrt(500) = 0.045.
    assert correlation.abs().max() < 0.2


def test_the_noise_is_standard_normal():
    noise = random_model(z_size=500).noise(100, "key")
    # 150,000 numbers: standard errors 0.0026 and 0.0018.
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01


@every_kind
def test_generation_uses_nothing_of_the_encoder(kind):
    # trap: "samples" that are reconstructions
    model = random_model(**KINDS[kind])
    eps, _ = inputs(model, b=2)
    before = model(eps).canvas
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("read.", "encoder.", "to_mu.", "to_log_sigma.", "h_enc0", "s_enc0")):
                parameter.fill_(math.nan)
    assert torch.equal(model(eps).canvas, before)


def test_samples_are_the_means_of_canvases_drawn_from_the_prior():
    # trap: "samples" that are reconstructions
    model = random_model()
    samples = model.sample(3, seed=5)
    with torch.no_grad():
        drawn = torch.sigmoid(model(model.noise(3, 5, "sample")).canvas)
    assert torch.equal(samples, drawn)


def test_samples_of_one_seed_are_the_same_bits_and_of_another_seed_others():
    model = random_model()
    assert torch.equal(model.sample(2, seed=1), model.sample(2, seed=1))
    assert differs(model.sample(2, seed=1), model.sample(2, seed=2))


def test_binary_samples_are_pixels_drawn_with_the_sampled_probabilities():
    model = random_model(dtype=torch.float32)
    means, pixels = model.sample(4000, seed=1), model.sample(4000, seed=1, binary=True)
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    # 120,000 pixels: the standard error of their sum over the root of the summed variances is 1.
    assert abs((pixels - means).sum() / (means * (1 - means)).sum().sqrt()) < 4


def test_without_temperature_every_sample_is_the_same():
    samples = random_model().sample(3, temperature=0.0)
    assert_allclose(samples[1:].numpy(), samples[:1].expand(2, 1, 6, 5).numpy(), rtol=1e-12)


def test_a_reconstruction_is_the_mean_of_the_canvas_inferred_from_the_image():
    model = random_model()
    _, x = inputs(model, b=3)
    with torch.no_grad():
        drawn = torch.sigmoid(model(model.noise(3, 5, "reconstruct"), x).canvas)
    assert torch.equal(model.reconstruct(x, seed=5), drawn)


@every_kind
def test_inference_sees_the_image(kind):
    model = random_model(**KINDS[kind])
    eps, x = inputs(model, b=1)
    assert differs(model(eps, x).latent.q.mu, model(eps, 1 - x).latent.q.mu)


@every_kind
def test_inference_sees_the_canvas_through_the_error_image(kind):
    # trap: the error image dropped from the read
    model = random_model(**KINDS[kind])
    eps, x = inputs(model, b=1)
    state = model.initial_state(1)
    _, before = model.step(state, eps[0], x)
    _, after = model.step(state._replace(canvas=state.canvas + 1), eps[0], x)
    assert differs(before.latent.q.mu, after.latent.q.mu)


def test_the_error_image_is_the_image_less_the_mean_of_the_canvas_before_the_glimpse():
    model = random_model()
    eps, x = inputs(model, b=2)
    trace = model(eps, x, trace=True).trace
    before = torch.cat([model.canvas0[None, None].expand_as(trace.canvas[:1]), trace.canvas[:-1]])
    # Not the same bits: the vectorised sigmoid of PyTorch depends on where in a tensor an element stands.
    assert_allclose(trace.x_hat.detach().numpy(), (x - before.sigmoid()).detach().numpy(), rtol=1e-12, atol=1e-12)


def test_the_read_head_does_not_move_the_write_window():
    # trap: one window layer shared by read and write
    model = random_model(read_n=3, write_n=3)
    eps, _ = inputs(model, b=1)
    before = model(eps[:1], trace=True).trace.write_window
    with torch.no_grad():
        model.read.to_window.bias += 0.5
    assert_same_bits(model(eps[:1], trace=True).trace.write_window, before)


def test_the_write_head_does_not_move_the_read_window():
    # trap: one window layer shared by read and write
    model = random_model(read_n=3, write_n=3)
    eps, x = inputs(model, b=1)
    before = model(eps[:1], x, trace=True).trace.read_window
    with torch.no_grad():
        model.write.to_window.bias += 0.5
    assert_same_bits(model(eps[:1], x, trace=True).trace.read_window, before)


def test_the_first_write_window_already_depends_on_the_first_latent():
    model = random_model()
    eps, _ = inputs(model, b=1)
    a, b = (model(e[:1], trace=True).trace.write_window.g_X for e in (eps, eps + 1))
    assert differs(a, b)


@pytest.mark.parametrize("cell", ["encoder", "decoder"])
def test_the_forget_gates_start_with_bias_one_and_the_other_gates_with_zero(cell):
    model = DRAW(config())
    i, f, g, o = getattr(model, cell).to_gates.bias.chunk(4)
    assert (f == 1).all()
    assert (torch.cat([i, g, o]) == 0).all()


@pytest.mark.parametrize("mean", [0.1307, 0.5, 0.9])
def test_the_canvas_starts_at_the_logit_of_the_mean_pixel(mean):
    canvas = DRAW(config(), mean_pixel=mean).canvas0.detach()
    assert canvas.shape == (1, 6, 5)
    assert_allclose(canvas.numpy(), math.log(mean / (1 - mean)), rtol=1e-6, atol=1e-7)  # float32


@pytest.mark.parametrize(("head", "sigma"), [("read", 0.25), ("write", 0.5)])
def test_the_windows_at_first_see_the_whole_image(head, sigma):
    model = DRAW(ModelConfig(steps=1))
    eps, x = inputs(model, b=1)
    w = getattr(model(eps, x, trace=True).trace, f"{head}_window")
    stride = 28 / getattr(model.config, f"{head}_n")
    # The outputs of an untrained decoder move the window a little from where the bias puts it.
    assert abs(w.g_X.item() - 13.5) < 3
    assert abs(w.g_Y.item() - 13.5) < 3
    assert abs(w.delta.item() / stride - 1) < 0.25
    assert abs(w.sigma2.sqrt().item() / stride - sigma) < 0.25 * sigma


def lstm_parameters(inputs, size):
    return 4 * size * (inputs + size) + 4 * size


def linear_parameters(inputs, outputs):
    return inputs * outputs + outputs


def test_the_mnist_network_has_the_parameters_counted_by_hand():
    # trap: one window layer shared by read and write
    expected = (
        lstm_parameters(2 * 2 * 2 + 256, 256)  # encoder: two 2 x 2 patches and the decoder's output
        + lstm_parameters(100, 256)  # decoder
        + 2 * linear_parameters(256, 100)  # mu, log sigma
        + 2 * linear_parameters(256, 5)  # one window head each for reading and writing
        + linear_parameters(256, 5 * 5)  # patch
        + 4 * 256  # initial outputs and memories
        + 28 * 28  # initial canvas
    )
    assert sum(p.numel() for p in DRAW(ModelConfig()).parameters()) == expected


def test_the_mnist_network_without_attention_has_the_parameters_counted_by_hand():
    expected = (
        lstm_parameters(2 * 784 + 256, 256)
        + lstm_parameters(100, 256)
        + 2 * linear_parameters(256, 100)
        + linear_parameters(256, 784)  # stroke
        + 4 * 256
        + 784
    )
    model = DRAW(ModelConfig(read_n=None, write_n=None))
    assert sum(p.numel() for p in model.parameters()) == expected


def test_the_same_seed_gives_the_same_weights():
    assert_same_bits(list(DRAW(config(), seed=3).state_dict().values()), list(DRAW(config(), seed=3).parameters()))


def test_another_seed_gives_other_weights():
    assert differs(DRAW(config(), seed=3).to_mu.weight, DRAW(config(), seed=4).to_mu.weight)


def test_building_a_model_leaves_the_generators_of_other_devices_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs' generators are set"))
    random_model()


def test_neither_building_nor_running_a_model_draws_from_the_global_generator():
    before = torch.get_rng_state()
    model = random_model()
    model(*inputs(model, b=1))
    model.sample(1, binary=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_forward_pass_leaves_the_module_as_it_was():
    model = random_model()
    attributes, weights = dict(model.__dict__), {k: v.clone() for k, v in model.state_dict().items()}
    model(*inputs(model, b=2), trace=True)
    assert model.__dict__ == attributes
    assert_same_bits(list(model.state_dict().values()), list(weights.values()))


@every_kind
@every_precision
def test_the_whole_computation_keeps_the_precision_of_the_weights(kind, dtype):
    model = random_model(dtype=dtype, **KINDS[kind])
    eps, x = inputs(model, b=2)
    drawing = model(eps, x, trace=True)
    found = tensors(drawing) + tensors(losses(x, drawing, model.likelihood))
    assert {tensor.dtype for tensor in found} == {dtype}
