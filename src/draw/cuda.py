"""The glimpses on a CUDA device in two launches, one forward and one backward, in bfloat16: see glimpses.cu.

What `DRAW.unroll` computes, with the factors of the LSTMs' and the posterior's products rounded to bfloat16. All
glimpses of a batch are one kernel, since a launch for every operation of a glimpse takes longer than the operation.
Only the paper's own pieces with attention are known here, in the sizes that `supports` allows.
"""

import ctypes
import functools
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from draw.attention import AttentiveRead, AttentiveWrite
from draw.errors import UserError
from draw.kernels import CudaSizes, load_cuda
from draw.model import DRAW
from draw.native import has_the_papers_pieces, unroll_for_kernels
from draw.types import Unroll

IMAGES = 16  # of a cluster of thread blocks; a batch is filled up to a multiple
Z_COLUMNS = 128  # of the latents in products
BF16 = torch.bfloat16


def supports(model: DRAW) -> bool:
    """Whether the kernels know a model: the paper's pieces with attention, on grey images of at most 32 x 32 pixels,
    windows of at most 4 x 4 to read and 8 x 8 to write, LSTMs of 128 or 256 units, fewer than 128 latents."""
    c = model.config
    return (
        has_the_papers_pieces(model)
        and isinstance(model.read, AttentiveRead)
        and isinstance(model.write, AttentiveWrite)
        and (c.channels, c.enc_size) == (1, c.dec_size)
        and c.enc_size in (128, 256)
        and c.z_size < Z_COLUMNS
        and max(c.height, c.width) <= 32
        and model.read.n <= 4
        and model.write.patch_shape[-1] <= 8
    )


def sizes_of(model: DRAW) -> CudaSizes:
    """What the kernels for a model are compiled for."""
    c, whole = model.config, cast(Any, model)
    return CudaSizes(c.height, c.width, whole.read.n, whole.write.patch_shape[-1], c.enc_size, c.z_size)


def unroll_for(model: DRAW, library: ctypes.CDLL | None = None) -> Unroll:
    """The glimpses of a model that `supports` allows, by the kernels.

    Args:
        model: Its weights are read at each call.
        library: The compiled kernels; by default those for the device that the model is on.

    Raises:
        UserError: If the kernels cannot be compiled, or the device has no clusters of 16 thread blocks.
    """
    device = model.canvas0.device
    if library is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < (9, 0):
            raise UserError("they need a device of compute capability 9.0, this one has {}.{}".format(*capability))
        library = load_cuda(sizes_of(model), capability)
        if (clusters := library.draw_clusters(device.index or 0)) < 1:
            why = f" ({_error(library, -clusters)})" if clusters else ""
            raise UserError(f"this device runs no clusters of 16 thread blocks{why}")
    return unroll_for_kernels(model, lambda keep, *tensors: Glimpses.apply(_Plan(model, library, keep), *tensors))


class _Plan:
    """What a pass over the glimpses needs to know of a model."""

    def __init__(self, model: DRAW, library: ctypes.CDLL, keep: bool) -> None:
        self.library = library
        self.keep = keep  # every glimpse's values, for the backward pass; otherwise two glimpses' at a time
        self.n, self.z = model.config.enc_size, model.config.z_size
        self.r = model.read.features
        self.image = model.config.image_shape

    def prepared(self, *weights: Tensor) -> list[Tensor]:
        """The encoder's, decoder's and posterior's weights in bfloat16 and in the kernels' columns, then transposed."""
        n, new = self.n, functools.partial(weights[0].new_empty, dtype=BF16)
        shapes = ((4 * n, _r_columns(self.r) + 2 * n), (4 * n, Z_COLUMNS + n), (2 * Z_COLUMNS, n))
        made = [*(new(shape) for shape in shapes), *(new(shape[::-1]) for shape in shapes)]
        _launch(self.library, "prepare", [*(weight.contiguous() for weight in weights), *made])
        return made


