"""The variational bound, eqs. 9-12. Nats, per image, not averaged; lower is better."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from draw.distributions import log_density
from draw.types import Drawing, Likelihood


class Losses(NamedTuple):
    """The two parts of the bound, each (b,), nats."""

    loss_x: Float[Tensor, " b"]
    loss_z: Float[Tensor, " b"]

    @property
    def bound(self) -> Float[Tensor, " b"]:
        """L = L^x + L^z (eq. 12): an unbiased estimate of an upper bound on -log p(x)."""
        return self.loss_x + self.loss_z


def losses(x: Float[Tensor, "b c h w"], drawing: Drawing, likelihood: Likelihood) -> Losses:
    """L^x and L^z of images and the drawings made of them.

    Raises:
        ValueError: If the drawings were generated, not inferred from images.
    """
    if drawing.kl is None:
        raise ValueError("a generated drawing has no bound: pass the images to the model")
    return Losses(
        loss_x=likelihood.loss_x(x, drawing.canvas),  # 9
        loss_z=drawing.kl.sum(0),  # 10
    )


def log_weight(x: Float[Tensor, "b c h w"], drawing: Drawing, likelihood: Likelihood) -> Float[Tensor, " b"]:
    """log p(x, z) - log q(z | x), nats: the log importance weight of each drawing's latents.

    exp of it averages to p(x) over posterior samples; its own average is minus the bound.

    Raises:
        ValueError: If the drawings were generated, not inferred from images.
    """
    z, q, p = drawing.latent
    if q is None:
        raise ValueError("a generated drawing has no importance weight: pass the images to the model")
    return -likelihood.loss_x(x, drawing.canvas) + (log_density(z, p) - log_density(z, q)).sum(0)
