"""Every choice of a fast path: which way to compute the glimpses, with how many threads, at what precision.

The plain model never knows. Each way has the interface `Unroll` and gives the numbers of `DRAW.unroll`, which the tests
hold it to; without this file training and measuring would only be slower.
"""

import math
import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from draw.config import SpeedConfig
from draw.model import DRAW
from draw.types import Gaussian, Latent, State, Unroll

MOST_THREADS = 8  # more only wait for each other at the sizes of this model


def unroll_for(model: DRAW, speed: SpeedConfig) -> Unroll:
    """The fastest way to unroll a model where its weights are."""
    unroll: Unroll = model.unroll
    return recomputed(unroll) if speed.checkpoint_glimpses else unroll


def recomputed(unroll: Unroll) -> Unroll:
    """The same glimpses in about sqrt(T) segments, of which only the first state is kept for the backward pass.

    Memory for activations grows with sqrt(T) instead of T; every glimpse but the last segment's is computed twice.
    """

    def segment(eps: Tensor, x: Tensor | None, *state: Tensor) -> tuple[State, Latent]:
        return unroll(State(*state), eps, x)

    def in_segments(state: State, eps: Tensor, x: Tensor | None = None) -> tuple[State, Latent]:
        latents = []
        for part in eps.split(math.isqrt(len(eps) - 1) + 1):
            state, latent = checkpoint(segment, part, x, *state, use_reentrant=False)
            latents.append(latent)
        return state, _joined(latents)

    return in_segments


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
