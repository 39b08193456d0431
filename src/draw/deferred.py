"""The plain model's glimpses, with the gradient of each weight left to one product over all of them.

For any pieces on any device. Forward, the model's own step runs under `_Marked`, a mode that sees every linear layer
and runs it as `_Layer`: with a copy of its weights that has no gradient, and beside a mark, a tensor (b, out) that is
never read. `_Inputs` keeps what the layers were given. Backward, `_Layer` hands on the gradient of its input, and
gives that of its output to its mark. The marks of a layer are the slices of one tensor (t, b, out) that `_Gradients`
made before the first glimpse. So the backward pass comes to `_Gradients` last, with the outputs' gradients of all
glimpses; by the inputs of all glimpses it makes of them each weight's gradient in one product, instead of T products
and T sums.

Here the precision of the layers' products is set too. What is no layer of rows with a weight and a bias of its own,
such as one whose weight is computed, runs as it is.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from draw.errors import UserError
from draw.model import DRAW, in_use, stack
from draw.types import Gaussian, Latent, State, Unroll


def unroll_for(model: DRAW, precision: torch.dtype = torch.float32, *, compiled: bool = False) -> Unroll:
    """The glimpses of any model.

    Args:
        model: Its weights are read at each call.
        precision: Of the factors and the result of the layers' products; all else is as it was.
        compiled: Fuse what is around the products by torch.compile.

    Raises:
        UserError: When called, if a glimpse uses other layers than the first, or the same ones in another order.
    """
    layers = _Listed()
    listed: list[Tensor] = []  # the weights of the model at that time

    def step(
        state: State,
        eps: Tensor,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        marks: list[Tensor],
        own: list[Tensor],
    ) -> tuple[State, Latent, list[Tensor], bool]:
        inputs: list[Tensor] = []
        expected: list[bool] = []
        with _Marked(weights, biases, marks, own, inputs, expected):
            state, trace = model.step(state, eps, x)
        return state, trace.latent, inputs, all(expected) and len(expected) == len(own)

    steps: dict[torch.Size, Callable[..., tuple[State, Latent, list[Tensor], bool]]] = {}

    def step_for(shape: torch.Size) -> Callable[..., tuple[State, Latent, list[Tensor], bool]]:
        if not compiled:
            return step
        if shape not in steps:
            # A function of its own for each shape, since the compiler gives up on the ninth shape of one.
            fresh = FunctionType(
                step.__code__.replace(), step.__globals__, step.__name__, step.__defaults__, step.__closure__
            )
            steps[shape] = torch.compile(fresh, dynamic=False, fullgraph=True)
        return steps[shape]

    def unroll(state: State, eps: Tensor, x: Tensor | None = None) -> tuple[State, Latent]:
        nonlocal layers, listed
        if x is None:
            return model.unroll(state, eps)
        if [*map(id, listed)] != [*map(id, model.parameters())]:
            layers, listed = _Listed(), list(model.parameters())
            _look(model, layers, State(*(value[:1] for value in state)), eps[0, :1], x[:1])
        run = step_for(x.shape)
        inputs: dict[int, tuple[Tensor, ...]] = {}  # of each glimpse's layers, once the backward pass comes to it
        marks = _Gradients.apply(inputs, *eps.shape[:2], precision, *layers.weights, *layers.biases)
        weights = [weight.detach().to(precision) for weight in layers.weights]
        biases = [bias.detach() for bias in layers.biases]
        state = State(*(value.contiguous() for value in state))  # one layout, hence one compiled step
        latents = []
        for t, (eps_t, *marks_t) in enumerate(zip(eps, *(mark.unbind() for mark in marks), strict=True)):
            state, (z, q, p), used, same = run(state, eps_t, x, weights, biases, marks_t, layers.weights)
            if not same:
                raise UserError(
                    "a piece of this network uses other layers in one glimpse than in another: it needs float32, and "
                    "--compile off on CUDA"
                )
            assert q is not None  # as there is an image
            z, mu, log_sigma, *values = _Inputs.apply(
                inputs, t, len(used), *(value.detach() for value in used), z, *q, *state
            )
            state = State(*values)
            latents.append(Latent(z, Gaussian(mu, log_sigma), p))
        return state, stack(latents)

    return unroll


@torch.no_grad()
def _look(model: DRAW, layers: "_Listed", state: State, eps: Tensor, x: Tensor) -> None:
    """Run a glimpse of one image, to see which layers it uses in what order.

    Not in training mode, in which it would count in a piece's statistics of batches, or draw.
    """
    with in_use(model), layers:
        model.step(state, eps, x)


def _layer(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor] | None:
    """The operands of `linear` if they are those of a layer."""
    if isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter) and input.ndim == 2:
        return input, weight, bias
    return None


class _Listed(TorchFunctionMode):
    """Lists the weight and bias of every layer that runs within it."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is linear and (layer := _layer(*args, **kwargs)):
            self.weights.append(layer[1])
            self.biases.append(layer[2])
        return func(*args, **kwargs)