class Glimpses(torch.autograd.Function):
    """Eqs. 3-8, as `draw.cpu.Glimpses`: what is kept has the same names and lies glimpse by glimpse."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, eps: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """From the first state and the weights to the last state, mu and log sigma (t, b, z)."""
        enc, enc_bias, dec, dec_bias, post, post_bias, head, head_bias = tensors[5:]
        n, z, steps, count = plan.n, plan.z, eps.shape[0], eps.shape[1]
        x, *state = (_filled(value.flatten(1)) for value in (x, *tensors[:5]))
        eps, b = _filled(eps, 1), len(x)
        w_enc, w_dec, w_q, *transposed = plan.prepared(enc, dec, post)
        b_q = pad(post_bias.view(2, z), (0, Z_COLUMNS - z)).flatten()
        rows = steps + 1 if plan.keep else 2
        kept = {
            "enc_in": x.new_empty(rows, b, w_enc.shape[1], dtype=BF16),
            "dec_in": x.new_empty(rows, b, Z_COLUMNS, dtype=BF16),
            "gates_enc": x.new_empty(rows, b, n, 4),
            "gates_dec": x.new_empty(rows, b, n, 4),
            "s_enc": x.new_empty(rows, b, n),
            "s_dec": x.new_empty(rows, b, n),
            "canvas": x.new_empty(rows, b, x.shape[1]),
            "heads": x.new_empty(rows, b, len(head)),
            "q": x.new_empty(steps, b, 2 * z),
        }
        h_enc, h_dec = x.new_empty(b, n), x.new_empty(b, n)
        enc_bias = enc_bias[0].contiguous()  # a row for each image, all the same with attention
        inputs = (x, eps, *state, w_enc, w_dec, w_q, enc_bias, dec_bias, b_q, head, head_bias)
        _launch(plan.library, "forward", [*inputs, *kept.values(), h_enc, h_dec], steps, b, rows)
        if plan.keep:
            ctx.plan, ctx.count = plan, count
            ctx.save_for_backward(x, eps, head, *transposed, *kept.values())
        last = steps % rows
        s_enc, s_dec, canvas = (kept[name][last] for name in ("s_enc", "s_dec", "canvas"))
        after = (h_enc, s_enc, h_dec, s_dec, canvas.view(b, *plan.image))
        return *(value[:count] for value in after), *(part[:, :count] for part in kept["q"].split(z, dim=-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Back through the glimpses with the gradients of states alone, then each weight's in one product."""
        plan, count = ctx.plan, ctx.count
        x, eps, head, *transposed, enc_in, dec_in, gates_enc, gates_dec, s_enc, s_dec, canvas, heads, q = (
            ctx.saved_tensors
        )
        n, z, r = plan.n, plan.z, plan.r
        steps, b = q.shape[:2]
        d_state = [_filled(grad.flatten(1)).clone() for grad in grads[:5]]
        d_q = _filled(torch.cat(grads[5:], dim=-1), 1)
        d_gates_enc = x.new_empty(steps, b, 4 * n, dtype=BF16)
        d_gates_dec = x.new_empty(steps, b, 4 * n, dtype=BF16)
        d_post = x.new_empty(steps, b, 2 * Z_COLUMNS, dtype=BF16)
        d_heads = x.new_empty(steps + 1, b, -(-len(head) // 8) * 8, dtype=BF16)
        inputs = (x, eps, gates_enc, gates_dec, s_enc, s_dec, canvas, heads, q, *transposed, head, d_q)
        _launch(plan.library, "backward", [*inputs, *d_state, d_gates_enc, d_gates_dec, d_post, d_heads], steps, b)

        def product(d_out: Tensor, rows: Tensor) -> Tensor:
            factors = d_out.flatten(0, 1).mT, rows.flatten(0, 1)
            return torch.mm(*factors, out_dtype=torch.float32) if x.is_cuda else (factors[0] @ factors[1]).float()

        # The column before h_dec, and the last one beside z, are ones: what they get is the gradient of the bias.
        h, one = _r_columns(r), _r_columns(r) - 1
        d_enc = product(d_gates_enc, enc_in[:steps])
        d_dec_z, d_dec_h = product(d_gates_dec, dec_in[:steps]), product(d_gates_dec, enc_in[:steps, :, h : h + n])
        d_q_rows = product(d_post, enc_in[1:]).view(2, Z_COLUMNS, -1)[:, :z].flatten(0, 1)
        d_head = product(d_heads, enc_in)[: len(head)]
        d_weights = (
            torch.cat([d_enc[:, :r], d_enc[:, h:]], dim=1),
            pad(d_enc[None, :, one], (0, 0, 0, count - 1)),  # of the rows of the bias, which are all the same
            torch.cat([d_dec_z[:, :z], d_dec_h], dim=1),
            d_dec_z[:, -1],
            d_q_rows[:, h + n :],
            d_q_rows[:, one],
            d_head[:, h : h + n],
            d_head[:, one],
        )
        d_state[4] = d_state[4].view(b, *plan.image)
        return None, None, None, *(grad[:count] for grad in d_state), *d_weights


def _r_columns(r: int) -> int:
    """Of what is read, in products, and at least one more."""
    return (r // 16 + 1) * 16


def _filled(value: Tensor, axis: int = 0) -> Tensor:
    """With images of zeros up to a multiple of those of a cluster."""
    more = -value.shape[axis] % IMAGES
    return pad(value, (0, 0) * (value.ndim - 1 - axis) + (0, more)).contiguous() if more else value.contiguous()


def _launch(library: ctypes.CDLL, which: str, tensors: list[Tensor], *sizes: int) -> None:
    """Call one of the kernels with the places of its tensors, in the order of its struct, and its sizes."""
    device = tensors[0].device
    places = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    launch = getattr(library, f"draw_{which}")
    if device.type == "cuda":
        with torch.cuda.device(device):  # which the launch sets, and this puts back
            error = launch(places, *sizes, device.index, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
    else:
        error = launch(places, *sizes, 0, None)
    if error:
        raise RuntimeError(f"the {which} pass cannot be launched: {_error(library, error)}")


def _error(library: ctypes.CDLL, code: int) -> str:
    library.draw_error.restype = ctypes.c_char_p
    return str(library.draw_error(code).decode())
