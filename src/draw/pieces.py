"""Whether a network is made of the paper's pieces, which the kernels, the page and a loader know, or of others."""

from collections.abc import Callable, Mapping

from torch import nn

from draw.attention import AttentiveRead, AttentiveWrite, FullRead, FullWrite, WindowHead
from draw.distributions import Bernoulli, StandardNormal
from draw.model import DRAW, LSTM

PAPERS = frozenset(
    {DRAW, AttentiveRead, FullRead, WindowHead, LSTM, StandardNormal, AttentiveWrite, FullWrite, Bernoulli, nn.Linear}
)
# Makes a network from a ModelConfig; a new run's also gets `mean_pixel` and `seed`, as `DRAW` does.
Build = Callable[..., DRAW]


def own_pieces(model: DRAW) -> dict[str, str]:
    """What of a network is not the paper's own, by name: its type. Nothing of `DRAW(config)`.

    By exact type, since a subclass may compute anything; as may a module with hooks, or with a method of its own.
    """
    own = {}
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        changed = any(hooks) or any(callable(value) for value in vars(module).values())
        if type(module) not in PAPERS or changed:
            own[name or "network"] = type(module).__qualname__ + (" with hooks" if changed else "")
        elif isinstance(module, nn.Linear) and module.bias is None:
            own[name] = "Linear without a bias"
    for name, piece, n in (
        ("read", model.read, model.config.read_n),
        ("write", model.write, model.config.write_n),
    ):
        if name not in own and (given := _window_size(piece)) != n:
            own[name] = f"{type(piece).__qualname__} of N={given}"
    return own


def _window_size(piece: object) -> int | None:
    """N of a piece of the paper's; None without attention."""
    if isinstance(piece, AttentiveWrite):
        return piece.patch_shape[-1]
    return piece.n if isinstance(piece, AttentiveRead) else None


def in_words(own: Mapping[str, str]) -> str:
    """Such pieces in a message."""
    return ", ".join(f"{name} {kind}" for name, kind in own.items()) or "the paper's pieces"
