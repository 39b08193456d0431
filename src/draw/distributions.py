r"""The distributions: diagonal Gaussians over latents, the Bernoulli likelihood of pixels. All values in nats."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from draw.types import Gaussian


def rsample(q: Gaussian, eps: Float[Tensor, "*b z"]) -> Float[Tensor, "*b z"]:
    r"""A sample :math:`z = \mu + \sigma\epsilon` (eq. 6) from the given standard normal noise eps."""
    return q.mu + q.log_sigma.exp() * eps


def kl_per_latent(q: Gaussian, p: Gaussian) -> Float[Tensor, "*b z"]:
    r"""KL(q || p) of each latent, nats.

    .. math:: \tfrac12 \bigl( \mu_i^2 + \sigma_i^2 - \log\sigma_i^2 - 1 \bigr)
    Eqs. 10-11, where mu and sigma are q's measured in p's units: for the paper's p = N(0, I) they are q's own.
    Differs: (11) prints the constant as T/2; it is T/2 for each latent.

    Returns:
        At least 0 up to rounding; exactly 0 where q = p.
    """
    mu = (q.mu - p.mu) * (-p.log_sigma).exp()
    log_variance = 2 * (q.log_sigma - p.log_sigma)
    return 0.5 * (mu.square() + log_variance.exp() - log_variance - 1)  # 11


def kl(q: Gaussian, p: Gaussian) -> Float[Tensor, "*b"]:
    """KL(q || p), nats, summed over the latents of one glimpse (eq. 11)."""
    return kl_per_latent(q, p).sum(-1)


def log_density(z: Float[Tensor, "*b z"], p: Gaussian) -> Float[Tensor, "*b"]:
    """Log p(z), nats, summed over the latents of one glimpse."""
    eps = (z - p.mu) * (-p.log_sigma).exp()
    return (-0.5 * eps.square() - p.log_sigma - 0.5 * math.log(2 * math.pi)).sum(-1)


def carrying_latents(kl_nats: Float[Tensor, " z"]) -> list[int]:
    """The fewest latents that carry 99 % of a KL of which these are the parts, the largest first; none of no KL."""
    largest = kl_nats.argsort(descending=True, stable=True)
    carried = kl_nats[largest].cumsum(0)
    return largest[carried - kl_nats[largest] < 0.99 * carried[-1]].tolist()


class StandardNormal(nn.Module):
    """The paper's prior: z_t ~ N(0, I), whatever was drawn before."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, h_dec: Float[Tensor, "b d"]) -> Gaussian:
        """Mean and log standard deviation of z_t, both zero."""
        zero = h_dec.new_zeros(()).expand(h_dec.shape[0], self.size)
        return Gaussian(mu=zero, log_sigma=zero)


class Bernoulli(nn.Module):
    """The paper's likelihood: each pixel is 1 with probability sigmoid(canvas). Canvases are logits.

    Grey or colour targets in [0, 1] are allowed, as in the paper's SVHN and CIFAR-10 experiments; the loss is then a
    cross-entropy and no code length.
    """

    def mean(self, canvas: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """The expected image sigmoid(c), in [0, 1]."""
        return torch.sigmoid(canvas)

    def canvas_of(self, mean: float) -> float:
        """The logit of a mean intensity, kept within +-7 for images that are all black or all white."""
        mean = min(max(mean, 1e-3), 1 - 1e-3)
        return math.log(mean / (1 - mean))

    def loss_x(self, x: Float[Tensor, "b c h w"], canvas: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        r""":math:`L^x = -\log D(x | c_T) = \sum \operatorname{softplus}(c) - x c` (eq. 9), nats, per image.

        Never forms log(sigmoid(c)), so it is finite and accurate for logits of any size.
        """
        return (softplus(canvas) - x * canvas).flatten(1).sum(1)  # 9

    def least_loss_x(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """L^x of the best canvas of each image, its own intensities: their entropy, nats. 0 where pixels are bits."""
        return -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).flatten(1).sum(1)
