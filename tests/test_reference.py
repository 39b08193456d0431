"""The product equals the paper: `draw` in float64 against the loops of `reference.py`, outputs and every trace."""

import functools

import pytest
import torch
from numpy.testing import assert_allclose

import reference
from draw.objective import log_weight, losses
from tiny import inputs, random_model

# Two derivations in float64 whose sums have at most 100 terms; a wrong equation differs in the second digit.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

CASES = {
    "attention": {},
    "attentive read only": {"write_n": None},
    "attentive write only": {"read_n": None},
    "no attention": {"read_n": None, "write_n": None},
    "taller than wide": {"height": 7, "width": 4},
    "wider than tall": {"height": 4, "width": 7},
    "colour": {"channels": 3, "height": 4, "width": 5},
    "colour without attention": {"channels": 3, "height": 3, "width": 4, "read_n": None, "write_n": None},
    "one filter": {"read_n": 1, "write_n": 1},  # trap: N = 1
    "one filter reads, four write": {"read_n": 1, "write_n": 4},  # trap: N = 1
    "even grids": {"read_n": 4, "write_n": 2},
    "odd grids": {"read_n": 3, "write_n": 5},
    "one pixel": {"height": 1, "width": 1},
    "one glimpse": {"steps": 1},
}
WINDOW = ["g_X", "g_Y", "delta", "sigma2", "gamma"]
every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def drawn(case, generate):
    """The same drawing made by the product and by the reference, with what the objective says of the former."""
    model = random_model(**CASES[case])
    eps, x = inputs(model, b=2)
    c = model.config
    with torch.no_grad():
        drawing = model(eps, None if generate else x, trace=True)
        said = None if generate else (losses(x, drawing, model.likelihood), log_weight(x, drawing, model.likelihood))
    params = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    paper = reference.run(params, eps.numpy(), None if generate else x.numpy(), c.read_n, c.write_n)
    return drawing, said, paper


def assert_same_window(ours, theirs):
    if theirs is None:
        assert ours is None
    else:
        for name in WINDOW:
            assert_allclose(getattr(ours, name).numpy(), theirs[name], **CLOSE, err_msg=name)


@every_case
@pytest.mark.parametrize("generate", [False, True], ids=["inference", "generation"])
def test_the_canvas_of_every_glimpse_is_that_of_the_paper(case, generate):
    drawing, _, paper = drawn(case, generate)
    assert_allclose(drawing.trace.canvas.numpy(), paper["canvas"], **CLOSE)


@every_case
@pytest.mark.parametrize("generate", [False, True], ids=["inference", "generation"])
def test_the_final_canvas_is_that_of_the_paper(case, generate):
    drawing, _, paper = drawn(case, generate)
    assert_allclose(drawing.canvas.numpy(), paper["canvas"][-1], **CLOSE)


@every_case
@pytest.mark.parametrize("generate", [False, True], ids=["inference", "generation"])
def test_the_latents_are_those_of_the_paper(case, generate):
    drawing, _, paper = drawn(case, generate)
    assert_allclose(drawing.latent.z.numpy(), paper["z"], **CLOSE)


@every_case
@pytest.mark.parametrize("generate", [False, True], ids=["inference", "generation"])
def test_the_write_windows_are_those_of_the_paper(case, generate):
    drawing, _, paper = drawn(case, generate)
    assert_same_window(drawing.trace.write_window, paper["write_window"])


@every_case
def test_the_read_windows_are_those_of_the_paper(case):
    drawing, _, paper = drawn(case, False)
    assert_same_window(drawing.trace.read_window, paper["read_window"])


@every_case
def test_the_error_images_are_those_of_the_paper(case):
    drawing, _, paper = drawn(case, False)
    assert_allclose(drawing.trace.x_hat.numpy(), paper["x_hat"], **CLOSE)


@every_case
@pytest.mark.parametrize("name", ["mu", "log_sigma"])
def test_the_posterior_of_every_glimpse_is_that_of_the_paper(case, name):
    drawing, _, paper = drawn(case, False)
    assert_allclose(getattr(drawing.latent.q, name).numpy(), paper[name], **CLOSE)


@every_case
def test_the_divergence_of_every_glimpse_is_that_of_the_paper(case):
    # trap: KL constant off by up to 900 nats
    drawing, _, paper = drawn(case, False)
    assert_allclose(drawing.kl.numpy(), paper["kl"], **CLOSE)


@every_case
@pytest.mark.parametrize("name", ["loss_x", "loss_z"])
def test_the_losses_are_those_of_the_paper(case, name):
    _, (parts, _), paper = drawn(case, False)
    assert_allclose(getattr(parts, name).numpy(), paper[name], **CLOSE)


@every_case
def test_the_bound_is_the_sum_of_the_losses_of_the_paper(case):
    _, (parts, _), paper = drawn(case, False)
    assert_allclose(parts.bound.numpy(), paper["loss_x"] + paper["loss_z"], **CLOSE)


@every_case
def test_the_log_weight_is_the_joint_over_the_posterior_in_logarithms(case):
    _, (_, weight), paper = drawn(case, False)
    assert_allclose(weight.numpy(), paper["log_weight"], **CLOSE)


@every_case
def test_the_trace_holds_the_latents_of_the_drawing(case):
    drawing, _, _ = drawn(case, False)
    for ours, theirs in zip(drawing.trace.latent.q, drawing.latent.q, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(drawing.trace.latent.z, drawing.latent.z)


@every_case
def test_generation_has_no_posterior_no_error_image_and_no_read_window(case):
    # trap: "samples" that are reconstructions
    drawing, _, _ = drawn(case, True)
    assert drawing.kl is None
    assert drawing.latent.q is None
    assert drawing.trace.x_hat is None
    assert drawing.trace.read_window is None


@pytest.mark.parametrize("case", ["attention", "colour", "no attention"])
def test_single_precision_stays_near_the_paper(case):
    model = random_model(**CASES[case], dtype=torch.float32)
    eps, x = inputs(model, b=2)
    params = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    paper = reference.run(params, eps.double().numpy(), x.double().numpy(), model.config.read_n, model.config.write_n)
    # Three glimpses of float32 arithmetic at logits of size 10: a few hundred roundings of 6e-8.
    assert_allclose(model(eps, x).canvas.detach().numpy(), paper["canvas"][-1], rtol=1e-4, atol=1e-4)
