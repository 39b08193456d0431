"""What a terminal shows of a training run: one live line with a bar, or plain lines where there is no terminal."""

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from draw.config import TrainConfig
from draw.run import Validation
from draw.training import Metrics, schedule_fraction


class _Console(Console):
    """Falls silent once whoever read its lines has gone, as the reader of a pipe may: training goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class TrainingProgress:
    """Shows the records of a run as they come. Use as a context manager.

    Args:
        config: Of the run: its schedule decides how much there is to do.
        minutes: The call's own limit, if any.
        step: Steps taken before this call.
        seconds: Of training before this call.
        earlier: The records of the run's log until then, of which the best validation is kept in mind.
    """

    def __init__(
        self,
        config: TrainConfig,
        minutes: float | None,
        step: int,
        seconds: float,
        earlier: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self.config, self.minutes, self.begun = config, minutes, seconds
        self.console = _Console(stderr=True)
        self.valid = ""
        self.trained: float | None = None  # the bound of the last training batches, nats
        self.best: tuple[float, int, float | None] | None = None  # its bound and step, and `trained` at that time
        for record in earlier:
            if record["kind"] == "train":
                self.trained = record["bound_nats"]
            elif record["kind"] == "valid" and record["best"]:
                self.best = record["bound_nats"], record["step"], self.trained
        self.live = Progress(
            TextColumn("{task.fields[step]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f}%"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
            speed_estimate_period=600,  # log lines may be a minute apart
        )
        done = self.fraction(step, seconds)
        begun = {"step": f"step {step:,}", "text": "first steps"}
        self.task = self.live.add_task("train", total=1.0, completed=done, **begun)  # type: ignore[arg-type]  # any number

    def __enter__(self) -> "TrainingProgress":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def fraction(self, step: int, seconds: float) -> float:
        """How much of this call's work is done, in [0, 1]."""
        scheduled = schedule_fraction(self.config, step, seconds)
        return max(scheduled, (seconds - self.begun) / (60 * self.minutes) if self.minutes else 0.0)

    def show(self, record: Metrics | Validation) -> None:
        """Show one record."""
        parts = f"{record.bound_nats:.2f} = {record.loss_x_nats:.2f} + {record.loss_z_nats:.2f} nats"
        if isinstance(record, Validation):
            self.valid = f" · valid {record.bound_nats:.2f}"
            error = "" if record.bound_se is None else f", ±{record.bound_se:.2f}"
            self._line(f"step {record.step:,}: validation bound {parts}{error}{self._beside_best(record)}")
            return
        self.trained = record.bound_nats
        rate = f"{record.images_per_second:.0f} images/s · gradient {record.grad_norm:.0f}"
        if self.console.is_terminal:
            text = f"{parts}{self.valid} · {rate}"
            self.live.update(
                self.task, completed=self.fraction(record.step, record.seconds), step=f"step {record.step:,}", text=text
            )
        else:
            done = f"{100 * self.fraction(record.step, record.seconds):.0f}%"
            minutes = f"{record.seconds / 60:.1f} min"
            self._line(f"step {record.step:,}: bound {parts} · {rate} · {minutes}, {done}")

    def _beside_best(self, record: Validation) -> str:
        """A validation beside the best one; where training images are far worse than then too, it is no overfitting."""
        if record.best:
            self.best = record.bound_nats, record.step, self.trained
            return " (best so far)"
        if not self.best:
            return ""
        best, step, trained = self.best
        pairs = ((record.bound_nats, best), (self.trained, trained))
        far = all(now is not None and then is not None and now > 1.1 * then for now, then in pairs)
        hint = "; the run has broken down: try a lower --learning-rate" if far else ""
        return f" (best {best:.2f}, step {step:,}{hint})"

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def bar(title: str) -> Any:
    """A context manager giving a callback (done, total) that shows a bar on a terminal and nothing elsewhere."""
    return _Bar(title)


class _Bar:
    def __init__(self, title: str) -> None:
        console = Console(stderr=True)
        self.live = Progress(console=console, disable=not console.is_terminal, transient=True)
        self.task = self.live.add_task(escape(title), total=None)

    def __enter__(self) -> Any:
        self.live.start()
        return lambda done, total: self.live.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.live.stop()
