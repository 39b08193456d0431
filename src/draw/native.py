"""The glimpses on the CPU with fused kernels: the same numbers as `DRAW.unroll`, about twice as fast to train.

What makes it fast: everything but the matrix products is one loop per piece (kernels.cpp); what feeds a product is
written where the product reads it; and the gradient of each weight is one product over all glimpses. Only the paper's
own pieces are known here, see `supports`.
"""

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from draw.attention import AttentiveRead, AttentiveWrite, FullRead
from draw.distributions import rsample
from draw.kernels import FILL, Sizes, load
from draw.model import DRAW
from draw.pieces import own_pieces
from draw.types import Gaussian, Latent, State, Unroll


def has_the_papers_pieces(model: DRAW) -> bool:
    """Whether a model is made of the paper's own pieces, in float32, as the kernels assume."""
    return not own_pieces(model) and all(weight.dtype == torch.float32 for weight in model.parameters())


def supports(model: DRAW) -> bool:
    """Whether the kernels know a model: the paper's own pieces, on the CPU."""
    return has_the_papers_pieces(model) and all(weight.device.type == "cpu" for weight in model.parameters())


def sizes_of(model: DRAW) -> Sizes:
    """What the kernels for a model are compiled for."""
    read_n = model.read.n if isinstance(model.read, AttentiveRead) else 0
    write_n = model.write.patch_shape[-1] if isinstance(model.write, AttentiveWrite) else 0
    return Sizes(*model.config.image_shape, read_n, write_n)


def unroll_for(model: DRAW, precision: torch.dtype = torch.float32) -> Unroll:
    """The glimpses of a model that `supports` allows, by the kernels.

    Args:
        model: Its weights are read at each call.
        precision: Of the factors of matrix products; sums are float32, as is everything else.

    Raises:
        UserError: If the kernels cannot be compiled.
    """
    load(sizes_of(model))
    return unroll_for_kernels(model, lambda keep, *tensors: Glimpses.apply(_Plan(model, precision, keep), *tensors))


def unroll_for_kernels(model: DRAW, glimpses: Callable[..., tuple[Tensor, ...]]) -> Unroll:
    """The glimpses of a model by kernels that know the paper's pieces.

    Args:
        model: Its weights are read at each call.
        glimpses: Called with whether to keep what a backward pass needs, then with x, eps, the state and the tensors of
            `_weights`; gives the last state, mu and log sigma (t, b, z).
    """

    def unroll(state: State, eps: Tensor, x: Tensor | None = None) -> tuple[State, Latent]:
        # Generation is left to the plain model: it has no encoder, and no training to repay.
        if x is None or not len(x) or not _as_expected(model, state, eps, x):
            return model.unroll(state, eps, x)
        weights = _weights(model, x)
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*state, *weights))
        *after, mu, log_sigma = glimpses(keep, x, eps, *state, *weights)
        q = Gaussian(mu, log_sigma)
        p = Gaussian(*(value.expand(eps.shape) for value in model.prior(state.h_dec)))
        return State(*after), Latent(rsample(q, eps), q, p)

    return unroll


