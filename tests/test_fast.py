"""Every fast path gives the numbers and the gradients of the plain model, and says so when it cannot be had."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jaxtyping
import pytest
import torch

from draw import cpu, cuda, deferred, fast, kernels
from draw.attention import AttentiveRead, AttentiveWrite, WindowHead
from draw.config import EvalConfig, SpeedConfig, from_dict
from draw.errors import UserError
from draw.evaluation import evaluate
from draw.model import DRAW
from draw.objective import losses
from draw.pieces import own_pieces
from draw.training import Trainer
from draw.types import Gaussian, State
from small import data_set, small_config
from tiny import config, inputs, random_model

needs_compiler = pytest.mark.skipif(kernels.find_compiler() is None, reason="no C++ compiler on this machine")

KINDS = {
    "attention": {},
    "without": {"read_n": None, "write_n": None},
    "reads whole": {"read_n": None},
    "writes whole": {"write_n": None},
    "colour": {"channels": 3, "height": 9, "width": 17, "read_n": 3, "write_n": 4},
    "colour without": {"channels": 3, "read_n": None, "write_n": None},
    "one filter": {"read_n": 1, "write_n": 1},
    "one pixel": {"height": 1, "width": 1},
    "one glimpse": {"steps": 1},
}
PATHS = {
    "kernels": pytest.param(cpu.unroll_for, marks=needs_compiler, id="kernels"),
    "deferred": pytest.param(deferred.unroll_for, id="deferred"),
    "recomputed": pytest.param(lambda model: fast.recomputed(model.unroll), id="recomputed"),
    "recomputed kernels": pytest.param(
        lambda model: fast.recomputed(cpu.unroll_for(model)), marks=needs_compiler, id="recomputed kernels"
    ),
    "recomputed deferred": pytest.param(
        lambda model: fast.recomputed(deferred.unroll_for(model)), id="recomputed deferred"
    ),
}


def float_model(kind="attention", **changes):
    return random_model(dtype=torch.float32, **({"steps": 7} | KINDS[kind] | changes))


def outcome(model, eps, x, unroll):
    """A scalar of everything a drawing holds, the drawing, and the gradients of all parameters."""
    model.zero_grad()
    drawing = model(eps, x, unroll=unroll)
    parts = losses(x, drawing, model.likelihood)
    value = parts.bound.mean() + drawing.latent.z.square().mean() + drawing.latent.q.mu.sin().mean()
    value.backward()
    return value.detach(), drawing, {name: weight.grad.clone() for name, weight in model.named_parameters()}


def agree(given, wanted, tolerance=2e-5):
    """Equal relative to the largest entry: single entries near zero carry the rounding of sums."""
    scale = max(wanted.detach().abs().max().item(), 1e-3)
    torch.testing.assert_close(given, wanted, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS.values())
def test_values_and_gradients_are_those_of_the_plain_model(path, kind):
    model = float_model(kind)
    eps, x = inputs(model, 5)
    value, plain, gradients = outcome(model, eps, x, None)
    fast_value, drawing, fast_gradients = outcome(model, eps, x, path(model))
    agree(fast_value, value)
    agree(drawing.canvas, plain.canvas)
    agree(drawing.kl, plain.kl)
    agree(drawing.latent.z, plain.latent.z)
    agree(torch.stack(drawing.latent.q), torch.stack(plain.latent.q))
    agree(torch.stack(drawing.latent.p), torch.stack(plain.latent.p))
    for name, gradient in gradients.items():
        agree(fast_gradients[name], gradient)


@pytest.mark.parametrize("path", PATHS.values())
def test_every_part_of_the_state_has_its_value_and_its_gradient(path):
    model = float_model()
    eps, x = inputs(model, 4)
    weights = [torch.randn_like(value) for value in model.initial_state(4)]

    def run(unroll):
        first = State(*(value.detach().clone().requires_grad_() for value in model.initial_state(4)))
        last, _ = unroll(first, eps, x)
        total = sum((value * weight).sum() for value, weight in zip(last, weights, strict=True))
        return last, torch.autograd.grad(total, first)

    for given, wanted in zip(run(path(model)), run(model.unroll), strict=True):
        for one, other in zip(given, wanted, strict=True):
            agree(one, other)


@needs_compiler
@pytest.mark.parametrize("kind", ["attention", "colour", "without"])
def test_kernel_gradients_are_those_of_float64(kind):
    model = float_model(kind)
    eps, x = inputs(model, 3)
    _, _, given = outcome(model, eps, x, cpu.unroll_for(model))
    double = random_model(**({"steps": 7} | KINDS[kind]))
    _, _, wanted = outcome(double, eps.double(), x.double(), None)
    for name, gradient in wanted.items():
        agree(given[name].double(), gradient, 1e-4)


@needs_compiler
@pytest.mark.parametrize("raw", [-30.0, 30.0])
@pytest.mark.parametrize("which", range(5))
def test_kernels_agree_where_windows_are_extreme(which, raw):
    model = float_model(steps=2)
    with torch.no_grad():
        for head in (model.read.to_window, model.write.to_window):
            head.weight.zero_()
            head.bias[which] = raw if which != 4 else raw / 10
    eps, x = inputs(model, 3)
    value, plain, gradients = outcome(model, eps, x, None)
    fast_value, drawing, fast_gradients = outcome(model, eps, x, cpu.unroll_for(model))
    assert torch.isfinite(fast_value)
    agree(fast_value, value, 1e-4)
    agree(drawing.canvas, plain.canvas, 1e-4)
    for name, gradient in gradients.items():
        agree(fast_gradients[name], gradient, 1e-4)


@pytest.mark.slow
@pytest.mark.skipif(kernels.find_compiler() is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_the_compiled_step_agrees():
    """What a GPU runs, but for the device. In a process of its own: types are not checked within a compiled step."""
    script = Path(__file__).with_name("compiled_step.py")
    done = subprocess.run([sys.executable, script, "cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", PATHS.values())
def test_the_weights_are_read_anew_at_each_call(path):
    model = float_model()
    eps, x = inputs(model, 4)
    unroll = path(model)
    outcome(model, eps, x, unroll)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.1
    value, _, gradients = outcome(model, eps, x, None)
    fast_value, _, fast_gradients = outcome(model, eps, x, unroll)
    agree(fast_value, value)
    agree(fast_gradients["to_mu.weight"], gradients["to_mu.weight"])


@pytest.mark.parametrize("path", PATHS.values())
def test_without_gradients_the_values_are_the_same(path):
    model = float_model()
    eps, x = inputs(model, 4)
    with torch.no_grad():
        given, wanted = model(eps, x, unroll=path(model)), model(eps, x)
    agree(given.canvas, wanted.canvas)
    agree(given.latent.z, wanted.latent.z)


@pytest.mark.parametrize("path", PATHS.values())
def test_generation_is_the_plain_models(path):
    model = float_model()
    eps, _ = inputs(model, 4)
    with torch.no_grad():
        agree(model(eps, unroll=path(model)).canvas, model(eps).canvas, 0)


@needs_compiler
def test_gradients_by_images_are_not_lost():
    model = float_model()
    eps, x = inputs(model, 4)
    given, wanted = (x.clone().requires_grad_() for _ in range(2))
    losses(given, model(eps, given, unroll=cpu.unroll_for(model)), model.likelihood).bound.sum().backward()
    losses(wanted, model(eps, wanted), model.likelihood).bound.sum().backward()
    agree(given.grad, wanted.grad, 0)


@needs_compiler
@pytest.mark.parametrize("wrong", ["height", "images", "latents", "double"])
def test_the_kernels_never_read_what_is_not_there(wrong):
    """They trust pointers: anything of another shape or type goes to the plain model, which says what is wrong."""
    model = float_model()
    eps, x = inputs(model, 4)
    unroll = cpu.unroll_for(model)
    eps, x = {
        "height": (eps, x[:, :, 1:]),
        "images": (eps, x[1:]),
        "latents": (eps[..., 1:], x),
        "double": (eps.double(), x.double()),
    }[wrong]
    with pytest.raises((RuntimeError, TypeError, jaxtyping.TypeCheckError)):
        unroll(model.initial_state(4), eps, x)


@needs_compiler
def test_a_model_that_was_moved_is_left_to_the_plain_path():
    model = float_model()
    unroll = cpu.unroll_for(model)
    model.to("meta")  # whose tensors have no memory
    eps, x = (value.to("meta") for value in inputs(model, 4))
    assert unroll(model.initial_state(4), eps, x)[0].canvas.is_meta


@needs_compiler
def test_a_second_backward_pass_is_refused():
    model = float_model()
    eps, x = inputs(model, 2)
    value = model(eps, x, unroll=cpu.unroll_for(model)).canvas.sum()
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        value.backward()


@pytest.mark.parametrize("path", ["kernels", "deferred"])
def test_bfloat16_rounds_products_and_no_more(path):
    if path == "kernels" and kernels.find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    model = float_model()
    eps, x = inputs(model, 5)
    value, _, gradients = outcome(model, eps, x, None)
    unroll = {"kernels": cpu, "deferred": deferred}[path].unroll_for(model, torch.bfloat16)
    rounded, drawing, fast_gradients = outcome(model, eps, x, unroll)
    assert rounded != value
    agree(rounded, value, 5e-3)
    assert drawing.canvas.dtype == torch.float32
    for name, gradient in gradients.items():
        assert fast_gradients[name].dtype == torch.float32
        agree(fast_gradients[name], gradient, 0.1)


# Which path is chosen


@needs_compiler
def test_the_kernels_are_chosen_for_the_papers_model_on_the_cpu():
    assert cpu.supports(float_model())
    chosen = fast.unroll_for(float_model(), SpeedConfig())
    assert chosen.__qualname__.startswith("unroll_for")


def test_compile_off_is_the_plain_model():
    model = float_model()
    assert fast.unroll_for(model, SpeedConfig(compile="off")) == model.unroll


@pytest.mark.parametrize("change", ["cell", "float64", "subclass"])
def test_what_the_kernels_do_not_know_takes_the_plain_path(change):
    class Mine(DRAW):
        pass

    class Cell(torch.nn.Module):
        def __init__(self, _, size):
            super().__init__()
            self.size = size

        def forward(self, input, h, s):
            return input[:, : self.size] + h, s

    model = {
        "cell": lambda: DRAW(config(), cell=Cell),
        "float64": lambda: DRAW(config()).double(),
        "subclass": lambda: Mine(config()),
    }[change]()
    assert fast.unroll_for(model, SpeedConfig()) == model.unroll
    with pytest.raises(UserError, match="no fast path for a model with pieces"):
        fast.unroll_for(model, SpeedConfig(compile="on"))


CHANGES = {
    "a subclass of a layer": lambda model: setattr(model.read, "to_window", Clamped(7, 2, 6, 5, sigma=0.25, gamma=1)),
    "other layers": lambda model: setattr(model, "to_mu", torch.nn.Sequential(model.to_mu, torch.nn.Identity())),
    "a hook": lambda model: model.write.register_forward_hook(lambda *_: None),
    "a method of the instance": lambda model: setattr(model.encoder, "forward", model.encoder.forward),
    "a parametrization": lambda model: torch.nn.utils.parametrizations.weight_norm(model.to_mu),
    "a window of another size": lambda model: setattr(model, "read", AttentiveRead(3, 6, 1, 6, 5)),
}


class Clamped(WindowHead):
    pass


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_piece_of_a_piece_takes_the_plain_path(change):
    model = DRAW(config())
    assert own_pieces(model) == {}
    change(model)
    assert len(own_pieces(model)) >= 1
    assert fast.unroll_for(model, SpeedConfig()) == model.unroll
    with pytest.raises(UserError, match="no fast path for a model with pieces"):
        fast.unroll_for(model, SpeedConfig(compile="on"))


class Computed(torch.nn.Module):
    """A prior by layers that the gradients' one product does not fit: a weight that is computed, none, three axes."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.zeros(4))
        self.no_bias, self.wide = torch.nn.Linear(6, 4, bias=False), torch.nn.Linear(6, 4)

    def forward(self, h_dec):
        weight = 2 * self.weight
        mean = torch.nn.functional.linear(h_dec, weight, self.bias) + torch.nn.functional.linear(h_dec, weight)
        mean = mean + self.no_bias(h_dec) + self.wide(h_dec[:, None].expand(-1, 3, -1)).sum(1)
        return Gaussian(mean, torch.zeros_like(mean))


