"""What was measured: Table 1 of the paper with ours beside it, and the card of every model that ships.

`results.json` holds a row for each trained model, `weights/NAME/card.json` what else one should know of a model that
ships before using it. Both are written by `benchmarks/record.py`, from runs and from measurements of their weights.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from draw import checkpoint
from draw.checkpoint import Checkpoint, find, shipped
from draw.config import from_json
from draw.data import DataSet, intensities
from draw.errors import UserError, nearest
from draw.evaluation import Evaluation, spread
from draw.noise import seeded

RESULTS = Path(__file__).parent / "results.json"
EXAMPLES = 10  # test images beside a model that ships, and in a page
# The paper's Table 1: upper bounds on -log p(x), fixed binarised MNIST, test set, nats. Its own, by our preset's name,
PAPER = {"mnist": ("DRAW, T=64", 80.97), "mnist-no-attention": ("DRAW without attention, T=64", 87.40)}
# and others that it quotes.
PUBLISHED = {
    "DARN, one hidden layer": 84.13,
    "EoNADE, two hidden layers, 128 orderings": 85.10,
    "DLGM, 8 leapfrog steps": 85.51,
}


@dataclass(frozen=True)
class Result:
    """A trained model and what was measured of it; every bound in nats per image."""

    name: str  # of the preset that trains it
    title: str
    model: str | None  # the name under which its weights ship
    note: str  # how far it has come; empty of a run that ended as its preset says
    steps: int  # of training
    epochs: float
    hours: float  # of training, validation included
    hardware: str
    seed: int
    commit: str  # of the code that trained it
    commands: list[str]  # from nothing to these weights
    sha256: str  # of the weights that were measured
    valid: Evaluation
    test: Evaluation
    weighted: Evaluation  # with importance samples, on fewer images


@dataclass(frozen=True)
class Card:
    """What one should know of a model that ships, beside its row of the results."""

    data: str
    licence: str
    limits: list[str]
    float32_bound_nats: float  # of the weights before they were rounded to what ships; otherwise as `one_sample`
    one_sample: Evaluation  # all test images, one sample each: what the bound of a single image can be set beside
    subset: Evaluation  # a few test images, spread evenly: what the tests of this package measure again
    telling_latents: list[int]  # of the model, known so that a page of it is made at once


@dataclass(frozen=True)
class _Results:
    rows: list[Result]


def results() -> list[Result]:
    """Every row, in the order of the table."""
    return from_json(_Results, RESULTS.read_text(encoding="utf-8"), str(RESULTS)).rows


def result(name: str) -> Result:
    """The row of the model that ships under this name, else the row of this name.

    Raises:
        UserError: If there is none, with the nearest name.
    """
    rows = results()
    named = {row.name: row for row in rows} | {row.model: row for row in rows if row.model}
    if name not in named:
        raise UserError(f"no result {name!r}; {nearest(name, named)}")
    return named[name]


def card(name: str) -> tuple[Checkpoint, Card]:
    """A model that ships, and its card.

    Raises:
        UserError: If none of this name ships, with the nearest name.
    """
    if name not in shipped():
        raise UserError(f"no model {name!r} ships; {nearest(name, shipped())}")
    found = find(name)
    path = found.path / "card.json"
    return found, from_json(Card, path.read_text(encoding="utf-8"), str(path))


def is_shipped(found: Checkpoint) -> bool:
    """Whether a checkpoint is one of those that come with the package."""
    return found.path.parent == checkpoint.WEIGHTS


def chosen_examples(data: DataSet, seed: int = 0) -> tuple[UInt8[Tensor, "n c h w"], list[int]]:
    """Test images to show a model first, as it is to read them: if they are of ten classes, one of each.

    Args:
        data: The data set.
        seed: Of the pixels, where these are drawn afresh each time.

    Returns:
        The images, and their labels if they have any.
    """
    labels = data.labels.get("test")
    if labels is None or len(labels.unique()) != EXAMPLES:
        chosen = spread(len(data.split("test")), EXAMPLES)
    else:
        chosen = torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])
    shown = intensities(data.split("test")[chosen], data.binarization, seeded(seed, "binarize"))
    return shown.mul(255).byte(), [] if labels is None else labels[chosen].tolist()


def examples(found: Checkpoint) -> tuple[UInt8[Tensor, "n c h w"], list[int]]:
    """The test images beside a model that ships, as it is to read them, and their labels.

    Raises:
        UserError: If they cannot be read.
    """
    path = found.path / "examples.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return tensors["images"], tensors["labels"].tolist()
