"""What passes between the parts: the named tuples, and the interface of each replaceable piece.

Axes stand in the order t b c h w: glimpse, image, channel, row, column; n is a filter, z a latent, d a feature.
Pixel i has its centre at coordinate i, counting from 0.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


class Window(NamedTuple):
    """An attention window (eqs. 21-24); every field is (b,), in a trace (t, b)."""

    g_X: Float[Tensor, "*b"]  # centre column, pixels from 0
    g_Y: Float[Tensor, "*b"]  # centre row, pixels from 0
    delta: Float[Tensor, "*b"]  # stride between filters, pixels
    sigma2: Float[Tensor, "*b"]  # variance of the filters, pixels squared
    gamma: Float[Tensor, "*b"]  # intensity, a factor


class Gaussian(NamedTuple):
    """A diagonal Gaussian over latents; log_sigma is the log of the standard deviation (eq. 2)."""

    mu: Float[Tensor, "*b z"]
    log_sigma: Float[Tensor, "*b z"]


class State(NamedTuple):
    """What one glimpse hands to the next: LSTM outputs h and cells s, and the canvas (logits)."""

    h_enc: Float[Tensor, "b e"]
    s_enc: Float[Tensor, "b e"]
    h_dec: Float[Tensor, "b d"]
    s_dec: Float[Tensor, "b d"]
    canvas: Float[Tensor, "b c h w"]


class Latent(NamedTuple):
    """z_t, the posterior it was drawn from (None when generating) and its prior."""

    z: Float[Tensor, "*b z"]
    q: Gaussian | None
    p: Gaussian


class Trace(NamedTuple):
    """Every intermediate of a glimpse; with an axis t in front, of all T. Fields that do not apply are None."""

    canvas: Float[Tensor, "*b c h w"]  # c_t, logits, after the glimpse's stroke
    x_hat: Float[Tensor, "*b c h w"] | None  # the error image of eq. 3; None when generating
    read_window: Window | None  # None without read attention, or when generating
    write_window: Window | None  # None without write attention
    latent: Latent  # what was drawn, and from what


class Drawing(NamedTuple):
    """T glimpses: the final canvas c_T (logits), the latents, and the trace if it was asked for."""

    canvas: Float[Tensor, "b c h w"]
    latent: Latent  # every field (t, b, z)
    kl: Float[Tensor, "t b"] | None  # KL(q || p) of every glimpse, nats; None when generating
    trace: Trace | None


@runtime_checkable
class Read(Protocol):
    """Eq. 4: what the encoder sees of the image and of the error image."""

    features: int  # d, the size of what is read

    def __call__(
        self, x: Float[Tensor, "b c h w"], x_hat: Float[Tensor, "b c h w"], h_dec: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Window | None]: ...


@runtime_checkable
class Write(Protocol):
    """Eq. 8: the stroke that the decoder adds to the canvas, in logits."""

    def __call__(self, h_dec: Float[Tensor, "b k"]) -> tuple[Float[Tensor, "b c h w"], Window | None]: ...


@runtime_checkable
class Cell(Protocol):
    """Eqs. 5 and 7: one step of a recurrent network, from (input, output h, memory s) to (h, s)."""

    def __call__(
        self, input: Float[Tensor, "b i"], h: Float[Tensor, "b k"], s: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]: ...


@runtime_checkable
class Prior(Protocol):
    """P(Z_t) of eq. 10, given the decoder's state before the glimpse (which the paper's ignores)."""

    def __call__(self, h_dec: Float[Tensor, "b k"]) -> Gaussian: ...


@runtime_checkable
class Unroll(Protocol):
    """Glimpse after glimpse from a state on: `DRAW.unroll`, or a faster way to the same numbers (`draw.fast`)."""

    def __call__(
        self, state: State, eps: Float[Tensor, "t b z"], x: Float[Tensor, "b c h w"] | None = None
    ) -> tuple[State, Latent]:
        """The state after the last glimpse, and the latents, every field (t, b, z)."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """D(X | c_T) of eq. 9."""

    def mean(self, canvas: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """The expected image, in [0, 1]."""
        ...

    def canvas_of(self, mean: float) -> float:
        """The canvas value whose expected intensity is `mean`."""
        ...

    def loss_x(self, x: Float[Tensor, "b c h w"], canvas: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """-log D(x | canvas), nats per image."""
        ...