def _as_expected(model: DRAW, state: State, eps: Tensor, x: Tensor) -> bool:
    """Whether the kernels may read these; the plain model says what is wrong with others, or knows how to use them."""
    c, b = model.config, len(x)
    image, enc, dec = (b, *c.image_shape), (b, c.enc_size), (b, c.dec_size)
    shapes = (enc, enc, dec, dec, image, (len(eps), b, c.z_size), image)
    values = (*state, eps, x)
    return (
        not any(value.requires_grad for value in (eps, x))
        and all(value.shape == shape for value, shape in zip(values, shapes, strict=True))
        and all(value.device == model.canvas0.device and value.dtype == torch.float32 for value in values)
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


def filled(images: Tensor) -> Tensor:
    """A copy, each line of pixels filled up with zeros, as the kernels read them."""
    width = images.shape[-1]
    copy = images.new_zeros(*images.shape[:-1], -(-width // FILL) * FILL)
    copy[..., :width] = images
    return copy


def use_up(ctx: Any) -> None:
    """Refuse a second backward pass: the first one overwrites what it reads."""
    if ctx.spent:
        raise RuntimeError("the glimpses' kept values are used up: compute the loss again before a second backward")
    ctx.spent = True


class _Plan:
    """What the walk over the glimpses needs to know of a model."""

    def __init__(self, model: DRAW, precision: torch.dtype, keep: bool) -> None:
        config = model.config
        self.kernels = sizes_of(model)
        self.precision = precision
        self.keep = keep  # every glimpse's values, for the backward pass; otherwise two glimpses' at a time
        self.e, self.d, self.z = config.enc_size, config.dec_size, config.z_size
        self.image = config.image_shape
        # Of what is read, what changes from glimpse to glimpse; see `_weights`.
        self.r = model.read.features - (math.prod(self.image) if isinstance(model.read, FullRead) else 0)
        self.raw = 5 if self.kernels.read_n else 0  # where the write head's outputs begin in those of all heads


class Glimpses(torch.autograd.Function):
    """Eqs. 3-8, glimpse after glimpse. What feeds a product lies as the product wants it, glimpse by glimpse:

    enc_in [r, h_dec, h_enc] (of r, without attention, the error image alone), dec_in [z, h_dec], and the outputs of
    products gates_enc, gates_dec, q = [mu, log sigma] and heads = [read window, write window, patch], of which row t is
    made by h_dec after t glimpses.
    """

    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, eps: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """From the first state and the weights to the last state, mu and log sigma (t, b, z)."""
        kernels = load(plan.kernels)
        state, weights = tensors[:5], tensors[5:]
        e, d, z, r = plan.e, plan.d, plan.z, plan.r
        steps, b = eps.shape[:2]
        x, eps = filled(x), eps.contiguous()
        enc_bias, dec_bias = weights[1], weights[3]  # added by the kernels
        enc, dec, post, head = (
            _Product(weight, plan.precision, bias)
            for weight, bias in zip(weights[::2], (None, None, *weights[5::2]), strict=True)
        )

        rows = steps + 1 if plan.keep else 2
        new = functools.partial(torch.empty, dtype=x.dtype)
        enc_in, dec_in, heads = new(rows, b, r + d + e), new(rows, b, z + d), new(rows, b, len(head.weight))
        gates_enc, gates_dec = new(rows, b, 4 * e), new(rows, b, 4 * d)
        s_enc, s_dec, canvas = new(rows, b, e), new(rows, b, d), new(rows, *x.shape)
        q = new(steps, b, 2 * z)
        h_enc, h_dec = enc_in[..., r + d :], enc_in[..., r : r + d]

        h_enc[0], s_enc[0], h_dec[0], s_dec[0] = state[:4]
        dec_in[0, :, z:] = state[2]
        canvas[0] = filled(state[4])
        head(h_dec[0], heads[0])
        for t in range(steps):
            now, next = t % rows, (t + 1) % rows
            kernels.read_forward(
                b, _at(x), _at(canvas[now]), _at(heads[now]), heads.stride(1), *_rows(enc_in[now])
            )  # 3, 4
            enc(enc_in[now], gates_enc[now])
            kernels.lstm_forward(
                b, e, *_rows(enc_bias), _at(gates_enc[now]), _at(s_enc[now]), _at(s_enc[next]),
                *_rows(h_enc[next]), None, 0,
            )  # 5  # fmt: skip
            post(h_enc[next], q[t])  # 1, 2
            kernels.sample_forward(b, z, _at(q[t]), _at(eps[t]), *_rows(dec_in[now]))  # 6
            dec(dec_in[now], gates_dec[now])
            kernels.lstm_forward(
                b, d, _at(dec_bias), 0, _at(gates_dec[now]), _at(s_dec[now]), _at(s_dec[next]),
                *_rows(h_dec[next]), *_rows(dec_in[next, :, z:]),
            )  # 7  # fmt: skip
            head(h_dec[next], heads[next])
            kernels.write_forward(b, *_rows(heads[next, :, plan.raw :]), _at(canvas[now]), _at(canvas[next]))  # 8
        last = steps % rows
        if plan.keep:
            ctx.plan, ctx.spent = plan, False
            ctx.save_for_backward(
                x, eps, enc_in, dec_in, heads, gates_enc, gates_dec, s_enc, s_dec, canvas, q, *weights[::2]
            )
        after = (h_enc[last], s_enc[last], h_dec[last], s_dec[last], canvas[last, ..., : plan.image[-1]])
        return *(value.clone(memory_format=torch.contiguous_format) for value in after), *q.chunk(2, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Back through the glimpses with the gradients of states alone, then each weight's in one product."""
        use_up(ctx)
        plan = ctx.plan
        kernels = load(plan.kernels)
        x, eps, enc_in, dec_in, heads, gates_enc, gates_dec, s_enc, s_dec, canvas, q, *weights = ctx.saved_tensors
        e, d, z, r, raw = plan.e, plan.d, plan.z, plan.r, plan.raw
        steps, b = eps.shape[:2]
        enc, dec, post, head = (_Product(weight, plan.precision) for weight in weights)

        new = functools.partial(torch.empty, dtype=x.dtype)
        d_enc_in, d_dec_in, d_h_enc, d_h_dec = new(b, r + d + e), torch.zeros(b, z + d), new(b, e), new(b, d)
        d_heads = new(steps + 1, b, heads.shape[-1])
        d_heads[steps, :, :raw], d_heads[0, :, raw:] = 0, 0  # the last read and the first write are of no glimpse
        # Gradients of the last state and of q, in the places where a glimpse later's would lie.
        d_enc_in[:, r + d :], d_enc_in[:, r : r + d] = grads[0], grads[2]
        d_s_enc, d_s_dec = (grad.clone(memory_format=torch.contiguous_format) for grad in grads[1:4:2])
        d_canvas = filled(grads[4])
        d_q = torch.cat(grads[5:], dim=-1)
        for t in reversed(range(steps)):
            kernels.write_backward(b, *_rows(heads[t + 1, :, raw:]), _at(d_canvas), *_rows(d_heads[t + 1, :, raw:]))
            head.back(d_heads[t + 1], d_h_dec)
            kernels.lstm_backward(
                b, d, _at(gates_dec[t]), _at(s_dec[t]), _at(s_dec[t + 1]),
                *_rows(d_h_dec), *_rows(d_enc_in[:, r:]), *_rows(d_dec_in[:, z:]), _at(d_s_dec),
            )  # fmt: skip
            dec.back(gates_dec[t], d_dec_in)
            kernels.sample_backward(b, z, _at(q[t]), _at(eps[t]), *_rows(d_dec_in), _at(d_q[t]))
            post.back(d_q[t], d_h_enc)
            kernels.lstm_backward(
                b, e, _at(gates_enc[t]), _at(s_enc[t]), _at(s_enc[t + 1]),
                *_rows(d_h_enc), *_rows(d_enc_in[:, r + d :]), None, 0, _at(d_s_enc),
            )  # fmt: skip
            enc.back(gates_enc[t], d_enc_in)
            kernels.read_backward(
                b, _at(x), _at(canvas[t]), _at(heads[t]), heads.stride(1),
                *_rows(enc_in[t]), *_rows(d_enc_in), *_rows(d_heads[t]), _at(d_canvas),
            )  # fmt: skip
        head.back(d_heads[0], d_h_dec)
        d_h_dec += d_enc_in[:, r : r + d] + d_dec_in[:, z:]
        d_state = (d_enc_in[:, r + d :].clone(), d_s_enc, d_h_dec, d_s_dec, d_canvas[..., : plan.image[-1]])
        # The gates have become the gradients of their inputs.
        d_weights = (
            enc.weight_grad(gates_enc[:steps], enc_in[:steps]),
            gates_enc[:steps].sum(0),
            *dec.grads(gates_dec[:steps], dec_in[:steps]),
            *post.grads(d_q, enc_in[1:, :, r + d :]),
            *head.grads(d_heads, enc_in[:, :, r : r + d]),
        )
        return None, None, None, *d_state, *d_weights


class _Product:
    """A linear layer: its products with W, factors rounded to a precision."""

    def __init__(self, weight: Tensor, precision: torch.dtype, bias: Any = None) -> None:
        self.weight, self.bias, self.precision = weight.to(precision), bias, precision

    def __call__(self, rows: Tensor, out: Tensor) -> None:
        """out = rows W^T + bias, if there is one."""
        if self.precision != torch.float32:
            out.copy_(rows.to(self.precision) @ self.weight.mT)
        else:
            torch.mm(rows, self.weight.mT, out=out)
        if self.bias is not None:
            out += self.bias

    def back(self, d_out: Tensor, out: Tensor) -> None:
        """out = d_out W."""
        if self.precision == torch.float32:
            torch.mm(d_out, self.weight, out=out)
        else:
            out.copy_(d_out.to(self.precision) @ self.weight)

    def weight_grad(self, d_out: Tensor, rows: Tensor) -> Tensor:
        """The gradient by W, of all glimpses at once."""
        d_out, rows = (factor.flatten(0, 1).to(self.precision) for factor in (d_out, rows))
        return (d_out.mT @ rows).float()

    def grads(self, d_out: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients by W and bias, of all glimpses at once."""
        return self.weight_grad(d_out, rows), d_out.sum((0, 1))


def _at(tensor: Tensor) -> ctypes.c_void_p:
    """Where a tensor's values begin."""
    return ctypes.c_void_p(tensor.data_ptr())


def _rows(matrix: Tensor) -> tuple[ctypes.c_void_p, int]:
    """Where a matrix's values begin, and how far apart its rows are."""
    return ctypes.c_void_p(matrix.data_ptr()), matrix.stride(0)
