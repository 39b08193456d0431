"""Kernels that make all glimpses in one pass: how tests get them, and what they compare."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from draw import cpu, cuda, kernels
from draw.config import ModelConfig, fields_of
from draw.objective import losses

HERE = Path(__file__).parent
SMALL = {"enc_size": 128, "dec_size": 128, "height": 7, "width": 6, "steps": 3, "z_size": 5, "read_n": 3, "write_n": 4}
SIZES = {
    "small": SMALL,
    "mnist": {f.name: f.default for f in fields_of(ModelConfig)} | {"steps": 4},
    "wide": SMALL | {"height": 9, "width": 32, "steps": 2, "z_size": 17, "read_n": 1, "write_n": 1},
}


def emulated_cuda(model, folder):
    """The CUDA kernels, to be run on the CPU."""
    flags = ("-Wall", "-Wno-unknown-pragmas", "-Werror", "-I", HERE, "-x", "c++")
    return _compiled(kernels.CUDA_SOURCE, [*flags, *kernels.macros(cuda.sizes_of(model))], folder)


def on_cpu(model, precision=torch.bfloat16, *flags):
    """The unroll by the CPU's kernels compiled with these flags, and what makes its products."""
    if precision == torch.bfloat16:
        flags = ("-DBFLOAT16", *flags)
    library = kernels.load(cpu.sizes_of(model), flags)
    library.draw_products.restype = ctypes.c_char_p
    if not library.draw_allowed():
        pytest.skip("this system keeps the processor's matrix unit to itself")
    return cpu.unroll_for(model, precision, library), library.draw_products().decode()


def _compiled(source, flags, folder):
    made = folder / "glimpses.so"
    subprocess.run(["g++", "-std=c++17", "-O2", "-shared", "-fPIC", *flags, source, "-o", made], check=True)
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