def test_layers_of_any_kind_keep_their_gradients_where_those_of_others_are_deferred():
    torch.manual_seed(0)
    model = DRAW(config(steps=5), prior=Computed())
    eps, x = inputs(model, 3)
    unroll = deferred.unroll_for(model)
    for _ in range(2):  # with the weights of the second time
        value, _, grads = outcome(model, eps, x, unroll)
        wanted, _, wanted_grads = outcome(model, eps, x, model.unroll)
        agree(value, wanted)
        for name, grad in grads.items():
            agree(grad, wanted_grads[name])
        model.load_state_dict({k: v + 0.01 for k, v in model.state_dict().items()}, assign=True)


class Dropped(AttentiveWrite):
    def forward(self, h_dec):
        return super().forward(torch.nn.functional.dropout(h_dec, 0.5))


def test_recomputed_glimpses_of_a_piece_that_draws_at_random_draw_the_same():
    model = DRAW(config(steps=7), write=Dropped(3, 6, 1, 6, 5))
    eps, x = inputs(model, 4)
    results = []
    for glimpses in (False, True):
        torch.manual_seed(3)
        results.append(outcome(model, eps, x, fast.unroll_for(model, SpeedConfig(checkpoint_glimpses=glimpses))))
    agree(results[1][0], results[0][0])
    for name, grad in results[1][2].items():
        agree(grad, results[0][2][name])


