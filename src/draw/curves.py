"""The curve of a training run: its bound, and the two parts of it, over time."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from draw.errors import UserError
from draw.pictures import MADE_HERE
from draw.render import require_png, write_whole

TITLE = 48  # characters for which there is room; of a longer path its end
Record = Mapping[str, Any]  # a line of metrics.jsonl


def curve(records: Iterable[Record], path: Path, title: str) -> None:
    """Plot the records of a run's metrics.jsonl to a PNG: the bound, and the two parts it is made of.

    The axes leave out the spike of the first steps: they end at the 95th percentile, and say what is cut off.

    Args:
        records: Records of kind train and valid; those of other kinds are passed over.
        path: The PNG; its folder is made if need be.
        title: The headline, such as the run's name.

    Raises:
        UserError: If there is nothing to plot, or the file cannot be written.
    """
    require_png(path)
    records = list(records)
    train = [r for r in records if r["kind"] == "train"]
    # Validations that do not say their glimpses were made with all of them, also when not all were trained yet.
    grown = next((r["step"] for r in train if r.get("glimpses") == train[-1].get("glimpses")), 0)
    valid = [r for r in records if r["kind"] == "valid" and ("glimpses" in r or r["step"] >= grown)]
    if not train and not valid:
        raise UserError(f"cannot plot {title}: no training has been logged yet; lines come every log_every steps")
    figure = Figure(figsize=(8, 6), dpi=125, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _plot(above, train, valid, {"bound_nats": ("bound", "#3b6ea8")})
    parts = {"loss_x_nats": ("reconstruction\nloss_x", "#2f8f6b"), "loss_z_nats": ("KL\nloss_z", "#b5702a")}
    _plot(below, train, valid, parts)
    _mark_best(above, valid)
    title = title.encode("utf-8", "backslashreplace").decode()  # a folder's name may be no text
    short = title if len(title) <= TITLE else "\N{HORIZONTAL ELLIPSIS}" + title[1 - TITLE :]
    above.set_title(short, loc="left", parse_math=False)
    above.set_title("lines: training, circles: validation", loc="right", fontsize=8, color="0.45")
    above.margins(x=0.02)
    below.set_xlabel("minutes of training")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in another script
        write_whole(path, lambda file: figure.savefig(file, format="png", metadata=dict([MADE_HERE])))


def _plot(axes: Axes, train: Sequence[Record], valid: Sequence[Record], lines: Mapping[str, tuple[str, str]]) -> None:
    # Training as lines, faint behind their running mean and named at their ends; validation as hollow markers.
    seen: list[np.ndarray] = []
    for key, (label, colour) in lines.items():
        ends = []
        if train:
            minutes, values = _series(train, key)
            reach = len(values) // 100
            smooth = np.convolve(np.pad(values, reach, "edge"), np.ones(2 * reach + 1) / (2 * reach + 1), "valid")
            axes.plot(minutes, values, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(minutes, smooth, color=colour, marker="o" if len(values) == 1 else "")
            ends += [smooth, values]
        if valid:
            minutes, values = _series(valid, key)
            axes.plot(minutes, values, "o", color=colour, markerfacecolor="white", markersize=4)
            ends.append(values)
        axes.text(1.02, ends[0][-1], label, transform=axes.get_yaxis_transform(), color=colour, va="center")
        seen += ends
    highest, top = max(values.max() for values in seen), max(np.percentile(values, 95) for values in seen)
    bottom = min(values.min() for values in seen) if len(lines) == 1 else 0.0
    room = 0.12 * (top - bottom) or 1.0
    axes.set_ylim(bottom - room * (len(lines) == 1), top + room)
    if highest > top + room:
        note = f"cut off above, up to {highest:.0f}"
        axes.text(1, 1, note, transform=axes.transAxes, ha="right", va="top", fontsize=8, color="0.45")
    axes.set_ylabel("nats per image")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def _mark_best(axes: Axes, valid: Sequence[Record]) -> None:
    if not valid:
        return
    most = max(r.get("glimpses", 0) for r in valid)  # for lines of a time when they were not logged
    best = min(valid, key=lambda r: (-r.get("glimpses", most), r["bound_nats"]))  # as in draw.run
    error = f" ± {best['bound_se']:.1f}" if best.get("bound_se") else ""
    axes.plot(best["seconds"] / 60, best["bound_nats"], "o", color="#3b6ea8", markersize=6)
    text = f"best validation bound {best['bound_nats']:.1f}{error}"
    axes.text(1, 0.01, text, transform=axes.transAxes, ha="right", va="bottom")


def _series(records: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r["seconds"] for r in records]) / 60, np.array([r[key] for r in records])
