"""Measuring: the variational bound and the importance-weighted estimate of -log p(x), over whole splits."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from draw import fast
from draw.config import EvalConfig, ModelConfig, SpeedConfig
from draw.data import DataSet, intensities
from draw.distributions import Bernoulli, kl_per_latent
from draw.errors import NonFiniteError, UserError, require_kind
from draw.model import DRAW, in_use
from draw.noise import seeded
from draw.objective import log_weight, losses
from draw.parallel import World
from draw.types import Unroll


@dataclass(frozen=True)
class Evaluation:
    """A measurement over `images` images of a split, every one counted once. Nats per image, lower is better."""

    bound_nats: float  # L^x + L^z, an upper bound on -log p(x); mean over images and `samples` posterior samples
    bound_se: float | None  # its standard error over images; None of a single one
    loss_x_nats: float
    loss_z_nats: float
    kl_per_glimpse_nats: list[float]
    percentiles_nats: list[float]  # 0, 5, ..., 100 % of the images have at most this bound
    bits_per_dim: float | None  # the bound / (c h w ln 2); None where the targets are intensities: it is no code length
    iw_nats: float | None  # importance-weighted estimate with K samples: an upper bound in expectation, tighter with K
    iw_se: float | None
    effective_sample_size: float | None  # median over images of (sum w)^2 / sum w^2, between 1 and K
    samples: int
    importance_samples: int  # K; 0 when iw_nats was not asked for
    images: int
    split: str
    binarization: str  # static, stochastic, or none: grey or colour targets, and the loss is then no code length
    seconds: float
    kl_per_latent_nats: list[float] = field(default_factory=list)  # over all glimpses; empty in records older than it
    above_entropy_nats: float | None = None  # of intensities as targets: bound - their own entropy, the least L^x
    above_entropy_se: float | None = None
    # The bound's standard error over its samples, of the same images and pixels: what other latents would change; None
    # of a single sample.
    bound_sampling_se: float | None = None


def spread(total: int, count: int) -> Int[Tensor, " m"]:
    """`count` indices spread evenly over a split (all of them for 0): a split may be sorted by class."""
    count = min(count or total, total)
    return torch.arange(count) * total // count


def require_shape(data: DataSet, config: ModelConfig) -> None:
    """Check that a data set's images are of a model's size.

    Raises:
        UserError: If they are not.
    """
    if data.shape != config.image_shape:
        wanted, got = (" x ".join(map(str, shape)) for shape in (config.image_shape, data.shape))
        raise UserError(f"the model draws images of {wanted} (channels, height, width), {data.name} has {got}")


@torch.no_grad()
def evaluate(
    model: DRAW,
    data: DataSet,
    config: EvalConfig | None = None,
    *,
    speed: SpeedConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    world: World | None = None,
    unroll: Unroll | None = None,
) -> Evaluation:
    """The bound of a model on a split of a data set, and with `importance_samples` the estimate with K samples.

    Pieces that do something else in training, as dropout does, are measured as they are in use, not in training.

    Memory is bounded by `config.batch_size` image-samples, whatever the number of samples. All noise is a function of
    `config.seed` and of how the images fall into batches.

    Args:
        model: On any device; the images are moved to it batch by batch.
        data: The data set.
        config: Split, samples, subset.
        speed: How to compute it.
        progress: Called with (images done, images in all).
        world: The processes that share the work; every one of them gets the result, the same as of a single one.
        unroll: A way to compute the glimpses, made once by `fast.unroll_for` where a model is measured often; then
            `speed` is not asked.

    Raises:
        UserError: If there is no such split, or the images are not of the model's size.
        NonFiniteError: If the bound is not a finite number.
    """
    config, speed, world = config or EvalConfig(), speed or SpeedConfig(), world or World()
    for name, value, kind in (
        ("model", model, DRAW), ("data", data, DataSet), ("config", config, EvalConfig), ("speed", speed, SpeedConfig)
    ):  # fmt: skip
        require_kind(name, value, kind)
    require_shape(data, model.config)
    started = time.perf_counter()
    images = data.split(config.split)
    chosen = spread(len(images), config.images)
    work = len(chosen) * (config.samples + config.importance_samples)
    unroll = unroll or world.every(lambda: fast.unroll_for(model, speed, work))
    per_pass = max(1, config.batch_size // max(config.samples, config.importance_samples))
    weighted = config.importance_samples > 0
    grey = data.binarization == "none" and type(model.likelihood) is Bernoulli
    # What is measured of each image, and how many numbers it is: the columns of a table.
    widths = {"bound": 1, "loss_x": 1, "loss_z": 1, "kl_per_glimpse": model.config.steps}
    widths |= {"kl_per_latent": model.config.z_size, "squared_error": 1}
    widths |= {"above_entropy": 1} if grey else {}
    widths |= {"iw": 1, "effective_sample_size": 1} if weighted else {}
    table = torch.zeros(len(chosen), sum(widths.values()), dtype=torch.float64)
    # Block by block in turn: what a block's numbers are depends on its first image, not on who computes them.
    for first in range(world.rank * per_pass, len(chosen), world.size * per_pass):
        block = images[chosen[first : first + per_pass]].to(model.canvas0.device)
        x = intensities(block, data.binarization, seeded(config.seed, "binarize", first))  # the same on every device
        x = x.to(model.canvas0.dtype)
        with in_use(model):
            measured = _bound_of(model, unroll, x, config, first)
            if weighted:
                measured |= _importance_weighted(model, unroll, x, config, first)
        if grey:
            measured["above_entropy"] = measured["bound"] - Bernoulli().least_loss_x(x)[:, None]
        table[first : first + per_pass] = torch.cat([measured[name] for name in widths], dim=1).cpu()
        if progress:
            progress(min(first + world.size * per_pass, len(chosen)), len(chosen))

    world.sum(table)  # each row is another rank's, and zero here
    columns = dict(zip(widths, table.split([*widths.values()], dim=1), strict=True))
    mean = {name: column.mean(0).tolist() for name, column in columns.items()}
    several, pixels = len(table) > 1, math.prod(model.config.image_shape)
    error = {
        name: (column.std(0, correction=int(several)) / math.sqrt(len(table))).tolist()
        for name, column in columns.items()
    }
    if not table.isfinite().all():
        raise NonFiniteError(
            f"the bound on the {config.split} split is not finite: L^x {mean['loss_x'][0]:.4g}, "
            f"L^z {mean['loss_z'][0]:.4g}"
        )
    return Evaluation(
        bound_nats=mean["bound"][0],
        bound_se=error["bound"][0] if several else None,
        loss_x_nats=mean["loss_x"][0],
        loss_z_nats=mean["loss_z"][0],
        kl_per_glimpse_nats=mean["kl_per_glimpse"],
        percentiles_nats=columns["bound"][:, 0].quantile(torch.linspace(0, 1, 21, dtype=table.dtype)).tolist(),
        bits_per_dim=None if data.binarization == "none" else mean["bound"][0] / (pixels * math.log(2)),
        iw_nats=mean["iw"][0] if weighted else None,
        iw_se=error["iw"][0] if weighted and several else None,
        effective_sample_size=columns["effective_sample_size"].quantile(0.5).item() if weighted else None,
        samples=config.samples,
        importance_samples=config.importance_samples,
        images=len(table),
        split=config.split,
        binarization=data.binarization,
        seconds=time.perf_counter() - started,
        kl_per_latent_nats=mean["kl_per_latent"],
        above_entropy_nats=mean["above_entropy"][0] if grey else None,
        above_entropy_se=error["above_entropy"][0] if grey and several else None,
        bound_sampling_se=math.sqrt(mean["squared_error"][0] / len(table)) if config.samples > 1 else None,
    )


def _passes(samples: int, images: int, batch_size: int) -> list[int]:
    """How many samples of each of a block's images to draw in each pass."""
    most = max(1, batch_size // images)
    return [min(most, samples - first) for first in range(0, samples, most)]


def _bound_of(
    model: DRAW, unroll: Unroll, x: Float[Tensor, "b c h w"], config: EvalConfig, first: int
) -> dict[str, Float[Tensor, "b _"]]:
    """The bound of each image with its parts, means over samples; `squared_error` is that of the bound's mean."""
    passes = []
    for index, s in enumerate(_passes(config.samples, len(x), config.batch_size)):
        many = x.repeat(s, 1, 1, 1)
        drawing = model(model.noise(len(many), config.seed, "bound", first, index), many, unroll=unroll)
        parts = losses(many, drawing, model.likelihood)
        measured = {
            "bound": parts.bound[:, None],
            "loss_x": parts.loss_x[:, None],
            "loss_z": parts.loss_z[:, None],
            "kl_per_glimpse": drawing.kl.mT,
            "kl_per_latent": kl_per_latent(drawing.latent.q, drawing.latent.p).sum(0),  # over glimpses
        }
        passes.append({name: value.unflatten(0, (s, len(x))) for name, value in measured.items()})
    samples = {name: torch.cat([measured[name] for measured in passes]) for name in passes[0]}
    squared_error = samples["bound"].var(0, correction=min(1, config.samples - 1)) / config.samples
    return {name: value.sum(0) / config.samples for name, value in samples.items()} | {"squared_error": squared_error}


def _importance_weighted(
    model: DRAW, unroll: Unroll, x: Float[Tensor, "b c h w"], config: EvalConfig, first: int
) -> dict[str, Float[Tensor, "b 1"]]:
    """-log (1/K sum_k w_k) and the effective sample size of each image, weights summed pass by pass."""
    log_sum = log_sum_squares = x.new_full((len(x),), -math.inf)
    for index, s in enumerate(_passes(config.importance_samples, len(x), config.batch_size)):
        many = x.repeat(s, 1, 1, 1)
        drawing = model(model.noise(len(many), config.seed, "importance", first, index), many, unroll=unroll)
        log_w = log_weight(many, drawing, model.likelihood).unflatten(0, (s, len(x)))
        log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
        log_sum_squares = torch.logaddexp(log_sum_squares, (2 * log_w).logsumexp(0))
    estimate, effective = math.log(config.importance_samples) - log_sum, (2 * log_sum - log_sum_squares).exp()
    return {"iw": estimate[:, None], "effective_sample_size": effective[:, None]}