class _Marked(TorchFunctionMode):
    """Runs every layer within it as `_Layer`, lists the inputs, and whether each is the layer of `own` at its place."""

    def __init__(
        self,
        weights: list[Tensor],
        biases: list[Tensor],
        marks: list[Tensor],
        own: list[Tensor],
        inputs: list[Tensor],
        expected: list[bool],
    ) -> None:
        super().__init__()
        self.weights, self.biases, self.marks, self.own = weights, biases, marks, own
        self.inputs, self.expected = inputs, expected

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        layer = _layer(*args, **kwargs) if func is linear else None
        if layer is None:
            return func(*args, **kwargs)
        index = len(self.expected)
        self.expected.append(index < len(self.own) and layer[1] is self.own[index])
        if not self.expected[-1]:
            return func(*args, **kwargs)
        self.inputs.append(layer[0])
        return _Layer.apply(layer[0], self.weights[index], self.biases[index], self.marks[index])


class _Layer(torch.autograd.Function):
    """A linear layer whose output's gradient goes to a mark, a tensor that is never read, and not to its weight."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, mark: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        if weight.dtype == input.dtype:
            return linear(input, weight, bias)
        return linear(input.to(weight.dtype), weight).to(input.dtype) + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return (grad.to(weight.dtype) @ weight).to(grad.dtype), None, None, grad


class _Inputs(torch.autograd.Function):
    """Nothing to what a glimpse gives; the inputs of its layers are kept as autograd keeps tensors.

    So that what is computed again in the backward pass need not be kept until then. There they are put into a table.
    """

    @staticmethod
    def forward(ctx: Any, table: dict[int, tuple[Tensor, ...]], t: int, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.table, ctx.t = table, t
        ctx.save_for_backward(*tensors[:n])
        return tensors[n:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.table[ctx.t] = inputs = ctx.saved_tensors  # asked for once: it may compute the glimpses again
        return None, None, None, *[None] * len(inputs), *grads


class _Gradients(torch.autograd.Function):
    """The marks (t, b, out) of all layers; their gradients, complete after the first glimpse's, become the weights'."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: dict[int, tuple[Tensor, ...]],
        steps: int,
        b: int,
        precision: torch.dtype,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.inputs, ctx.precision = inputs, precision
        weights = parameters[: len(parameters) // 2]
        return tuple(weight.new_zeros(()).expand(steps, b, len(weight)) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_weights, d_biases = [], []
        steps = sorted(ctx.inputs)  # all but the last ones, if no gradient comes to these
        for grad, inputs in zip(grads, zip(*(ctx.inputs[t] for t in steps), strict=True), strict=True):
            d_out = grad[: len(steps)].flatten(0, 1)
            product = d_out.to(ctx.precision).mT @ torch.cat(inputs).to(ctx.precision)
            d_weights.append(product.to(grad.dtype))
            d_biases.append(d_out.sum(0))
        return None, None, None, None, *d_weights, *d_biases
