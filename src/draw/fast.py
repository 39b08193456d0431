"""Every choice of a fast path: which way to compute the glimpses, with how many threads, at what precision.

The plain model never knows. Each way has the interface `Unroll` and gives the numbers of `DRAW.unroll`, which the tests
hold it to; without this file training and measuring would only be slower.
"""

import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from draw import cpu, cuda, deferred
from draw.config import SpeedConfig
from draw.errors import UserError
from draw.model import DRAW
from draw.pieces import own_pieces
from draw.types import Gaussian, Latent, State, Unroll

MOST_THREADS = 8  # more only wait for each other at the sizes of this model
COMPILE_SECONDS = 2.0  # what compiling the kernels takes, about
PLAIN_RATE = 5e10  # operations a second of a forward pass on the plain path, about
P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger("draw")


def unroll_for(model: DRAW, speed: SpeedConfig, images: int | None = None) -> Unroll:
    """The fastest way to unroll a model where its weights are.

    Args:
        model: Its weights are read at each call.
        speed: What the user asked for.
        images: How many will go through it, each glimpse by glimpse, if that is known: few do not repay compiling.

    Raises:
        UserError: If what was asked for cannot be had here.
    """
    if speed.threads:
        set_threads(speed.threads)
    unroll = _unroll_for(model, speed, images)
    if speed.precision == "tf32":
        unroll = _in_tf32(unroll)
    if not speed.checkpoint_glimpses:
        return unroll
    # Pieces of one's own may draw at random, as dropout does; a CUDA graph cannot put the generator back.
    redraw = bool(own_pieces(model)) and (model.canvas0.device.type != "cuda" or speed.compile == "off")
    return recomputed(unroll, redraw=redraw)


def _unroll_for(model: DRAW, speed: SpeedConfig, images: int | None) -> Unroll:
    kind = model.canvas0.device.type
    precision = torch.bfloat16 if speed.precision == "bfloat16" else torch.float32
    if speed.precision == "tf32" and kind != "cuda":
        raise UserError(f"precision tf32 needs a CUDA device, not {kind}; there is also bfloat16")
    if speed.compile == "off":
        return model.unroll if precision == torch.float32 else deferred.unroll_for(model, precision)
    if kind == "cuda":
        if precision == torch.bfloat16 and cuda.supports(model):
            try:
                return cuda.unroll_for(model)
            except UserError as error:
                if speed.compile == "on":
                    raise
                log.warning("draw: without the kernels for all glimpses at once, which are faster: %s", error)
        return deferred.unroll_for(model, precision, compiled=_has_triton())
    if kind == "cpu" and cpu.supports(model):
        if speed.compile == "on" or _repays_compiling(model, images):
            try:
                return cpu.unroll_for(model, precision)
            except UserError as error:
                if speed.compile == "on":
                    raise
                log.warning("draw: on the plain path, which takes about twice the time: %s", error)
    elif speed.compile == "on":
        what = "this device" if kind != "cpu" else "a model with pieces other than the paper's"
        raise UserError(f"compile on: there is no fast path for {what}; leave it at auto")
    return model.unroll if precision == torch.float32 else deferred.unroll_for(model, precision)


def _in_tf32(function: Callable[P, R]) -> Callable[P, R]:
    """The same with all matrix products in TF32, the filters' with patches included."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        matmul = torch.backends.cuda.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            return function(*args, **kwargs)
        finally:
            matmul.fp32_precision = before

    return run


def _has_triton() -> bool:
    """Whether torch.compile can make kernels for this CUDA device."""
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability() >= (7, 0)


def _repays_compiling(model: DRAW, images: int | None) -> bool:
    # A function of the work alone, whether or not compiled kernels are at hand: the same run takes the same path.
    if images is None:
        return True
    weights = sum(weight.numel() for weight in model.parameters())
    plain_seconds = 2 * weights * model.config.steps * images / PLAIN_RATE
    return plain_seconds > 2 * COMPILE_SECONDS  # of which about half are saved


def recomputed(unroll: Unroll, *, redraw: bool = False) -> Unroll:
    """The same glimpses in about sqrt(T) segments, of which only the first state is kept for the backward pass.

    Memory for activations grows with sqrt(T) instead of T; every glimpse but the last segment's is computed twice.

    Args:
        unroll: The glimpses.
        redraw: Put torch's generators back for the second time, for pieces that draw from them.
    """

    def segment(eps: Tensor, x: Tensor | None, *state: Tensor) -> tuple[State, Latent]:
        return unroll(State(*state), eps, x)

    def in_segments(state: State, eps: Tensor, x: Tensor | None = None) -> tuple[State, Latent]:
        latents = []
        for part in eps.split(math.isqrt(len(eps) - 1) + 1):
            state, latent = checkpoint(segment, part, x, *state, use_reentrant=False, preserve_rng_state=redraw)
            latents.append(latent)
        return state, _joined(latents)

    return in_segments


def update_for(
    update: Callable[..., None], device: torch.device, speed: SpeedConfig, *, alone: bool = True
) -> Callable[..., None]:
    """The fastest way to run a training step's update, a function of tensors, on a device.

    One that talks to other processes is not captured: NCCL inside a CUDA graph needs its error handling switched off,
    and that is what ends the others when a process is lost. Hence `alone`.
    """
    if speed.precision == "tf32":  # the backward pass too
        update = _in_tf32(update)
    return _each_shape(update) if device.type == "cuda" and speed.compile != "off" and alone else update


def _each_shape(update: Callable[..., None]) -> Callable[..., None]:
    """A graph for every number of glimpses: a run may begin with few of them."""
    runs: dict[tuple[torch.Size, ...], Callable[..., None]] = {}

    def run(*inputs: Tensor) -> None:
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in runs:
            runs.clear()  # fewer glimpses than now do not come again, and a graph keeps its memory
            runs[shapes] = captured(update)
        runs[shapes](*inputs)

    return run


def captured(update: Callable[..., None], warmup: int = 3) -> Callable[..., None]:
    """The same function of tensors as one CUDA graph, which costs the host a single launch.

    The first calls run as they are, on the side stream that capturing needs; then the work is recorded once, and
    replayed with each call's arguments copied over the recorded ones. Every call is one update, whichever way it ran.
    """
    calls = 0
    graph: torch.cuda.CUDAGraph | None = None
    recorded: tuple[Tensor, ...] = ()

    def run(*inputs: Tensor) -> None:
        nonlocal calls, graph, recorded
        calls += 1
        if calls <= warmup:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                update(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            return
        if graph is None:
            recorded = tuple(tensor.clone() for tensor in inputs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                update(*recorded)
        for kept, tensor in zip(recorded, inputs, strict=True):
            kept.copy_(tensor)
        graph.replay()

    return run


def _joined(latents: list[Latent]) -> Latent:
    """Parts of a row of glimpses as one, along the axis t."""

    def join(parts: Iterable[Gaussian]) -> Gaussian:
        return Gaussian(*(torch.cat(field) for field in zip(*parts, strict=True)))

    z, q, p = zip(*latents, strict=True)
    return Latent(torch.cat(z), None if q[0] is None else join(q), join(p))


def set_threads(threads: int) -> None:
    """Use so many CPU threads; 0 leaves OMP_NUM_THREADS its say, else takes the cores this process may use, up to 8."""
    if threads == 0 and "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or min(cores, MOST_THREADS))
