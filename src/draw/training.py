"""Training in memory: one step of AdamW on the bound, its schedule, and the averaged weights.

Everything random is a function of (seed, step), so the tensors of `Trainer.state` and the step's number are all that
a checkpoint needs to go on exactly. Nothing here prints or touches a disk: the caller logs, evaluates and saves.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from draw import fast
from draw.config import RunConfig, SpeedConfig, TrainConfig
from draw.data import DataSet, batch_indices, intensities, random_patches
from draw.errors import NonFiniteError, UserError
from draw.model import DRAW, LSTM, require_same_tensors
from draw.noise import global_seed, seeded
from draw.objective import losses
from draw.optimizer import PowerAdamW
from draw.parallel import World
from draw.pieces import Build


@dataclass(frozen=True)
class Metrics:
    """One log line of training: means since the line before, over batches of training images."""

    step: int
    epoch: float
    glimpses: int  # T, of the last of these steps
    seconds: float  # of training, validation and saving included, over all parts of a resumed run
    bound_nats: float
    loss_x_nats: float
    loss_z_nats: float
    grad_norm: float  # before clipping
    learning_rate: float
    images_per_second: float
    kind: Literal["train"] = "train"


def learning_rate(config: TrainConfig, step: int, seconds: float) -> float:
    """Linear warm-up over the first steps, times half a cosine from `fall_from` to the end of the schedule."""
    warmup = min(1.0, (step + 1) / max(config.warmup, 1))
    fallen = max(0.0, schedule_fraction(config, step, seconds) - config.fall_from) / (1 - config.fall_from)
    return config.learning_rate * warmup * (1 + math.cos(math.pi * fallen)) / 2


def glimpses(config: TrainConfig, T: int, step: int, seconds: float) -> int:  # noqa: N803  # the paper's T
    """How many of the T glimpses are made: `grow_from`, twice, four times as many, up to T from `grow_until` on.

    No weight depends on T, and what few glimpses learn in a cheap step is soon spread over more of them.
    """
    first = config.grow_from or T
    stages = max(0, math.ceil(math.log2(T / first)))
    return min(T, first << int(min(stages, stages * schedule_fraction(config, step, seconds) / config.grow_until)))


def schedule_fraction(config: TrainConfig, step: int, seconds: float) -> float:
    """How much of the schedule is done, in [0, 1]; training ends at 1."""
    if config.schedule_minutes is None:
        return min(1.0, step / config.iterations)
    return min(1.0, seconds / (60 * config.schedule_minutes))


class Trainer:
    """A model in training, the same on every rank of `world`; a batch is divided between the ranks.

    Attributes:
        model: The network being trained. While glimpses grow, its configuration has those of the last step.
        ema: Its exponentially averaged weights: what is validated, sampled from and shipped.
        step: Steps taken.
        grown: Make so many glimpses at least, in a run whose schedule was made longer.
    """

    def __init__(
        self,
        config: RunConfig,
        data: DataSet,
        device: torch.device | str = "cpu",
        *,
        speed: SpeedConfig | None = None,
        world: World | None = None,
        build: Build = DRAW,
    ) -> None:
        speed = speed or SpeedConfig()
        self.world = world or World()
        if self.world.size > config.train.batch_size:
            raise UserError(
                f"{self.world.size} processes cannot share a batch of {config.train.batch_size}: use fewer processes, "
                "or a larger --batch-size, which is of all processes together"
            )
        self.config = config
        self.device = torch.device(device)
        if self.world.size > 1 and self.device.type == "mps":
            raise UserError("several processes cannot train on mps: choose --device cpu")
        self.data = data.to(device)
        self.step = self.grown = 0
        with global_seed(config.train.seed):
            self.model = build(config.model, mean_pixel=data.mean_pixel, seed=config.train.seed).to(device)
        if config.train.awake is not None:
            leave_awake(self.model, config.train.awake)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        steps = None if config.train.schedule_minutes else config.train.iterations
        images = 3 * steps * config.train.batch_size if steps else None  # the backward pass counts for two
        # Of the weights as they change, and of their averages for validations; on every rank, or a compiler is missing.
        self.unroll, self.ema_unroll = self.world.every(
            lambda: (fast.unroll_for(self.model, speed, images), fast.unroll_for(self.ema, speed, images))
        )
        self.network = self.world.wrap(self.model)  # the same weights; what is called in training
        # What changes from step to step is a tensor, so that a CUDA graph sees it change.
        self._learning_rate, self._decay = (torch.tensor(0.0, device=device) for _ in range(2))
        on_cuda = self.device.type == "cuda"
        parameters = list(self.model.parameters())
        decayed = {"params": [p for p in parameters if p.ndim == 2], "weight_decay": config.train.weight_decay}
        kept = {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0}  # biases, initial states, canvas
        groups, rate, power = [decayed, kept], self._learning_rate, config.train.adam_power
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=rate, fused=self.device.type != "mps", capturable=on_cuda)
            if power == 0.5
            else PowerAdamW(groups, power, lr=rate)
        )
        # steps, bound, loss_x, loss_z, grad_norm since the last log line
        self._sums = torch.zeros(5, dtype=torch.float32 if self.device.type == "mps" else torch.float64, device=device)
        self._update_once = fast.update_for(self._update, self.device, speed, alone=self.world.size == 1)
        for parameter in parameters:  # so that the state has the same tensors before the first step
            self.optimizer.state[parameter] = {
                "step": torch.tensor(0.0, device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def batch(self, step: int) -> Float[Tensor, "b c h w"]:
        """This rank's share of the training images of a step, or of random patches of them, binarised."""
        config, whole = self.config.train, self.data.whole
        images = self.data.split("train") if whole is None else whole
        share = self.world.share(config.batch_size)
        index = batch_indices(len(images), config.batch_size, config.seed, step)[share]
        if images.device.type == "cuda":
            index = index.pin_memory()  # or the host would wait for the device
        batch = images[index.to(images.device, non_blocking=True)].to(self.device)
        # Places and noise are the whole batch's, so that an image gets the same whatever the number of processes.
        if whole is not None:
            generator = seeded(config.seed, "patch", step, device=batch.device)
            batch = random_patches(batch, self.data.shape[1:], generator, of=config.batch_size, first=share.start)
        generator = seeded(config.seed, "binarize", step, device=batch.device)
        return intensities(batch, self.data.binarization, generator, of=config.batch_size, first=share.start)

    def train_step(self, seconds: float) -> None:
        """One step of AdamW on the mean bound of one batch; `seconds` of training so far place it in the schedule.

        On CUDA nothing is waited for, and a value that is not finite is found by `metrics` and `state` instead.

        Raises:
            NonFiniteError: Before anything was updated, if the bound or a gradient is not finite.
        """
        config = self.config.train
        x = self.batch(self.step)
        steps = max(self.grown, glimpses(config, self.config.model.steps, self.step, seconds))
        self.model.config = self.ema.config = replace(self.config.model, steps=steps)
        eps = self.model.noise(config.batch_size, config.seed, "train", self.step)
        eps = eps[:, self.world.share(config.batch_size)].contiguous()  # as for binarization: the whole batch's noise
        self._learning_rate.fill_(learning_rate(config, self.step, seconds))
        # Early on the horizon is the run so far, or the average would be of initial weights for thousands of steps.
        self._decay.fill_(min(config.ema_decay, (self.step + 1) / (self.step + 11)))
        self._update_once(x, eps)
        self.step += 1

    def _update(self, x: Float[Tensor, "b c h w"], eps: Float[Tensor, "t b z"]) -> None:
        """From this rank's images and their noise to new weights."""
        drawing = self.network(eps, x, unroll=self.unroll)
        # Gradients and values are averaged over ranks; at this scale that is the mean over the images of the batch.
        scale = len(x) * self.world.size / self.config.train.batch_size
        loss_x, loss_z = (scale * part.mean() for part in losses(x, drawing, self.model.likelihood))
        bound = loss_x + loss_z

        self.optimizer.zero_grad()
        bound.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        values = torch.stack([torch.ones_like(bound), bound, loss_x, loss_z, grad_norm]).detach().to(self._sums)
        values = self.world.sum(values) / self.world.size
        if self.device.type != "cuda" and not values.isfinite().all():
            raise NonFiniteError(f"step {self.step}: {first_non_finite(self.model, eps, x)} is not finite")

        self.optimizer.step()
        with torch.no_grad():
            averages: list[Tensor] = list(self.ema.parameters())
            changes = list(torch._foreach_sub(list(self.model.parameters()), averages))
            torch._foreach_mul_(changes, 1 - self._decay)
            torch._foreach_add_(averages, changes)
            for kept, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):  # of pieces of one's own
                kept.copy_(buffer)
            self._sums += values

    def finished(self, seconds: float) -> bool:
        """Whether the schedule has come to its end."""
        return schedule_fraction(self.config.train, self.step, seconds) >= 1

    def metrics(self, seconds: float, images_per_second: float) -> Metrics:
        """Means since the last call."""
        config = self.config.train
        self._require_finite()
        _, bound, loss_x, loss_z, grad_norm = (self._sums / self._sums[0]).tolist()
        self._sums.zero_()
        return Metrics(
            step=self.step,
            epoch=self.step * config.batch_size / len(self.data.split("train")),
            glimpses=self.model.config.steps,
            seconds=seconds,
            bound_nats=bound,
            loss_x_nats=loss_x,
            loss_z_nats=loss_z,
            grad_norm=grad_norm,
            learning_rate=self._learning_rate.item(),
            images_per_second=images_per_second,
        )

    def state(self) -> dict[str, Tensor]:
        """Every tensor needed to go on exactly, by name, the averaged weights aside: weights, Adam's moments, sums.

        Raises:
            NonFiniteError: If a sum is not finite, so that no such state is ever saved.
        """
        self._require_finite()
        tensors = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.optimizer.state[parameter].items()}
        return tensors | {"log.sums": self._sums}

    def _require_finite(self) -> None:
        if not self._sums.isfinite().all():
            raise NonFiniteError(f"the bound or a gradient was not finite in a step before {self.step}")

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], ema: dict[str, Tensor], step: int) -> None:
        """Go on from the tensors that `state` gave after `step` steps, and the averaged weights of that time.

        Raises:
            ValueError: Naming a tensor that is missing, unknown or of another shape.
        """
        # Devices differ in the precision of the sums.
        tensors = {name: value.to(self._sums.dtype) if name == "log.sums" else value for name, value in tensors.items()}
        for own, given in ((self.state(), tensors), (self.ema.state_dict(), ema)):
            require_same_tensors(given, own)
            for name, tensor in own.items():
                tensor.copy_(given[name])
        self.step = step

    def copy_state_from_main(self, step: int) -> None:
        """Go on from the state that rank 0 has loaded, which is of `step` steps."""
        self.world.copy_from_main([*self.state().values(), *self.ema.state_dict().values()])
        self.step = step


