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
from draw.errors import NonFiniteError, UserError
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
    config = config or EvalConfig()
    world = world or World()
    require_shape(data, model.config)
    started = time.perf_counter()
    images = data.split(config.split)
    chosen = spread(len(images), config.images)
    work = len(chosen) * (config.samples + config.importance_samples)
    unroll = unroll or world.every(lambda: fast.unroll_for(model, speed or SpeedConfig(), work))
    per_pass = max(1, config.batch_size // max(config.samples, config.importance_samples))
    weighted = config.importance_samples > 0
    grey = data.binarization == "none" and type(model.likelihood) is Bernoulli
    # Bound, L^x, L^z, KL per glimpse and per latent, the bound's squared error over its samples, the bound above the
    # entropy of intensities, importance-weighted estimate and effective sample size.
    widths = [1, 1, 1, model.config.steps, model.config.z_size, 1, int(grey), int(weighted), int(weighted)]
    table = torch.zeros(len(chosen), sum(widths), dtype=torch.float64)
    # Block by block in turn: what a block's numbers are depends on its first image, not on who computes them.
    for first in range(world.rank * per_pass, len(chosen), world.size * per_pass):
        block = images[chosen[first : first + per_pass]].to(model.canvas0.device)
        x = intensities(block, data.binarization, seeded(config.seed, "binarize", first))  # the same on every device
        x = x.to(model.canvas0.dtype)
        with in_use(model):
            parts = [_bound_of(model, unroll, x, config, first)]
            if config.importance_samples:
                parts.append(_importance_weighted(model, unroll, x, config, first))
        if grey:
            parts.insert(1, parts[0][:, :1] - Bernoulli().least_loss_x(x)[:, None])
        table[first : first + per_pass] = torch.cat(parts, dim=1).cpu()
        if progress:
            progress(min(first + world.size * per_pass, len(chosen)), len(chosen))

    world.sum(table)  # each row is another rank's, and zero here
    mean = table.mean(0)
    if not mean.isfinite().all():
        raise NonFiniteError(
            f"the bound on the {config.split} split is not finite: L^x {mean[1]:.4g}, L^z {mean[2]:.4g}"
        )
    several, pixels = len(table) > 1, math.prod(model.config.image_shape)
    error = table.std(0) / math.sqrt(len(table)) if several else mean
    means = (part.tolist() for part in mean.split(widths))
    bound, loss_x, loss_z, per_glimpse, per_latent, sampling, above, iw, _ = means
    bound_se, *_, above_se, iw_se, _ = (part.tolist() for part in error.split(widths))
    return Evaluation(
        bound_nats=bound[0],
        bound_se=bound_se[0] if several else None,
        loss_x_nats=loss_x[0],
        loss_z_nats=loss_z[0],
        kl_per_glimpse_nats=per_glimpse,
        percentiles_nats=table[:, 0].quantile(torch.linspace(0, 1, 21, dtype=table.dtype)).tolist(),
        bits_per_dim=None if data.binarization == "none" else bound[0] / (pixels * math.log(2)),
        iw_nats=iw[0] if weighted else None,
        iw_se=iw_se[0] if weighted and several else None,
        effective_sample_size=table[:, -1].quantile(0.5).item() if weighted else None,
        samples=config.samples,
        importance_samples=config.importance_samples,
        images=len(table),
        split=config.split,
        binarization=data.binarization,
        seconds=time.perf_counter() - started,
        kl_per_latent_nats=per_latent,
        above_entropy_nats=above[0] if grey else None,
        above_entropy_se=above_se[0] if grey and several else None,
        bound_sampling_se=math.sqrt(sampling[0] / len(table)) if config.samples > 1 else None,
    )


def _passes(samples: int, images: int, batch_size: int) -> list[int]:
    """How many samples of each of a block's images to draw in each pass."""
    most = max(1, batch_size // images)
    return [min(most, samples - first) for first in range(0, samples, most)]


def _bound_of(
    model: DRAW, unroll: Unroll, x: Float[Tensor, "b c h w"], config: EvalConfig, first: int
) -> Float[Tensor, "b k"]:
    """Of each image: bound, L^x, L^z, KL per glimpse and per latent, means over samples; squared error of the first."""
    passes = []
    for index, s in enumerate(_passes(config.samples, len(x), config.batch_size)):
        many = x.repeat(s, 1, 1, 1)
        drawing = model(model.noise(len(many), config.seed, "bound", first, index), many, unroll=unroll)
        parts = losses(many, drawing, model.likelihood)
        per_latent = kl_per_latent(drawing.latent.q, drawing.latent.p).sum(0)  # over glimpses
        row = torch.cat([torch.stack([parts.bound, *parts], dim=1), drawing.kl.mT, per_latent], dim=1)
        passes.append(row.unflatten(0, (s, len(x))))
    rows = torch.cat(passes)  # sample, image, number
    squared_error = rows[..., :1].var(0, correction=min(1, config.samples - 1)) / config.samples
    return torch.cat([rows.sum(0) / config.samples, squared_error], dim=1)


def _importance_weighted(
    model: DRAW, unroll: Unroll, x: Float[Tensor, "b c h w"], config: EvalConfig, first: int
) -> Float[Tensor, "b 2"]:
    """-log (1/K sum_k w_k) and the effective sample size of each image, weights summed pass by pass."""
    log_sum = log_sum_squares = x.new_full((len(x),), -math.inf)
    for index, s in enumerate(_passes(config.importance_samples, len(x), config.batch_size)):
        many = x.repeat(s, 1, 1, 1)
        drawing = model(model.noise(len(many), config.seed, "importance", first, index), many, unroll=unroll)
        log_w = log_weight(many, drawing, model.likelihood).unflatten(0, (s, len(x)))
        log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
        log_sum_squares = torch.logaddexp(log_sum_squares, (2 * log_w).logsumexp(0))
    estimate = math.log(config.importance_samples) - log_sum
    return torch.stack([estimate, (2 * log_sum - log_sum_squares).exp()], dim=1)
