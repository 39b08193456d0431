"""Saving and loading: a checkpoint is a folder of safetensors and strict JSON that is complete or does not exist.

    checkpoints/step-00001000/   checkpoint.json   configuration, step, seconds, SHA-256 of the files beside it
                                 model.safetensors the averaged weights: what is sampled from, measured and shipped
                                 training.safetensors what resuming needs; absent in best-*
    checkpoints/best-00001000/   the weights with the lowest validation bound so far

A checkpoint is written under another name, flushed to disk and renamed; only then is the one before it removed, so
that whenever the machine stops, the newest complete checkpoint can be read. Nothing is ever unpickled.
"""

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from draw.config import RunConfig, expanded, from_dict, strict_json, to_dict
from draw.devices import choose_device
from draw.errors import UserError, nearest
from draw.model import DRAW, require_same_tensors
from draw.noise import global_seed
from draw.pieces import Build, in_words, own_pieces
from draw.presets import PRESETS

FORMAT = 1
WEIGHTS = Path(__file__).parent / "weights"  # the models that ship, a checkpoint's folder each
MODEL, TRAINING, DESCRIPTION = "model.safetensors", "training.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself, without its tensors."""

    path: Path
    config: RunConfig
    step: int
    seconds: float  # of training
    info: dict[str, Any]  # data set, validation bound, versions: what the saver had to say
    sha256: dict[str, str]  # of each file of tensors

    def tensors(self, file: str = MODEL) -> dict[str, Tensor]:
        """The tensors of one file, float32: those of models that ship may lie there at half the width.

        Raises:
            UserError: If the file is missing or damaged.
        """
        path = self.path / file
        if file not in self.sha256:
            raise UserError(f"{self.path} cannot be resumed: it holds weights alone; name the run's folder instead")
        try:
            if _sha256(path) != self.sha256[file]:
                raise UserError(f"{path} is damaged: its SHA-256 is not the one in {DESCRIPTION}")
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        return {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}

    @property
    def pieces(self) -> dict[str, str]:
        """What of the network is not the paper's own, see `draw.pieces`."""
        return self.info.get("pieces", {})

    def model(self, device: torch.device | str = "cpu", build: Build = DRAW) -> DRAW:
        """The network with the averaged weights, ready to use.

        Args:
            device: Where.
            build: Makes the network from its configuration, if it has pieces of its own.

        Raises:
            UserError: If it is made of other pieces, or the weights do not fit the configuration, naming the first
                that does not.
        """
        with global_seed(0):  # a piece may draw weights, which those here take the place of
            model = build(self.config.model).float()
        tensors = self.tensors()
        if (own := own_pieces(model)) != self.pieces:
            raise UserError(
                f"{self.path} was trained with {in_words(self.pieces)}, not with {in_words(own)}; in Python "
                "draw.load(PATH, build=...) takes a function that makes such a network"
            )
        try:
            require_same_tensors(tensors, model.state_dict())
        except ValueError as error:
            raise UserError(f"{self.path / MODEL}: {error}") from error
        model.load_state_dict(tensors)
        return model.to(device).requires_grad_(False).eval()


