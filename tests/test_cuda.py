"""The CUDA kernels of all glimpses, run on the CPU thread by thread (cuda_on_cpu.h): what is theirs alone.

What they share with the CPU's is in test_passes.py.
"""

import platform
import shutil

import pytest
import torch

from draw import cuda, kernels
from draw.attention import AttentiveRead
from draw.config import ModelConfig
from draw.errors import UserError
from draw.model import DRAW
from passes import SIZES, emulated_cuda, outcome
from tiny import inputs, random_model

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("g++"), reason="threads are switched by x86-64 code of g++"
)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_threads_may_run_in_any_order(tmp_path, sizes):
    model = random_model(seed=1, dtype=torch.float32, spread=0.05, **sizes)
    library = emulated_cuda(model, tmp_path)
    eps, x = inputs(model, 16)
    outcomes = []
    for seed in range(3):
        library.set_emulation_seed(seed)
        outcomes.append(outcome(model, eps, x, cuda.unroll_for(model, library)))
    for name, value in outcomes[0].items():
        assert all(torch.equal(other[name], value) for other in outcomes), name


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
