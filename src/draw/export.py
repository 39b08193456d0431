"""A model for the browser: its weights as one manifest and one binary, and the studio as one self-contained page.

The manifest is JSON: sizes, the kind of each piece, and where each tensor lies in the binary, which is float32, or
float16 where that loses nothing, little endian, followed by the example images, 8 bits a pixel. `web/draw.js` is driven
by it and knows nothing else of a model.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from draw.attention import AttentiveRead, AttentiveWrite, FullRead, FullWrite
from draw.config import to_dict
from draw.distributions import Bernoulli, StandardNormal
from draw.errors import UserError
from draw.model import DRAW, LSTM
from draw.pieces import in_words, own_pieces
from draw.render import write_whole

FORMAT = 1
WEB = Path(__file__).parent / "web"
# The page's, each after those it imports.
MODULES = (
    "draw.js", "gif.js", "state.js", "common.js", "view.js", "player.js", "paper.js", "watch.js", "reading.js",
    "controls.js", "app.js",
)  # fmt: skip
TRAINING = ("plot.js", "training.js")  # loaded by app.js where the page has that tab, from a server
WORKER = ("draw.js", "gif.js", "worker.js")

_KINDS: dict[type[Any], str] = {
    AttentiveRead: "attentive",
    FullRead: "full",
    AttentiveWrite: "attentive",
    FullWrite: "full",
    LSTM: "lstm",
    StandardNormal: "standard_normal",
    Bernoulli: "bernoulli",
}


def pack(
    model: DRAW,
    *,
    about: dict[str, Any] | None = None,
    examples: UInt8[Tensor, "n c h w"] | None = None,
    labels: Sequence[int] = (),
    latents: Sequence[int] | None = None,
) -> tuple[dict[str, Any], bytes]:
    """A model as its manifest and its binary.

    Args:
        model: With the default pieces; others have no counterpart in the browser.
        about: What the page says of the model: name, data, bound_nats (on validation images, or None); and binary:
            whether its pixels are bits.
        examples: Images to show the model, as it is to read them.
        labels: What is in each example, if known.
        latents: `model.telling_latents()`, if known.

    Raises:
        UserError: If a piece is not one the page knows, or a weight is not a finite number.
    """
    if own := own_pieces(model):
        raise UserError(f"cannot export a model with {in_words(own)}: the page knows the paper's pieces alone")
    pieces = {
        "read": _KINDS[type(model.read)],
        "cell": _KINDS[type(model.encoder)],
        "prior": _KINDS[type(model.prior)],
        "write": _KINDS[type(model.write)],
        "likelihood": _KINDS[type(model.likelihood)],
    }
    arrays = {name: tensor.detach().cpu().numpy().astype("<f4") for name, tensor in model.state_dict().items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"cannot export: {name} holds values that are no finite numbers")
    if halves := _as_halves(arrays):
        arrays = halves
    tensors, parts, offset = {}, [], 0
    for name, array in arrays.items():
        tensors[name] = {"shape": list(array.shape), "offset": offset}
        parts.append(array.tobytes())
        offset += array.nbytes
    manifest = {"format": FORMAT, "model": to_dict(model.config), "pieces": pieces}
    manifest |= {"weights": "float16" if halves else "float32", "tensors": tensors}
    manifest["latents"] = model.telling_latents() if latents is None else list(latents)
    manifest["about"] = (about or {}) | {"parameters": sum(p.numel() for p in model.parameters())}
    count = 0 if examples is None else len(examples)
    manifest["examples"] = {"offset": offset, "count": count, "labels": list(labels)}
    if examples is not None:
        parts.append(examples.cpu().contiguous().numpy().tobytes())
        offset += math.prod(examples.shape)
    manifest["bytes"] = offset
    return manifest, b"".join(parts)


def _as_halves(arrays: dict[str, Any]) -> dict[str, Any] | None:
    """The same values at half the width, None if they would not be the same."""
    with np.errstate(over="ignore"):
        halves = {name: array.astype("<f2") for name, array in arrays.items()}
    return halves if all(np.array_equal(halves[name], array) for name, array in arrays.items()) else None


def page(manifest: dict[str, Any], binary: bytes) -> str:
    """The studio with this model as one HTML text that asks nothing of any other file or host.

    A strict Content-Security-Policy allows exactly the script and the style in it, by their hashes, and workers made
    of its own text; weights and the worker's source are inert blocks of data.
    """
    script, worker, style = bundle(MODULES), bundle(WORKER), (WEB / "style.css").read_text(encoding="utf-8")
    data = {
        "manifest": ("application/json", json.dumps(manifest, allow_nan=False).replace("<", "\\u003c")),
        "worker-source": ("text/plain", worker),
        "weights": ("text/plain", base64.b64encode(binary).decode("ascii")),
    }
    blocks = [f'<script type="{kind}" id="{name}">{text}</script>' for name, (kind, text) in data.items()]
    # Before the weights, and async: while they are still being parsed, the worker starts.
    blocks.insert(-1, f'<script type="module" async>{script}</script>')
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; worker-src blob:; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    html = index(training=False)
    for old, new in {
        "<!-- policy -->": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<link rel="stylesheet" href="style.css">': f"<style>{style}</style>",
        '<script type="module" src="app.js"></script>': "\n".join(blocks),
    }.items():
        before, found, after = html.partition(old)
        assert found, old
        html = before + new + after
    return html


def index(*, training: bool) -> str:
    """The page's HTML, with or without the tab of runs in training, which needs a server."""
    html = (WEB / "index.html").read_text(encoding="utf-8")
    return html if training else re.sub(r"<!-- training -->.*?<!-- /training -->\n", "", html, flags=re.DOTALL)


def write_page(path: Path, manifest: dict[str, Any], binary: bytes) -> None:
    """Write `page` whole or not at all; its folder is made if need be.

    Raises:
        UserError: If the name is not a page's, or the file cannot be written.
    """
    require_html(path)
    text = page(manifest, binary).encode("utf-8")
    write_whole(path, lambda file: file.write(text))


def require_html(path: Path) -> None:
    """Check that a page's name says what it is, so that no other file is overwritten by mistake.

    Raises:
        UserError: If it does not end in .html.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"cannot write a page to {path}: the name must end in .html")


def bundle(names: Sequence[str]) -> str:
    """The modules of `web/` as one script, in the given order, without what joined them: `import` and `export`.

    A file opened from disk may import no other, and under node every name that two modules both define is an error.
    """
    sources = [(WEB / name).read_text(encoding="utf-8") for name in names]
    text = "\n".join(re.sub(r"^import [^;]*;\n|^export ", "", source, flags=re.MULTILINE) for source in sources)
    assert "</script" not in text.lower()
    return text


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