@torch.no_grad()
def leave_awake(model: DRAW, latents: int) -> None:
    """Let the first so many latents alone be in use: of all others q is N(0, I), and the decoder hears nothing of them.

    The others' posteriors have no gradient until the decoder's weights for them, which have one, have left zero.

    Raises:
        UserError: If the decoder is not the paper's, so that its weights for the latents are not known.
    """
    if not isinstance(model.decoder, LSTM):
        raise UserError(f"awake needs the paper's LSTM, not {type(model.decoder).__name__}: leave it at none")
    model.decoder.to_gates.weight[:, latents : model.config.z_size] = 0  # of its inputs z comes first
    for layer in (model.to_mu, model.to_log_sigma):
        layer.weight[latents:] = 0
        if layer.bias is not None:
            layer.bias[latents:] = 0


@torch.no_grad()
def first_non_finite(model: DRAW, eps: Float[Tensor, "t b z"], x: Float[Tensor, "b c h w"]) -> str:
    """The name of the first tensor that is not finite: a weight, an intermediate of a glimpse, or a gradient."""

    def name_in(values: object, path: str) -> str | None:
        if isinstance(values, Tensor):
            return None if values.isfinite().all() else path
        fields = zip(values._fields, values, strict=True) if isinstance(values, tuple) else ()  # type: ignore[attr-defined]
        return next((found for name, value in fields if (found := name_in(value, f"{path}{name} "))), None)

    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"weight {name}"
    state = model.initial_state(len(x))
    for t, eps_t in enumerate(eps):
        state, step = model.step(state, eps_t, x)
        if found := name_in(step, "") or name_in(state, ""):
            return f"{found.strip()} of glimpse {t + 1}"
    for name, weight in model.named_parameters():
        if weight.grad is not None and not weight.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the loss"
