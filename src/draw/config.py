"""The configuration: one tree of frozen dataclasses that is flags, help, JSON and the record of a run.

No array library is imported here, so that `draw --help` is instant.
"""

import contextlib
import dataclasses
import json
import math
import numbers
import os
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from draw.errors import UserError, nearest

Binarization = Literal["auto", "static", "stochastic", "none"]
Split = Literal["train", "valid", "test"]
Compile = Literal["auto", "on", "off"]
Precision = Literal["float32", "tf32", "bfloat16"]
C = TypeVar("C")
MOST, MOST_STEPS = 10**6, 10**12  # of any size or number that is asked for, beyond which nothing can be meant
MOST_FLOAT = 1e38  # about what a 32-bit float holds
SEEDS = range(2**63)  # what torch's generators take
HOTTEST = 1000  # factor on the latents' standard deviation: far beyond any at which a drawing changes
SHARD_MB = 256  # most megabytes (2**20 bytes) of one file of packed images


def _option(default: Any, help: str, flag: str | None = None) -> Any:
    return field(default=default, metadata={"help": help, "flag": flag})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def type_name(hint: Any) -> str:
    """A field's type in words, for help and errors."""
    if typing.get_origin(hint) is Literal:
        return ", ".join(typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " or ".join("none" if a is type(None) else a.__name__ for a in typing.get_args(hint))
    return str(hint.__name__)


def _checked(path: str, value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return value
        elif kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):  # NumPy's too
            with contextlib.suppress(OverflowError):
                return float(value)
        elif kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
        elif type(value) is kind:
            return value
    raise UserError(f"{path}: expected {type_name(hint)}, got {value!r}")


def _require_types(config: Any) -> None:
    """Check that every value is of its field's type; a whole number may stand for a float, and becomes one."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        chosen = typing.get_origin(hint) is Literal and isinstance(value, str)  # a wrong one has a message of its own
        if not chosen:
            object.__setattr__(config, name, _checked(name, value, hint))


def _require_count(name: str, count: int, most: int = MOST) -> None:
    _require(count >= 1, f"{name} must be at least 1, got {count}")
    _require(count <= most, f"{name} must be at most {most:,}, got {count}")


def _require_float(name: str, value: float, *, or_zero: bool = False) -> None:
    kind = "0 or more" if or_zero else "positive"
    _require(0 < value < math.inf or (or_zero and value == 0), f"{name} must be {kind}, got {value}")
    _require(value <= MOST_FLOAT, f"{name} must be at most {MOST_FLOAT:g}, got {value}")


def expanded(path: str | Path) -> Path:
    """The path with `~` as the home folder; a name such as ~notes, which is no user's, stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib's raises for such a name


def _require_seed(name: str, seed: int) -> None:
    _require(seed in SEEDS, f"{name} must be from 0 to 2**63 - 1, got {seed}")


def require_temperature(temperature: float) -> None:
    """Check a factor on the latents' standard deviation.

    Raises:
        UserError: If it is not from 0 to `HOTTEST`.
    """
    _require(0 <= temperature <= HOTTEST, f"temperature must be from 0 to {HOTTEST:,}, got {temperature}")


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a DRAW network (Table 3 of the paper)."""

    height: int = _option(28, "image height B, pixels")
    width: int = _option(28, "image width A, pixels")
    channels: int = _option(1, "1 (grey) or 3 (RGB, one window over all channels)")
    steps: int = _option(64, "glimpses T")
    enc_size: int = _option(256, "units of the encoder LSTM")
    dec_size: int = _option(256, "units of the decoder LSTM")
    z_size: int = _option(100, "latents per glimpse Z")
    read_n: int | None = _option(2, "read with an N x N attention window; none reads the whole image (eq. 17)")
    write_n: int | None = _option(5, "write with an N x N attention window; none writes the whole canvas (eq. 18)")

    def __post_init__(self) -> None:
        _require_types(self)
        for name in ("height", "width", "steps", "enc_size", "dec_size", "z_size"):
            _require_count(name, getattr(self, name))
        for name in ("read_n", "write_n"):
            n = getattr(self, name)
            _require(n is None or n >= 1, f"{name} must be at least 1, or none for no attention, got {n}")
            _require_count(name, n or 1)
        _require(self.channels in (1, 3), f"channels must be 1 or 3, got {self.channels}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how their intensities become the targets of the likelihood."""

    source: str = _option("glyphs", "a data set's name, folder:PATH, packed:DIR, PATH.npy or PATH.npz", flag="data")
    binarization: Binarization = _option(
        "auto",
        "static, stochastic (fresh every epoch), none; auto: static if two-valued, none if colour, else stochastic",
    )
    size: str | None = _option(None, "resize a folder's images to SIDE or HEIGHTxWIDTH, cropping to that shape")
    grey: bool = _option(False, "turn a folder's images grey")
    skip_bad: bool = _option(False, "leave out a folder's unreadable images instead of stopping")
    patch: str | None = _option(
        None, "train on random patches of SIDE or HEIGHTxWIDTH pixels, others each time; measure on the middle ones"
    )
    data_seed: int = _option(0, "seed of the embedded set, of static binarization and of held-out splits")

    def __post_init__(self) -> None:
        _require_types(self)
        choices = typing.get_args(Binarization)
        _require(
            self.binarization in choices,
            f"unknown binarization {self.binarization!r}; {nearest(self.binarization, choices)}",
        )
        _ = self.size_hw, self.patch_hw
        _require_seed("data_seed", self.data_seed)

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width asked for, pixels, or None."""
        return _sides("size", self.size)

    @property
    def patch_hw(self) -> tuple[int, int] | None:
        """Height and width of the patches, pixels, or None."""
        return _sides("patch", self.patch)


def _sides(name: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    _require(
        len(parts) in (1, 2) and all(p.isdecimal() and len(p) <= 4 and 1 <= int(p) <= 4096 for p in parts),
        f"{name} must be SIDE or HEIGHTxWIDTH in pixels, such as 32 or 24x48, at most 4096, got {text!r}",
    )
    return int(parts[0]), int(parts[-1])


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    seed: int = _option(0, "seed of initial weights, order of images, noise")
    batch_size: int = _option(100, "images per step")
    iterations: int = _option(10_000, "training steps; the learning rate falls to 0 here")
    schedule_minutes: float | None = _option(None, "let it fall to 0 after this many minutes of training instead")
    learning_rate: float = _option(2.5e-3, "Adam's peak learning rate")
    warmup: int = _option(500, "steps over which the learning rate rises linearly")
    fall_from: float = _option(0.0, "share of the schedule after which the learning rate falls, as half a cosine")
    grow_from: int | None = _option(None, "glimpses to begin with; doubled at even intervals until there are T")
    grow_until: float = _option(0.5, "share of the schedule after which there are all T, with --grow-from")
    awake: int | None = _option(None, "latents in use at the start; the others are silent until they learn; none: all")
    clip_norm: float = _option(10.0, "largest global gradient norm, nats")
    adam_power: float = _option(0.5, "power of the mean squared gradient that a step is divided by; Adam's is 0.5")
    weight_decay: float = _option(0.0, "share of every weight matrix taken off per step, times the rate (AdamW)")
    ema_decay: float = _option(0.9995, "decay per step of the averaged weights")
    log_every: int = _option(50, "steps between log lines")
    validate_every: int = _option(500, "steps between validations, best checkpoint and sample sheets")
    validation_images: int = _option(2_000, "validation images, spread evenly over the split; 0: all")
    checkpoint_minutes: float = _option(5.0, "minutes between resumable checkpoints")

    def __post_init__(self) -> None:
        _require_types(self)
        _require_count("batch_size", self.batch_size)
        for name in ("iterations", "log_every", "validate_every"):
            _require_count(name, getattr(self, name), most=MOST_STEPS)
        for name in ("warmup", "validation_images"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _require_count("validation_images", self.validation_images or 1)
        _require_seed("seed", self.seed)
        for name in ("learning_rate", "clip_norm", "checkpoint_minutes"):
            _require_float(name, getattr(self, name))
        if self.schedule_minutes is not None:
            _require_float("schedule_minutes", self.schedule_minutes)
        _require(0 <= self.adam_power <= 1, f"adam_power must be in [0, 1], got {self.adam_power}")
        _require_float("weight_decay", self.weight_decay, or_zero=True)
        if self.grow_from is not None:
            _require_count("grow_from", self.grow_from)
        _require(self.awake is None or self.awake >= 1, f"awake must be at least 1, or none for all, got {self.awake}")
        _require(0 <= self.fall_from < 1, f"fall_from must be in [0, 1), got {self.fall_from}")
        _require(0 < self.grow_until <= 1, f"grow_until must be in (0, 1], got {self.grow_until}")
        _require(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), got {self.ema_decay}")


@dataclass(frozen=True)
class EvalConfig:
    """A measurement."""

    split: Split = _option("test", "train, valid or test")
    samples: int = _option(1, "posterior samples per image for the bound")
    importance_samples: int = _option(0, "samples K per image of the importance-weighted estimate; 0: none")
    images: int = _option(0, "measure this many images, spread evenly over the split; 0: all")
    batch_size: int = _option(500, "image-samples at a time: bounds the memory")
    seed: int = _option(0, "seed of the noise, and of stochastic binarization")

    def __post_init__(self) -> None:
        _require_types(self)
        choices = typing.get_args(Split)
        _require(self.split in choices, f"unknown split {self.split!r}; {nearest(self.split, choices)}")
        for name in ("samples", "batch_size"):
            _require_count(name, getattr(self, name))
        for name in ("importance_samples", "images"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
            _require_count(name, getattr(self, name) or 1)
        _require_seed("seed", self.seed)


@dataclass(frozen=True)
class SpeedConfig:
    """How to compute, not what: the numbers are the same up to rounding."""

    compile: Compile = _option("auto", "fast paths: on, off (the plain model), auto (where they pay for themselves)")
    precision: Precision = _option("float32", "of matrix products; sums, states, filters and losses stay float32")
    checkpoint_glimpses: bool = _option(False, "recompute glimpses in the backward pass: memory grows with sqrt(T)")
    threads: int = _option(0, "CPU threads; 0: chosen for this machine, and in Python what torch has")

    def __post_init__(self) -> None:
        _require_types(self)
        for name, choices in (("compile", typing.get_args(Compile)), ("precision", typing.get_args(Precision))):
            value = getattr(self, name)
            _require(value in choices, f"unknown {name} {value!r}; {nearest(value, choices)}")
        _require(0 <= self.threads <= 1024, f"threads must be from 0 to 1024, got {self.threads}")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        _require_types(self)

    def replace(self, **values: Any) -> "RunConfig":
        """A copy with fields of any section changed; field names are unique across the sections.

        Raises:
            UserError: If a name is no field, or a value is not valid for its field.
        """
        owners = {
            f.name: section.name for section in dataclasses.fields(self) for f in fields_of(getattr(self, section.name))
        }
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in owners:
                raise UserError(f"unknown setting {name!r}; {nearest(name, owners)}")
            changes.setdefault(owners[name], {})[name] = value
        return dataclasses.replace(
            self,
            **{
                section: from_dict(type(getattr(self, section)), to_dict(getattr(self, section)) | changed)
                for section, changed in changes.items()
            },
        )


def fields_of(config: Any) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a configuration class or instance."""
    return dataclasses.fields(config)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(cls: Callable[..., C], values: Any, where: str = "") -> C:
    """The configuration that `to_dict` wrote, checked: every key known, every value of its field's type.

    Raises:
        UserError: Naming the key, what came and what was wanted.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where or 'configuration'}: expected an object with settings, got {values!r}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            raise UserError(f"unknown setting {path!r}; {nearest(key, hints)}")
        arguments[key] = _read(path, value, hints[key])
    return cls(**arguments)


def from_json(cls: type[C], text: str, where: str = "") -> C:
    """`from_dict` of a JSON text. Strict: NaN and repeated keys are errors.

    Raises:
        UserError: If the text is not JSON, or not such a configuration.
    """
    return from_dict(cls, strict_json(text, where), "")


def strict_json(text: str, where: str = "") -> Any:
    """The JSON value of a text; NaN, Infinity and repeated keys are errors.

    Raises:
        UserError: With the place of the fault.
    """

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    try:
        return json.loads(text, parse_constant=no_constant, object_pairs_hook=no_repeats)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where or 'configuration'} is not valid JSON: {error}") from error


def _read(path: str, value: Any, hint: Any) -> Any:
    """A field's value from JSON's: an object, a list (`list[X]`, `tuple[X, ...]`), a table (`dict[str, X]`), or a plain
    one."""
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path)  # type: ignore[arg-type]  # the class, not an instance
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_read(f"{path}[{i}]", entry, typing.get_args(hint)[0]) for i, entry in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _read(f"{path}.{key}", entry, typing.get_args(hint)[1]) for key, entry in value.items()}
    return _checked(path, value, hint)