def test_threads_asked_for_in_python_are_set(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    evaluate(DRAW(small_config().model), data_set(), EvalConfig(images=2), speed=SpeedConfig(threads=3))
    evaluate(DRAW(small_config().model), data_set(), EvalConfig(images=2))
    assert chosen == [3]


def test_without_a_compiler_one_line_is_said_and_the_plain_path_taken(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "find_compiler", lambda: None)
    kernels.load.cache_clear()
    model = float_model()
    with caplog.at_level(logging.WARNING, "draw"):
        assert fast.unroll_for(model, SpeedConfig()) == model.unroll
    assert len(caplog.messages) == 1
    assert "no C++ compiler" in caplog.messages[0]
    with pytest.raises(UserError, match=r"no C\+\+ compiler"):
        fast.unroll_for(model, SpeedConfig(compile="on"))


@needs_compiler
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing_behind(monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no space left for genius' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels.load.cache_clear()
    with pytest.raises(UserError, match="cannot compile the kernels: no space left for genius"):
        kernels.load(kernels.Sizes(1, 3, 3, 2, 2, 7, 6, 4))
    assert not list((tmp_path / "cache").rglob("*.so"))


@needs_compiler
def test_kernels_are_compiled_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    sizes = kernels.Sizes(1, 3, 4, 2, 0, 7, 6, 4)
    kernels.load.cache_clear()
    kernels.load(sizes)
    assert len(list(tmp_path.rglob("*.so"))) == 1
    kernels.load.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **settings: pytest.fail("compiled again"))
    kernels.load(sizes)


@needs_compiler
def test_an_unwritable_cache_is_said(monkeypatch, tmp_path):
    (tmp_path / "draw").write_text("in the way")
    monkeypatch.setattr(kernels, "cache_folder", lambda: tmp_path / "draw")
    kernels.load.cache_clear()
    with pytest.raises(UserError, match="no place to keep the compiled kernels"):
        kernels.load(kernels.Sizes(1, 3, 3, 2, 2, 7, 6, 4))


def test_a_run_too_short_to_repay_compiling_does_not_compile(monkeypatch):
    model = float_model()
    compiled = deferred.unroll_for(model)
    monkeypatch.setattr(cpu, "unroll_for", lambda *_: compiled)
    assert fast.unroll_for(model, SpeedConfig(), images=10) == model.unroll
    assert fast.unroll_for(model, SpeedConfig(), images=10**9) is compiled
    assert fast.unroll_for(model, SpeedConfig()) is compiled
    assert fast.unroll_for(model, SpeedConfig(compile="on"), images=10) is compiled


def test_tf32_needs_cuda():
    with pytest.raises(UserError, match="tf32 needs a CUDA device"):
        fast.unroll_for(float_model(), SpeedConfig(precision="tf32"))


@pytest.mark.parametrize(
    "speed", [{"compile": "maybe"}, {"precision": "float8"}, {"threads": -1}, {"checkpoint_glimpses": 1}]
)
def test_a_wrong_choice_is_named(speed):
    with pytest.raises(UserError, match=next(iter(speed))):
        from_dict(SpeedConfig, speed)


def test_threads_can_be_set(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    fast.set_threads(0)
    assert chosen == []
    fast.set_threads(5)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    fast.set_threads(0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    fast.set_threads(0)
    assert chosen == [5, fast.MOST_THREADS, 2]


# Whole steps


@needs_compiler
@pytest.mark.parametrize("speed", [{"compile": "on"}, {"compile": "off", "checkpoint_glimpses": True}])
def test_training_is_the_same_by_every_path(speed):
    plain = Trainer(small_config(), data_set(), speed=SpeedConfig(compile="off"))
    other = Trainer(small_config(), data_set(), speed=SpeedConfig(**speed))
    for _ in range(5):
        plain.train_step(0.0)
        other.train_step(0.0)
    for name, weight in plain.state().items():
        torch.testing.assert_close(other.state()[name], weight, rtol=1e-3, atol=2e-5)


@needs_compiler
def test_measuring_is_the_same_by_every_path():
    trainer = Trainer(small_config(), data_set())
    settings = EvalConfig(samples=3, importance_samples=4)
    wanted = evaluate(trainer.model, data_set(), settings, speed=SpeedConfig(compile="off"))
    given = evaluate(trainer.model, data_set(), settings, speed=SpeedConfig(compile="on"))
    assert given.bound_nats == pytest.approx(wanted.bound_nats, rel=1e-6)
    assert given.iw_nats == pytest.approx(wanted.iw_nats, rel=1e-6)
    assert given.kl_per_glimpse_nats == pytest.approx(wanted.kl_per_glimpse_nats, rel=1e-4)


@pytest.mark.parametrize("compiler", [True, False])
def test_a_cuda_device_takes_the_kernels_where_they_can_be_compiled(monkeypatch, caplog, compiler):
    model = Mock(spec=DRAW, canvas0=SimpleNamespace(device=torch.device("cuda")))
    at_once, glimpse_by_glimpse = Mock(spec=DRAW.unroll), Mock(spec=DRAW.unroll)
    failure = None if compiler else UserError("no CUDA compiler")
    monkeypatch.setattr(cuda, "supports", lambda model: True)
    monkeypatch.setattr(cuda, "unroll_for", Mock(return_value=at_once, side_effect=failure))
    monkeypatch.setattr(deferred, "unroll_for", Mock(return_value=glimpse_by_glimpse))
    monkeypatch.setattr(fast, "_has_triton", lambda: True)
    chosen = fast.unroll_for(model, SpeedConfig(precision="bfloat16"))
    assert chosen is (at_once if compiler else glimpse_by_glimpse)
    assert ("no CUDA compiler" in caplog.text) is not compiler
    assert fast.unroll_for(model, SpeedConfig()) is glimpse_by_glimpse  # the kernels are of bfloat16


class ByGlimpse(torch.nn.Module):
    """A prior with one layer for the first glimpse, when the decoder has said nothing yet, and another for the rest."""

    def __init__(self):
        super().__init__()
        self.first, self.later = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)

    def forward(self, h_dec):
        mu = self.later(h_dec) if h_dec.detach().any() else self.first(h_dec)
        return Gaussian(mu, torch.zeros_like(mu))


def test_a_piece_that_chooses_its_layer_is_refused_where_products_are_deferred():
    model = DRAW(config(), prior=ByGlimpse())
    eps, x = inputs(model, 3)
    with pytest.raises(UserError, match="other layers in one glimpse than in another"):
        model(eps, x, unroll=deferred.unroll_for(model))
