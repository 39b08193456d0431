"""DRAW: a recurrent network that draws (Gregor et al. 2015, arXiv:1502.04623v2), eqs. 1-8 and 13-16.

One step function serves training, reconstruction, generation and animation. Nothing is stored on the module while
it runs: the state is passed by hand, noise is an argument, and every intermediate is an output for who asks.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from draw.attention import AttentiveRead, AttentiveWrite, FullRead, FullWrite
from draw.config import ModelConfig, require_temperature
from draw.distributions import Bernoulli, StandardNormal, carrying_latents, kl, kl_per_latent, rsample
from draw.errors import UserError, require_kind
from draw.noise import global_seed, seeded
from draw.types import Cell, Drawing, Gaussian, Latent, Likelihood, Prior, Read, State, Trace, Unroll, Write


class LSTM(nn.Module):
    """A long short-term memory cell without peepholes; forget bias 1 at the start, so that memories last.

    .. math:: i, f, g, o = W[\\text{input}, h], \\quad s' = \\sigma(f) s + \\sigma(i) \\tanh(g), \\quad
              h' = \\sigma(o) \\tanh(s')
    """

    def __init__(self, input_size: int, size: int) -> None:
        super().__init__()
        self.to_gates = nn.Linear(input_size + size, 4 * size)
        with torch.no_grad():
            self.to_gates.bias.zero_()
            self.to_gates.bias[size : 2 * size] = 1.0

    def forward(
        self, input: Float[Tensor, "b i"], h: Float[Tensor, "b k"], s: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """The output h and the memory s after this input."""
        i, f, g, o = self.to_gates(torch.cat([input, h], dim=1)).chunk(4, dim=1)
        s = f.sigmoid() * s + i.sigmoid() * g.tanh()
        return o.sigmoid() * s.tanh(), s


def stack(values: Sequence[Any]) -> Any:
    """Tensors of each glimpse, alone or in (nested) named tuples, stacked along a new first axis t. None stays None."""
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.stack(list(values))
    return type(first)(*(stack(fields) for fields in zip(*values, strict=True)))


class DRAW(nn.Module):
    """The network: read, encode, sample, decode, write, T times over.

    Each piece is the paper's unless another with the same interface (`draw.types`) is given.

    Args:
        config: The sizes.
        mean_pixel: Mean intensity of the training images; the canvas starts at its logit.
        seed: Seed of the initial weights.
        read: Eq. 4; by default with or without attention as the configuration says.
        write: Eq. 8; likewise.
        cell: Makes the encoder's and the decoder's recurrent cell from an input size and a size (eqs. 5, 7).
        prior: P(Z_t) of eq. 10.
        likelihood: D of eq. 9.

    Example:
        >>> model = DRAW(ModelConfig(height=8, width=8, steps=4, enc_size=16, dec_size=16, z_size=3))
        >>> model.sample(5, seed=1).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        mean_pixel: float = 0.5,
        seed: int = 0,
        read: Read | None = None,
        write: Write | None = None,
        cell: Callable[[int, int], Cell] = LSTM,
        prior: Prior | None = None,
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        require_kind("config", config, ModelConfig)
        self.config = config
        shape, e, d, r, w = config.image_shape, config.enc_size, config.dec_size, config.read_n, config.write_n
        with global_seed(seed):
            self.read = read or (FullRead(*shape) if r is None else AttentiveRead(r, d, *shape))
            self.encoder = cell(self.read.features + d, e)
            self.to_mu = nn.Linear(e, config.z_size)
            self.to_log_sigma = nn.Linear(e, config.z_size)
            self.prior = prior or StandardNormal(config.z_size)
            self.decoder = cell(config.z_size, d)
            self.write = write or (FullWrite(d, *shape) if w is None else AttentiveWrite(w, d, *shape))
            self.likelihood = likelihood or Bernoulli()
        self.h_enc0, self.s_enc0 = nn.Parameter(torch.zeros(e)), nn.Parameter(torch.zeros(e))
        self.h_dec0, self.s_dec0 = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))
        self.canvas0 = nn.Parameter(torch.full(shape, self.likelihood.canvas_of(mean_pixel)))

    def initial_state(self, b: int) -> State:
        """The learned state before the first glimpse, for b images."""
        learned = State(self.h_enc0, self.s_enc0, self.h_dec0, self.s_dec0, self.canvas0)
        return State(*(value.expand(b, *value.shape) for value in learned))

    def step(
        self, state: State, eps: Float[Tensor, "b z"], x: Float[Tensor, "b c h w"] | None = None
    ) -> tuple[State, Trace]:
        """One glimpse: inference and drawing of x (eqs. 3-8), or generation when there is no x (eqs. 13-15).

        Args:
            state: The state after the glimpse before.
            eps: Standard normal noise.
            x: Images with intensities in [0, 1], or None.

        Returns:
            The next state, and every intermediate (a `Trace` without its axis t).
        """
        h_enc, s_enc, h_dec, s_dec, canvas = state
        p = self.prior(h_dec)
        if x is None:
            x_hat = q = read_window = None
            z = rsample(p, eps)  # 13
        else:
            x_hat = x - self.likelihood.mean(canvas)  # 3, the error image
            r, read_window = self.read(x, x_hat, h_dec)  # 4
            h_enc, s_enc = self.encoder(torch.cat([r, h_dec], dim=1), h_enc, s_enc)  # 5
            q = Gaussian(mu=self.to_mu(h_enc), log_sigma=self.to_log_sigma(h_enc))  # 1, 2
            z = rsample(q, eps)  # 6
        h_dec, s_dec = self.decoder(z, h_dec, s_dec)  # 7, 14
        stroke, write_window = self.write(h_dec)
        canvas = canvas + stroke  # 8, 15
        state = State(h_enc, s_enc, h_dec, s_dec, canvas)
        return state, Trace(canvas, x_hat, read_window, write_window, Latent(z, q, p))

    def unroll(
        self,
        state: State,
        eps: Float[Tensor, "t b z"],
        x: Float[Tensor, "b c h w"] | None = None,
        *,
        trace: bool = False,
    ) -> tuple[State, Any]:
        """As many glimpses as eps has, from a state on: the state after the last, and the latents or whole traces."""
        steps = []
        for eps_t in eps:
            state, step = self.step(state, eps_t, x)
            steps.append(step if trace else step.latent)
        return state, stack(steps)

    def forward(
        self,
        eps: Float[Tensor, "t b z"],
        x: Float[Tensor, "b c h w"] | None = None,
        *,
        trace: bool = False,
        unroll: Unroll | None = None,
    ) -> Drawing:
        """T glimpses: inference and drawing of x, or generation when there is no x.

        Args:
            eps: Standard normal noise for every glimpse; its first axis decides T.
            x: Images with intensities in [0, 1], or None.
            trace: Keep every intermediate of every glimpse.
            unroll: A faster way to what `self.unroll` computes, from `draw.fast`; traces always come from the latter.
        """
        if x is not None:
            _require_intensities(x)
        state = self.initial_state(eps.shape[1])
        if trace:
            state, steps = self.unroll(state, eps, x, trace=True)
            latent = steps.latent
        else:
            state, latent = (unroll or self.unroll)(state, eps, x)
        return Drawing(
            canvas=state.canvas,
            latent=latent,
            kl=None if x is None else kl(latent.q, latent.p),  # 10
            trace=steps if trace else None,
        )

    def noise(self, b: int, *key: int | str) -> Float[Tensor, "t b {self.config.z_size}"]:
        """Standard normal noise for b images, a function of the key alone, on the model's device."""
        like = self.canvas0
        shape = (self.config.steps, b, self.config.z_size)
        return torch.randn(shape, generator=seeded(*key, device=like.device), device=like.device, dtype=like.dtype)

    @torch.no_grad()
    def sample(
        self, n: int, *, seed: int = 0, temperature: float = 1.0, binary: bool = False
    ) -> Float[Tensor, "{n} c h w"]:
        """New images (eqs. 13-16): their probabilities in [0, 1], or with `binary` pixels drawn from them.

        Args:
            n: How many.
            seed: Seed of the latents and of the pixels. The first m of n images are not those of n = m.
            temperature: Factor on the latents' standard deviation, from 0 to 1,000.
            binary: Draw each pixel, 0 or 1.

        Raises:
            UserError: If the temperature is not in that range.
        """
        require_temperature(temperature)
        mean = self.likelihood.mean(self(temperature * self.noise(n, seed, "sample")).canvas)
        return torch.bernoulli(mean, generator=seeded(seed, "pixels", device=mean.device)) if binary else mean

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "b c h w"], *, seed: int = 0) -> Float[Tensor, "b c h w"]:
        """The model's drawings of images with intensities in [0, 1]: probabilities, from one posterior sample each.

        A model of bits should be given bits. What an image becomes depends on how many there are beside it too.

        Raises:
            UserError: If the images are of another size, or their intensities are not in [0, 1].
        """
        _require_intensities(x)
        shape = self.config.image_shape
        if x.shape[1:] != shape:
            raise UserError(f"images must be (b, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        if not ((x >= 0) & (x <= 1)).all():
            raise UserError("images must have intensities in [0, 1], and some are not; of 8 bits give x / 255")
        eps = self.noise(x.shape[0], seed, "reconstruct")
        return self.likelihood.mean(self(eps, x.to(eps)).canvas)

    @torch.no_grad()
    def telling_latents(self, most: int = 6, *, seed: int = 0) -> list[int]:
        """The latents that carry 99 % of L^z, the largest first, and at most so many of them.

        By their KL (eq. 11), summed over the glimpses of 64 images that the model drew itself, as probabilities.
        """
        latent = self(self.noise(64, seed, "reconstruct"), self.sample(64, seed=seed)).latent
        return carrying_latents(kl_per_latent(latent.q, latent.p).sum(0).mean(0))[:most]


@contextlib.contextmanager
def in_use(model: nn.Module) -> Iterator[None]:
    """Within it all of a network is in evaluation mode; afterwards each part of it is in the mode in which it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def _require_intensities(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise UserError(f"images must be a torch tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise UserError(f"images must have intensities in [0, 1], as floats, got {x.dtype}; of 8 bits give x / 255")


def require_same_tensors(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that two sets of named tensors have the same names, shapes and types.

    Raises:
        ValueError: Naming the first tensor that differs.
    """

    def kind(tensors: Mapping[str, Tensor], name: str) -> str:
        return f"{tuple(tensors[name].shape)} {tensors[name].dtype}" if name in tensors else "absent"

    for name in sorted(given.keys() | wanted.keys()):
        if kind(given, name) != kind(wanted, name):
            raise ValueError(f"{name} is {kind(given, name)}, and {kind(wanted, name)} in the configuration")
