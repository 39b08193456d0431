"""The glimpses on the CPU in two calls, one forward and one backward: see glimpses.cpp.

What `DRAW.unroll` computes, up to rounding, several times as fast to train: nothing of a glimpse waits for Python,
threads wait for each other once a pass, memory is used again, and the gradient of each weight is one product over all
glimpses. Only the paper's own pieces are known here, see `supports`.
"""

import ctypes
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from draw.attention import AttentiveRead, AttentiveWrite
from draw.kernels import BLOCK, FILL, Sizes, load
from draw.model import DRAW
from draw.native import has_the_papers_pieces, unroll_for_kernels, use_up
from draw.types import Unroll

SPARE = 2  # memories of a kind that are kept for later passes


def supports(model: DRAW) -> bool:
    """Whether the kernels know a model: the paper's own pieces, on the CPU."""
    return has_the_papers_pieces(model) and all(weight.device.type == "cpu" for weight in model.parameters())


def sizes_of(model: DRAW) -> Sizes:
    """What the kernels for a model are compiled for."""
    c = model.config
    read_n = model.read.n if isinstance(model.read, AttentiveRead) else 0
    write_n = model.write.patch_shape[-1] if isinstance(model.write, AttentiveWrite) else 0
    return Sizes(*c.image_shape, read_n, write_n, c.enc_size, c.dec_size, c.z_size)


def unroll_for(model: DRAW, precision: torch.dtype = torch.float32, library: ctypes.CDLL | None = None) -> Unroll:
    """The glimpses of a model that `supports` allows, by the kernels.

    Args:
        model: Its weights are read at each call.
        precision: float32 or bfloat16, of the factors of matrix products; in bfloat16 the gates are kept so too. Sums
            are float32, as is everything else.
        library: The kernels compiled for that; by default for this processor.

    Raises:
        UserError: If the kernels cannot be compiled.
    """
    made = library or _library(sizes_of(model), precision)
    spare: dict[bool, list[dict[str, Tensor]]] = {False: [], True: []}  # of each kind
    return unroll_for_kernels(
        model, lambda keep, *tensors: Glimpses.apply(_Plan(model, precision, made, keep, spare), *tensors)
    )


def _library(sizes: Sizes, precision: torch.dtype) -> ctypes.CDLL:
    if precision == torch.float32:
        return load(sizes)
    library = load(sizes, ("-DBFLOAT16",))
    return library if library.draw_allowed() else load(sizes, ("-DBFLOAT16", "-DNO_AMX"))


class _Plan:
    """What a pass over the glimpses needs to know of a model, and the memory that the passes before it have left."""

    def __init__(
        self,
        model: DRAW,
        precision: torch.dtype,
        library: ctypes.CDLL,
        keep: bool,
        spare: dict[bool, list[dict[str, Tensor]]],
    ) -> None:
        c = model.config
        self.precision, self.library, self.spare = precision, library, spare
        self.keep = keep  # every glimpse's values, for the backward pass; otherwise two glimpses' at a time
        self.e, self.d, self.z = c.enc_size, c.dec_size, c.z_size
        self.width = c.width

    def memory(self, steps: int, x: Tensor, r: int, heads: int) -> dict[str, Tensor]:
        """Where a pass keeps its values.

        Some hundred megabytes, of which the system would have to clear every page: so they are used again.
        """
        b, rows = len(x), steps + 1 if self.keep else 2
        e, d, z = self.e, self.d, self.z
        floats = {
            "r": (rows, b, r),
            "s_enc": (rows, b, e),
            "s_dec": (rows, b, d),
            "canvas": (rows, *x.shape),
            "heads": (rows, b, heads),
        }
        factors = {
            "enc_in": (rows, _columns(r, d, e)),
            "dec_in": (rows, _columns(z, d)),
            "gates_enc": (rows, _columns(4 * e)),
            "gates_dec": (rows, _columns(4 * d)),
        }
        if self.keep:
            factors |= {
                "d_post": (steps, _columns(2 * z)),
                "d_heads": (steps + 1, _columns(heads)),
            }
        spare = self.spare[self.keep]
        while spare:
            memory = spare.pop()
            if memory["canvas"].shape == floats["canvas"]:
                return memory
        # Zeros, as the columns that fill up are never written; and more rows, as whole blocks of them are read.
        return {name: x.new_empty(shape) for name, shape in floats.items()} | {
            name: x.new_zeros(count * b + BLOCK, columns, dtype=self.precision)
            for name, (count, columns) in factors.items()
        }

    def give_back(self, memory: dict[str, Tensor]) -> None:
        """Keep what a pass has done with for a later one."""
        spare = self.spare[self.keep]
        if len(spare) < SPARE and not memory["canvas"].is_inference():
            spare.append(memory)


