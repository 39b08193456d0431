"""The CUDA kernels of all glimpses, run on the CPU thread by thread (cuda_on_cpu.h): the numbers of the plain model."""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from draw import cuda, kernels
from draw.attention import AttentiveRead
from draw.config import ModelConfig, fields_of
from draw.errors import UserError
from draw.model import DRAW
from draw.noise import seeded
from draw.objective import losses
from draw.types import State
from tiny import inputs, random_model

HERE = Path(__file__).parent
SMALL = {"enc_size": 128, "dec_size": 128}
SIZES = [
    SMALL | {"height": 7, "width": 6, "steps": 3, "z_size": 5, "read_n": 3, "write_n": 4},
    {f.name: f.default for f in fields_of(ModelConfig)} | {"steps": 4},
    SMALL | {"height": 9, "width": 32, "steps": 2, "z_size": 17, "read_n": 1, "write_n": 1},
]
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("g++"), reason="threads are switched by x86-64 code of g++"
)


@pytest.fixture(scope="module", params=SIZES, ids=lambda sizes: f"{sizes['height']}x{sizes['width']}")
def model(request):
    return random_model(seed=1, dtype=torch.float32, spread=0.05, **request.param)


@pytest.fixture(scope="module")
def library(model, tmp_path_factory):
    made = tmp_path_factory.mktemp("cuda") / "glimpses.so"
    command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Werror"]
    command += kernels.macros(cuda.sizes_of(model))
    subprocess.run([*command, "-I", HERE, "-x", "c++", kernels.CUDA_SOURCE, "-o", made], check=True)
    return ctypes.CDLL(str(made))


def outcome(model, eps, x, unroll):
    """The bounds, all that an unroll gives, and every gradient of their mean."""
    model.zero_grad()
    drawing = model(eps, x, unroll=unroll)
    bound = losses(x, drawing, model.likelihood).bound
    bound.mean().backward()
    values = {"bound": bound, "canvas": drawing.canvas, "mu": drawing.latent.q.mu, "z": drawing.latent.z}
    values["log_sigma"] = drawing.latent.q.log_sigma
    return {k: v.detach() for k, v in values.items()} | {k: v.grad.clone() for k, v in model.named_parameters()}


def require_close(given, wanted, tolerance):
    for name, value in wanted.items():
        error = (given[name] - value).norm() / value.norm().clamp(min=1e-6)
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("b", [16, 19])
def test_values_and_gradients_are_those_of_the_plain_model(model, library, b):
    eps, x = inputs(model, b)
    library.set_emulation_seed(b)
    given = outcome(model, eps, x, cuda.unroll_for(model, library))
    require_close(given, outcome(model, eps, x, None), 2e-2)  # factors have 8 bits


def test_threads_may_run_in_any_order(model, library):
    eps, x = inputs(model, 16)
    outcomes = []
    for seed in range(3):
        library.set_emulation_seed(seed)
        outcomes.append(outcome(model, eps, x, cuda.unroll_for(model, library)))
    for name, value in outcomes[0].items():
        assert all(torch.equal(other[name], value) for other in outcomes), name


def test_measuring_keeps_two_glimpses_and_gives_the_same(model, library):
    eps, x = inputs(model, 5)
    unroll = cuda.unroll_for(model, library)
    kept = losses(x, model(eps, x, unroll=unroll), model.likelihood).bound
    with torch.no_grad():
        assert torch.equal(losses(x, model(eps, x, unroll=unroll), model.likelihood).bound, kept)


def test_every_state_passes_its_gradient_on(model, library):
    eps, x = inputs(model, 16)

    def gradients(unroll):
        state = State(*(v.detach().clone().requires_grad_() for v in model.initial_state(len(x))))
        after, _ = unroll(state, eps, x)
        weights = seeded("weights")
        sum((v * torch.randn(v.shape, generator=weights)).sum() for v in after).backward()
        return {name: value.grad for name, value in zip(State._fields, state, strict=True)}

    require_close(gradients(cuda.unroll_for(model, library)), gradients(model.unroll), 2e-2)


def test_generation_is_the_plain_models(model, library):
    eps, _ = inputs(model, 3)
    assert torch.equal(model(eps, unroll=cuda.unroll_for(model, library)).canvas, model(eps).canvas)


def test_what_the_kernels_cannot_read_goes_the_plain_way(model, library):
    eps, x = inputs(model, 4)
    unroll = cuda.unroll_for(model, library)
    for given in ((eps.requires_grad_(), x), (eps.detach(), x.clone().requires_grad_())):
        results = []
        for way in (unroll, model.unroll):
            drawing = model(*given, unroll=way)
            results.append(torch.autograd.grad(drawing.canvas.sum(), [v for v in given if v.requires_grad])[0])
        assert torch.equal(*results)
    eps = eps.detach()
    assert model(eps[:, :0], x[:0], unroll=unroll).canvas.shape == (0, *model.config.image_shape)


def test_the_kernels_have_the_sizes_of_the_pieces():
    config = ModelConfig(steps=1, read_n=3)
    model = DRAW(config, read=AttentiveRead(2, config.dec_size, *config.image_shape))
    assert cuda.sizes_of(model).read_n == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"read_n": None},
        {"write_n": None},
        {"channels": 3},
        {"enc_size": 128},
        {"enc_size": 400, "dec_size": 400},
        {"z_size": 128},
        {"width": 33},
        {"read_n": 5},
        {"write_n": 9},
    ],
)
def test_what_the_kernels_do_not_know_is_said(changes):
    assert cuda.supports(DRAW(ModelConfig(steps=1)))
    assert not cuda.supports(DRAW(ModelConfig(**({"steps": 1} | changes))))


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (b"\x7fELF", "cannot be compiled"),
        (b"#!/bin/sh\necho warning: old >&2; echo ptxas fatal : no such target >&2; exit 1", "ptxas fatal"),
        (b"#!/bin/sh\nexit 3", "exit code 3"),
    ],
)
def test_a_compiler_that_fails_is_one_line(monkeypatch, tmp_path, script, line):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_bytes(script)
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    kernels.load_cuda.cache_clear()
    with pytest.raises(UserError, match=line):
        kernels.load_cuda(kernels.CudaSizes(28, 28, 2, 5, 256, 100), (9, 0))


def test_without_a_compiler_there_is_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    kernels.load_cuda.cache_clear()
    with pytest.raises(UserError, match="no CUDA compiler"):
        kernels.load_cuda(kernels.CudaSizes(28, 28, 2, 5, 256, 100), (9, 0))
