"""How time and memory of a training step grow with a size: sweeps, and the power law that fits each best."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure

from draw.bench import Pair, Progress, Task, alternate, in_fresh_process, setting, warmup_rounds
from draw.config import SpeedConfig
from draw.render import require_png, write_whole

Axis = Literal["steps", "batch", "side", "hidden"]

# Of the configuration's own size. With the preset mnist: T 8 to 64, batch 25 to 200, side 14 to 112, hidden 64 to 512.
FACTORS: dict[Axis, tuple[float, ...]] = {
    "steps": (0.125, 0.25, 0.5, 1.0),
    "batch": (0.25, 0.5, 1.0, 2.0),
    "side": (0.5, 1.0, 2.0, 4.0),
    "hidden": (0.25, 0.5, 1.0, 2.0),
}
FIELDS: dict[Axis, tuple[str, ...]] = {  # of the model's configuration; the first names the size
    "steps": ("steps",),
    "side": ("height", "width"),
    "hidden": ("enc_size", "dec_size"),
}


@dataclass(frozen=True)
class Point:
    """A training step at one size."""

    size: int
    seconds: Pair
    peak_memory_bytes: int  # of a fresh process, see `draw.bench.First`
    fixed_memory_bytes: int  # the same for one glimpse of one image: weights, their moments, libraries


@dataclass(frozen=True)
class PowerLaw:
    """factor * size ** exponent"""

    factor: float
    exponent: float


@dataclass(frozen=True)
class Growth:
    """A sweep over one size, all others as configured."""

    points: list[Point]
    time: PowerLaw | None  # of the least seconds
    memory: PowerLaw | None  # of the peak above the fixed part; None where fewer than two points rise above it


@dataclass(frozen=True)
class Sweep:
    """Sweeps over several sizes, each from the same configuration."""

    preset: str
    batch_size: int
    repeats: int
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    config: dict[str, Any]
    axes: dict[Axis, Growth]
    what: Literal["grow"] = "grow"


def power_law(sizes: Sequence[int], values: Sequence[float]) -> PowerLaw | None:
    """The power law through positive values, by least squares on logarithms; None with fewer than two of them.

    Example:
        >>> law = power_law([1, 2, 4], [3.0, 12.0, 48.0])
        >>> f"{law.factor:.1f} * size ** {law.exponent:.1f}"
        '3.0 * size ** 2.0'
    """
    pairs = [(size, value) for size, value in zip(sizes, values, strict=True) if value > 0]
    if len(pairs) < 2:
        return None
    x, y = np.log(np.array(pairs, dtype=float)).T
    exponent, log_factor = np.polyfit(x, y, 1)
    return PowerLaw(float(np.exp(log_factor)), float(exponent))


def scaled(task: Task, axis: Axis, factor: float) -> tuple[int, Task]:
    """A training task with one size multiplied, rounded, at least 1; and that size."""

    def times(size: int) -> int:
        return max(1, round(factor * size))

    if axis == "batch":
        size = times(task.batch_size)
        return size, dataclasses.replace(task, batch_size=size, images=size)
    changes = {field: times(getattr(task.model, field)) for field in FIELDS[axis]}
    model = dataclasses.replace(task.model, **changes)
    return changes[FIELDS[axis][0]], dataclasses.replace(task, model=model)


def grow(
    task: Task,
    preset: str,
    speed: SpeedConfig,
    *,
    axes: Sequence[Axis] = tuple(FACTORS),
    repeats: int = 10,
    progress: Progress | None = None,
) -> Sweep:
    """Time a training step and measure its memory at several sizes along each axis, all else as in the task.

    The sizes of an axis are timed in turn. What memory grows by is the peak less a fixed part: the peak of one glimpse
    of one image, in a process of its own, at the same side and hidden sizes.

    Args:
        task: Training, at the sizes that `FACTORS` multiply.
        preset: The name that the report gives the configuration.
        speed: How to compute it.
        axes: Which sizes to sweep.
        repeats: How often each point is timed.
        progress: Called with (done, in all).
    """
    device = torch.device(task.device)
    sweeps = {axis: dict(scaled(task, axis, factor) for factor in FACTORS[axis]) for axis in axes}
    rounds = warmup_rounds(device) + repeats
    total = sum(len(sizes) + rounds for sizes in sweeps.values())
    done = 0

    def advance(*_: int) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    peak = functools.cache(lambda of: in_fresh_process(of, speed).peak_bytes)
    found: dict[Axis, Growth] = {}
    for axis, sizes in sweeps.items():
        calls = {str(size): one.prepare(one.data(), speed) for size, one in sizes.items()}
        seconds = alternate(calls, device, repeats, advance)
        points = []
        for size, one in sizes.items():
            smallest = dataclasses.replace(one, model=dataclasses.replace(one.model, steps=1), batch_size=1, images=1)
            points.append(Point(size, seconds[str(size)], peak(one), peak(smallest)))
            advance()
        times = [point.seconds.min for point in points]
        memory = [float(point.peak_memory_bytes - point.fixed_memory_bytes) for point in points]
        found[axis] = Growth(points, power_law(list(sizes), times), power_law(list(sizes), memory))
    return Sweep(preset, task.batch_size, repeats, axes=found, **setting(task, speed))


def plot(growth: Growth, title: str, path: Path) -> None:
    """Draw the seconds and the megabytes of a sweep over its sizes, with the power law through each, to a PNG.

    Raises:
        UserError: If the file cannot be written.
    """
    require_png(path)
    figure = Figure(figsize=(9, 4), dpi=125, layout="constrained")
    sizes = np.array([point.size for point in growth.points])
    seconds = np.array([point.seconds.min for point in growth.points])
    above = np.array([point.peak_memory_bytes - point.fixed_memory_bytes for point in growth.points])
    panels = (
        ("seconds per training step", seconds, 1.0, growth.time),
        ("memory above the fixed part, MB", above, 1e6, growth.memory),
    )
    for axes, (label, values, unit, law) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        positive = values > 0
        if positive.any():  # whole decades, so that there are ticks, and a flat line looks flat
            decades = np.log10(values[positive] / unit)
            axes.set_ylim(10 ** np.floor(decades.min()), 10 ** (np.floor(decades.max()) + 1))
        axes.plot(sizes[positive], values[positive] / unit, "o", color="#3b6ea8")
        if law:
            axes.plot(sizes, law.factor * sizes**law.exponent / unit, color="#b5702a")
        axes.set_xticks(sizes, labels=[str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_title(f"exponent {law.exponent:.2f}" if law else "too few points for a fit", fontsize=10)
        axes.set_ylabel(label)
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    write_whole(path, lambda file: figure.savefig(file, format="png"))