class Glimpses(torch.autograd.Function):
    """Eqs. 3-8. What feeds a product lies as the product wants it, glimpse by glimpse:

    enc_in [r, h_dec, h_enc] (of r, without attention, the error image alone), dec_in [z, h_dec], and the outputs of
    products gates_enc, gates_dec, q = [mu, log sigma] and heads = [read window, write window, patch], of which row t is
    made by h_dec after t glimpses.
    """

    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, eps: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """From the first state and the weights to the last state, mu and log sigma (t, b, z)."""
        h_enc, s_enc, h_dec, s_dec, canvas = tensors[:5]
        enc, enc_bias, dec, dec_bias, post, post_bias, head, head_bias = tensors[5:]
        steps, b = eps.shape[:2]
        r = enc.shape[1] - plan.e - plan.d
        x, eps = filled(x), eps.contiguous()
        enc, dec = _apart(enc, r, plan.d, plan.e), _apart(dec, plan.z, plan.d)
        memory = plan.memory(steps, x, r, len(head))
        memory["s_enc"][0], memory["s_dec"][0], memory["canvas"][0] = s_enc, s_dec, filled(canvas)
        h_enc, h_dec = (h.clone(memory_format=torch.contiguous_format) for h in (h_enc, h_dec))
        z, q = x.new_empty(b, plan.z), x.new_empty(steps, b, 2 * plan.z)
        rows = len(memory["canvas"])
        each = enc_bias.stride(0) > 0  # of an image has a bias of its own
        biases = (enc_bias if each else enc_bias[0], dec_bias, post_bias, head_bias)
        names = ("enc_in", "dec_in", "gates_enc", "gates_dec", "r", "s_enc", "s_dec", "canvas", "heads")
        _run(
            plan.library.draw_forward,
            (x, eps, *(_packed(plan, weight) for weight in (enc, dec, post, head)), *biases),
            (*(memory[name] for name in names), z, q, h_enc, h_dec),
            steps, rows, b if each else 1,
        )  # fmt: skip
        last = steps % rows
        s_enc, s_dec = memory["s_enc"][last].clone(), memory["s_dec"][last].clone()
        canvas = memory["canvas"][last, ..., : plan.width].clone(memory_format=torch.contiguous_format)
        if plan.keep:
            ctx.plan, ctx.names, ctx.each, ctx.spent = plan, tuple(memory), each, False
            ctx.save_for_backward(x, eps, q, enc, dec, post, head, *memory.values())
        else:
            plan.give_back(memory)
        return h_enc, s_enc, h_dec, s_dec, canvas, *q.chunk(2, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Back through the glimpses with the gradients of states alone, then each weight's in one product."""
        use_up(ctx)
        plan = ctx.plan
        x, eps, q, enc, dec, post, head, *kept = ctx.saved_tensors
        memory = dict(zip(ctx.names, kept, strict=True))
        e, d, z, r = plan.e, plan.d, plan.z, memory["r"].shape[-1]
        steps, b = eps.shape[:2]
        *d_state, d_canvas = (grad.clone(memory_format=torch.contiguous_format) for grad in grads[:5])
        d_state.append(filled(d_canvas))
        d_q = torch.cat(grads[5:], dim=-1)
        biases = [x.new_zeros(b, len(weight)) for weight in (enc, dec, post, head)]
        of_h_dec, of_h_enc = _columns(r), _columns(r, d)  # where they begin in enc_in
        names = ("r", "s_enc", "s_dec", "canvas", "heads")
        transposed = (_packed(plan, weight.mT) for weight in (enc, dec, post, head))
        _run(
            plan.library.draw_backward,
            (x, eps, *transposed, *(memory[name] for name in names), q),
            (memory["gates_enc"], memory["gates_dec"], d_q, *d_state, memory["d_post"], memory["d_heads"], *biases),
            steps, b if ctx.each else 1,
        )  # fmt: skip

        def product(name: str, rows: Tensor, outputs: int) -> Tensor:
            d_out = memory[name][: len(rows)]
            return (d_out.mT @ rows)[:outputs].float()

        enc_in, dec_in = memory["enc_in"][: (steps + 1) * b], memory["dec_in"][: steps * b]
        d_enc = _together(product("gates_enc", enc_in[: steps * b], 4 * e), r, d, e)
        d_dec = _together(product("gates_dec", dec_in, 4 * d), z, d)
        d_post = product("d_post", enc_in[b:, of_h_enc : of_h_enc + e], 2 * z)
        d_head = product("d_heads", enc_in[:, of_h_dec : of_h_dec + d], len(head))
        plan.give_back(memory)
        d_enc_bias, *d_biases = biases
        of_weights = (bias.sum(0) for bias in d_biases)
        d_weights = (d_enc, d_enc_bias, *itertools.chain(*zip((d_dec, d_post, d_head), of_weights, strict=True)))
        d_state[4] = d_state[4][..., : plan.width]
        return None, None, None, *d_state, *d_weights


def _columns(*sizes: int) -> int:
    """How many columns parts of these sizes take, each filled up to whole blocks."""
    return sum(-(-size // BLOCK) * BLOCK for size in sizes)


def _apart(weight: Tensor, *sizes: int) -> Tensor:
    """Columns for parts of these sizes, each filled up with zeros as what they are multiplied with is."""
    return torch.cat([pad(part, (0, -part.shape[1] % BLOCK)) for part in weight.split(sizes, dim=1)], dim=1)


def _together(weight: Tensor, *sizes: int) -> Tensor:
    """The columns of the parts alone, what `_apart` undoes."""
    parts = weight.split([_columns(size) for size in sizes], dim=1)
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)


def filled(images: Tensor) -> Tensor:
    """A copy, each line of pixels filled up with zeros, as the kernels read them."""
    width = images.shape[-1]
    copy = images.new_zeros(*images.shape[:-1], -(-width // FILL) * FILL)
    copy[..., :width] = images
    return copy


def _packed(plan: _Plan, weight: Tensor) -> Tensor:
    """W (n, k) in the order in which products read it."""
    n, k = weight.shape
    packed = weight.new_empty(_columns(n) * _columns(k), dtype=plan.precision)
    place, strides = ctypes.c_void_p(weight.data_ptr()), map(ctypes.c_int64, weight.stride())
    plan.library.draw_pack(place, n, k, *strides, ctypes.c_void_p(packed.data_ptr()), torch.get_num_threads())
    return packed


def _run(function: Any, read: tuple[Tensor, ...], written: tuple[Tensor, ...], *sizes: int) -> None:
    """Call a pass with the places of its tensors, in the order of its struct, and its sizes."""
    tensors = [tensor.contiguous() for tensor in read] + list(written)
    fields = (ctypes.c_int64 * (len(tensors) + len(sizes)))(*(tensor.data_ptr() for tensor in tensors), *sizes)
    b = len(tensors[0])
    if function(fields, len(fields), b, min(torch.get_num_threads(), b)):
        raise RuntimeError(f"{function.__name__} has not the {len(fields)} fields that it was called with")