def save(
    path: Path,
    config: RunConfig,
    *,
    step: int,
    seconds: float,
    model: dict[str, Tensor],
    training: dict[str, Tensor] | None = None,
    info: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder, all or nothing, then remove older ones of the same kind beside it.

    A checkpoint that exists is complete and never written again.

    Args:
        path: Where, such as `run/checkpoints/step-00001000`; what stands before the number is its kind, and
            one without a number has nothing older beside it.
        config: The configuration of the run.
        step: Training steps taken.
        seconds: Of training.
        model: The averaged weights.
        training: What resuming needs, or None for a checkpoint to use only.
        info: Anything JSON, kept as it is.
    """
    if path.exists():  # complete, or it would not have this name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _write_all(unfinished, config, step, seconds, model, training, info)
        unfinished.rename(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = "; the checkpoint before it is kept" if newest(path.parent.parent) else ""
        raise UserError(f"cannot write {path}: {error}{kept}") from error
    _flush(path.parent)

    kind, _, number = path.name.rpartition("-")
    for other in path.parent.iterdir() if number.isdecimal() else ():
        if other != path and other.name.startswith((f"{kind}-", f".{kind}-")):
            shutil.rmtree(other, ignore_errors=True)


def _write_all(
    folder: Path,
    config: RunConfig,
    step: int,
    seconds: float,
    model: dict[str, Tensor],
    training: dict[str, Tensor] | None,
    info: dict[str, Any] | None,
) -> None:
    sha256 = {}
    for file, tensors in ((MODEL, model), (TRAINING, training)):
        if tensors is not None:
            # Copies, since two names may be one weight, which the format does not know.
            save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, folder / file)
            _flush(folder / file)
            sha256[file] = _sha256(folder / file)
    description = {"format": FORMAT, "config": to_dict(config), "step": step, "seconds": float(seconds)}
    description |= {"info": info or {}, "sha256": sha256}
    write_json(folder / DESCRIPTION, description)
    _flush(folder)


def write_text(path: Path, text: str) -> None:
    """Write a small text file, all or nothing.

    Raises:
        UserError: If it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        _flush(unfinished)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file, all or nothing."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read(path: Path) -> Checkpoint:
    """A checkpoint's description.

    Raises:
        UserError: If it is missing, damaged or of an unknown format.
    """
    file = path / DESCRIPTION
    try:
        description = strict_json(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    wanted = {"format": int, "config": dict, "step": int, "seconds": float, "info": dict, "sha256": dict}
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{file} is no checkpoint of format {FORMAT}, the one this version reads")
    kinds = {key: type(value) for key, value in description.items()}
    if kinds != wanted or description["step"] < 0 or not 0 <= description["seconds"] < math.inf:
        raise UserError(f"{file} is damaged: expected {', '.join(wanted)}, each as it was written")
    config = from_dict(RunConfig, description["config"], f"{file}: config")
    return Checkpoint(
        path, config, description["step"], description["seconds"], description["info"], description["sha256"]
    )


def newest(run: Path, kind: str = "step") -> Path | None:
    """The newest complete checkpoint of a kind (`step` or `best`) in a run's folder."""
    found = [path.parent for path in run.glob(f"checkpoints/{kind}-*/{DESCRIPTION}")]
    return max(found, key=lambda path: (len(path.name), path.name), default=None)  # by number: names are padded with 0


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob(f"*/{DESCRIPTION}"))


def find(model: str | Path) -> Checkpoint:
    """The checkpoint that a MODEL argument means: the name of a model that ships (`./NAME` is a folder of that name), a
    checkpoint's folder, or a run's folder, there the best one.

    Raises:
        UserError: If there is none.
    """
    if model in shipped():
        return read(WEIGHTS / model)
    path = expanded(model)
    if (path / DESCRIPTION).is_file():
        return read(path)
    found = newest(path, "best") or newest(path)
    if found:
        return read(found)
    if isinstance(model, Path) and str(model) in shipped():  # a folder's name would have been found before
        return read(WEIGHTS / model)
    if path.is_dir():
        raise UserError(f"{path} holds no complete checkpoint")
    if model in PRESETS:
        raise UserError(f"no weights of the preset {model} ship: draw train {model}, then name the run's folder")
    beside = [str(run) for run in path.parent.iterdir() if newest(run)] if path.parent.is_dir() else []
    known = shipped() + beside
    hint = f"; {nearest(str(path), known)}" if known else ""
    raise UserError(f"no model {str(model)!r}: not one that ships, not a run folder, not a checkpoint folder{hint}")


def load(model: str | Path, device: torch.device | str = "cpu", *, build: Build = DRAW) -> DRAW:
    """The network that MODEL means, with its averaged weights: the name of a model that ships (`draw models`), a run's
    folder (there the best checkpoint by validation bound) or a checkpoint's folder.

    Args:
        model: MODEL.
        device: auto, cpu, cuda or mps.
        build: What `draw.train` was given, of a network with pieces of its own.

    Raises:
        UserError: If there is none, it is damaged, or made of other pieces; or if the machine has no such device.
    """
    where = choose_device(device)
    return find(model).model(where, build)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
