r"""The attention filterbank, eqs. 19-26: from a head's raw outputs to a window, its filters and its rectangle.

Pure functions. The paper counts pixels and filters from 1, here both count from 0: centres move by one pixel and
the filter at grid position i sits at (i - (N - 1)/2) strides from the window's centre.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from draw.types import Window


class Rectangle(NamedTuple):
    """A window as it is drawn in pictures, pixel coordinates from 0."""

    left: Float[Tensor, "*b"]
    top: Float[Tensor, "*b"]
    right: Float[Tensor, "*b"]
    bottom: Float[Tensor, "*b"]
    sigma: Float[Tensor, "*b"]  # the border's thickness, pixels


def window(raw: Float[Tensor, "b 5"], n: int, height: int, width: int) -> Window:
    r"""The window that a linear head asks for.

    .. math:: g_X = \tfrac{A+1}{2}(\tilde g_X + 1) - 1, \quad g_Y = \tfrac{B+1}{2}(\tilde g_Y + 1) - 1, \quad
              \delta = \tfrac{\max(A,B)-1}{N-1}\tilde\delta
    Eqs. 21-24. Differs: pixels count from 0, hence the -1. For N = 1 the stride plays no part; N - 1 is taken as 1.

    Args:
        raw: (g~_X, g~_Y, log sigma^2, log delta~, log gamma), eq. 21.
        n: Filters along each axis, at least 1.
        height: Image height B, pixels.
        width: Image width A, pixels.
    """
    raw_X, raw_Y, log_sigma2, log_delta, log_gamma = raw.unbind(-1)  # 21
    return Window(
        g_X=(width + 1) / 2 * (raw_X + 1) - 1,  # 22
        g_Y=(height + 1) / 2 * (raw_Y + 1) - 1,  # 23
        delta=(max(width, height) - 1) / max(n - 1, 1) * log_delta.exp(),  # 24
        sigma2=log_sigma2.exp(),
        gamma=log_gamma.exp(),
    )


def initial_raw(n: int, height: int, width: int, *, sigma: float, gamma: int) -> list[float]:
    """A head's bias (eq. 21) for a first window whose n filters tile the image's longer side.

    With zero bias a 2 x 2 window has a stride of the whole image and a sigma of one pixel: it sees four corner
    pixels, and the posterior collapses for thousands of steps.

    Args:
        n: Filters along each axis.
        height: Image height, pixels.
        width: Image width, pixels.
        sigma: Deviation of the filters, in strides.
        gamma: The intensity, as a power of the stride in pixels.
    """
    side = max(width, height)
    stride = side / n
    log_delta = math.log(stride * max(n - 1, 1) / max(side - 1, 1))
    return [0.0, 0.0, 2 * math.log(sigma * stride), log_delta, gamma * math.log(stride)]


def axis_filters(
    center: Float[Tensor, " b"], delta: Float[Tensor, " b"], sigma2: Float[Tensor, " b"], n: int, size: int
) -> Float[Tensor, "b {n} {size}"]:
    r"""Gaussian filters along one image axis.

    .. math:: \mu_i = g + (i - \tfrac{N-1}{2})\delta, \qquad
              F[i, a] = \operatorname{softmax}_a\bigl(-(a - \mu_i)^2 / 2\sigma^2\bigr)
    Eqs. 19 and 25 for X, 20 and 26 for Y. Differs: a and i count from 0, so that N/2 + 0.5 becomes (N - 1)/2.

    The normaliser needs no epsilon: a softmax over pixels is eqs. 25-26 exactly, wherever the window lies. A softmax
    is also unchanged when each row's exponents are shifted by a constant; the one chosen here is that of the pixel
    a0 nearest to mu_i, and (a - mu)^2 - (a0 - mu)^2 = (a - a0)(a + a0 - 2 mu). Written so, no square of a far centre
    is ever formed, and values and gradients stay finite in float32 for log sigma^2 and log delta of +-30.

    Args:
        center: Window centre g along this axis, pixels.
        delta: Stride, pixels.
        sigma2: Variance, pixels squared.
        n: Number of filters, at least 1.
        size: Pixels along the axis.

    Returns:
        Weights, non-negative; every row sums to 1.

    Example:
        >>> one = torch.ones(1)
        >>> axis_filters(center=2 * one, delta=one, sigma2=1e-3 * one, n=3, size=5).round().tolist()
        [[[0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0]]]
    """
    a = torch.arange(size, dtype=center.dtype, device=center.device)
    i = torch.arange(n, dtype=center.dtype, device=center.device)
    mu = (center[:, None] + (i - (n - 1) / 2) * delta[:, None])[..., None]  # 19, 20
    a0 = mu.detach().round().clamp(0, size - 1)
    shifted_square = (a - a0) * (a + a0 - 2 * mu)  # (a - mu)^2 - (a0 - mu)^2
    return torch.softmax(-shifted_square * (0.5 * sigma2.reciprocal())[:, None, None], dim=-1)  # 25, 26


def filterbank(
    window: Window, n: int, height: int, width: int
) -> tuple[Float[Tensor, "b {n} {width}"], Float[Tensor, "b {n} {height}"]]:
    """F_X and F_Y of eqs. 25 and 26."""
    F_X = axis_filters(window.g_X, window.delta, window.sigma2, n, width)
    F_Y = axis_filters(window.g_Y, window.delta, window.sigma2, n, height)
    return F_X, F_Y


def rectangle(window: Window, n: int) -> Rectangle:
    """The square that a window covers in pictures: centre (g_X, g_Y), side (N - 1) delta, border sqrt(sigma2)."""
    half = (n - 1) / 2 * window.delta
    return Rectangle(
        left=window.g_X - half,
        top=window.g_Y - half,
        right=window.g_X + half,
        bottom=window.g_Y + half,
        sigma=window.sigma2.sqrt(),
    )
