"""What the kernels of cpu.py and cuda.py ask of a model and of a call: they know only the paper's own pieces."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from draw.attention import AttentiveRead, AttentiveWrite, FullRead
from draw.distributions import rsample
from draw.model import DRAW
from draw.pieces import own_pieces
from draw.types import Gaussian, Latent, State, Unroll


def has_the_papers_pieces(model: DRAW) -> bool:
    """Whether a model is made of the paper's own pieces, in float32, as the kernels assume."""
    return not own_pieces(model) and all(weight.dtype == torch.float32 for weight in model.parameters())


def unroll_for_kernels(model: DRAW, glimpses: Callable[..., tuple[Tensor, ...]]) -> Unroll:
    """The glimpses of a model by kernels that know the paper's pieces.

    Args:
        model: Its weights are read at each call.
        glimpses: Called with whether to keep what a backward pass needs, then with x, eps, the state and the tensors of
            `_weights`; gives the last state, mu and log sigma (t, b, z).
    """
    device = model.canvas0.device  # whose memory the kernels read; the model may be moved to another later

    def unroll(state: State, eps: Tensor, x: Tensor | None = None) -> tuple[State, Latent]:
        # Generation is left to the plain model: it has no encoder, and no training to repay.
        if x is None or not len(x) or not _as_expected(model, device, state, eps, x):
            return model.unroll(state, eps, x)
        weights = _weights(model, x)
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*state, *weights))
        *after, mu, log_sigma = glimpses(keep, x, eps, *state, *weights)
        q = Gaussian(mu, log_sigma)
        p = Gaussian(*(value.expand(eps.shape) for value in model.prior(state.h_dec)))
        return State(*after), Latent(rsample(q, eps), q, p)

    return unroll


def _as_expected(model: DRAW, device: torch.device, state: State, eps: Tensor, x: Tensor) -> bool:
    """Whether the kernels may read these; the plain model says what is wrong with others, or knows how to use them."""
    c, b = model.config, len(x)
    image, enc, dec = (b, *c.image_shape), (b, c.enc_size), (b, c.dec_size)
    shapes = (enc, enc, dec, dec, image, (len(eps), b, c.z_size), image)
    values = (*state, eps, x)
    placed = (*values, model.canvas0)
    return (
        not any(value.requires_grad for value in (eps, x))
        and all(value.shape == shape for value, shape in zip(values, shapes, strict=True))
        and all(value.device == device and value.dtype == torch.float32 for value in placed)
    )


def _weights(model: DRAW, x: Tensor) -> tuple[Tensor, ...]:
    """Weight and bias of the encoder's and decoder's gates, of [mu, log sigma], and of all heads that h_dec feeds.

    The last are the read window's, the write window's and the patch's, those that there are, in this order. The
    encoder's bias has a row for each image. Without attention every read begins with the image itself (eq. 17): what
    that adds to the gates is part of these rows, computed once for all glimpses, and the weights are those of the rest.
    """
    whole: Any = model
    read, write = whole.read, whole.write
    heads: list[nn.Linear] = [read.to_window] if isinstance(read, AttentiveRead) else []
    heads += [write.to_window, write.to_patch] if isinstance(write, AttentiveWrite) else [write.to_stroke]
    groups = ([whole.encoder.to_gates], [whole.decoder.to_gates], [whole.to_mu, whole.to_log_sigma], heads)
    weight, bias, *others = (
        parts[0] if len(parts) == 1 else torch.cat(parts)
        for group in groups
        for parts in ([layer.weight for layer in group], [layer.bias for layer in group])
    )
    image = x.flatten(1)
    if not isinstance(read, FullRead):
        return weight, bias.expand(len(x), -1), *others
    of_image, weight = weight.split([image.shape[1], weight.shape[1] - image.shape[1]], dim=1)
    return weight, linear(image, of_image, bias).to(bias.dtype), *others  # which autocast would make bfloat16


def use_up(ctx: Any) -> None:
    """Refuse a second backward pass: the first one overwrites what it reads."""
    if ctx.spent:
        raise RuntimeError("the glimpses' kept values are used up: compute the loss again before a second backward")
    ctx.spent = True
