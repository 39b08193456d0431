"""The runs in a folder, read as they grow: what the studio shows of training.

One reader looks at the files, about once a second while anybody asks, and reads only what was appended. What it finds
is a `Run`, which never changes, so that all viewers share it, and one who is behind simply gets the newest.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from draw.config import TrainConfig
from draw.errors import UserError
from draw.run import LOCK, is_training, read_config, read_record, sheet_of
from draw.training import schedule_fraction

EVERY = 1.0  # seconds between two looks at the files
RUNS = 100  # are shown at most, those that wrote last
POINTS = 500  # of a curve at most: about as many as a plot has pixels, and two curves a run
PACE = 600.0  # seconds of training by which the time left is told, as in progress.py
LOG = "metrics.jsonl"
CHUNK = 1 << 20  # bytes read at a time, and the most that a line may have
TAIL = 256  # bytes by which a log is known again

State = Literal["training", "stopped", "finished"]
Point = tuple[int, float, float, float, float]  # step, seconds, bound, loss_x, loss_z


@dataclass(frozen=True)
class Run:
    """What is known of a run. Losses are in nats per image."""

    name: str
    state: State = "stopped"
    error: str = ""  # the first thing in its files that cannot be read, in one line
    begun: int = 0  # how often its curves were begun anew: points of another beginning do not belong to these
    train: tuple[Point, ...] = ()
    valid: tuple[Point, ...] = ()
    step: int = 0
    seconds: float = 0.0  # of training
    fraction: float = 0.0  # of its schedule
    seconds_left: float | None = None
    best: float | None = None  # of the validation bounds, see `draw.run.Validation`
    sheet: int | None = None  # step of the newest sheet of samples


class Runs:
    """The runs in a folder.

    Args:
        folder: Each folder in it that holds a metrics.jsonl is a run; links that lead out of it are not followed.

    Raises:
        UserError: If there is no such folder, or it is a run itself.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}; draw train demo --out {folder / 'demo'} makes it with a first run")
        if (folder / LOG).exists():
            raise UserError(f"{folder} is a run itself: name the folder it is in, --runs {folder.resolve().parent}")
        self.given, self.folder = folder, folder.resolve()
        self.found: dict[str, Run] = {}
        self._logs: dict[str, _Log] = {}
        self._looked = -math.inf
        self._lock = threading.Lock()

    def look(self) -> dict[str, Run]:
        """Every run by its name, in the order of names; reads files if it was not done in the last second."""
        with self._lock:
            if time.monotonic() - self._looked >= EVERY:
                places = self._places()
                self._logs = {name: self._logs.get(name) or _Log(place) for name, place in places.items()}
                self.found = {name: log.read() for name, log in self._logs.items()}
                self._looked = time.monotonic()
            return self.found

    def sheet(self, name: str, step: str) -> Path | None:
        """The newest sheet of samples of a run, None if there is no such run, or another sheet is the newest."""
        run = self.found.get(name)
        if run is None or run.sheet is None or step != str(run.sheet):
            return None
        return _file_in(self.folder, sheet_of(self.folder / run.name, run.sheet))

    def _places(self) -> dict[str, Path]:
        try:
            entries = [entry for entry in self.folder.iterdir() if _file_in(self.folder, entry / LOG)]
        except OSError:  # the folder has gone, and may come again
            return {}
        named = {entry.name: entry for entry in entries if entry.name.isprintable()}  # others cannot be in an address
        newest = sorted(named, key=lambda name: -_modified(named[name] / LOG))[:RUNS]
        return {name: named[name] for name in sorted(newest)}


def news(runs: dict[str, Run], told: dict[str, Run]) -> Iterator[dict[str, Any]]:
    """What somebody who was told of some runs has to be told to know these: one message for each that changed.

    A message is a `Run`; its curves hold only the points to append, or all of them where `anew` says so. `told` is
    brought up to date.
    """
    for name, run in runs.items():
        before = told.get(name)
        if run is before:
            continue
        told[name] = run
        if before is None or before.begun != run.begun:
            yield vars(run) | {"anew": True}
        else:
            added = {"train": run.train[len(before.train) :], "valid": run.valid[len(before.valid) :]}
            yield vars(run) | added | {"anew": False}
    for name in told.keys() - runs.keys():
        del told[name]


class _Log:
    """A run's metrics.jsonl as it grows."""

    def __init__(self, place: Path) -> None:
        self.folder, self.place, self.file = place.parent, place, place / LOG
        self.run = Run(place.name)
        self.begin()

    def begin(self) -> None:
        """Forget what was read: a resumed run writes its log anew, as far as it is still true."""
        self.stamp: tuple[int, ...] = ()
        self.offset, self.lines, self.tail = 0, 0, b""
        self.config: TrainConfig | None = None
        self.curves = {"train": Curve(), "valid": Curve()}
        self.recent = deque([(0, 0.0)])  # steps and seconds of training, as far back as the pace goes
        self.run = Run(self.place.name, begun=self.run.begun + 1)

    def read(self) -> Run:
        """The run as it is now; the same object if nothing has changed."""
        before = self.run
        try:
            self.read_on()
            unfinished = self.run.fraction < 1
            training = unfinished and not (self.place / LOCK).is_symlink() and is_training(self.place)
        except OSError as error:
            training = False
            self.complain(f"{LOG} cannot be read: {error.strerror}")
        state: State = "finished" if self.run.fraction == 1 else "training" if training else "stopped"
        now = replace(self.run, state=state)
        self.run = before if now == before else now
        return self.run

    def read_on(self) -> None:
        """Read what was appended, all of it if the log is another than it was."""
        status = self.file.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp == self.stamp:
            return
        with self.file.open("rb") as file:
            file.seek(self.offset - len(self.tail))
            if file.read(len(self.tail)) != self.tail:
                self.begin()
                file.seek(0)
            while chunk := file.read(CHUNK):
                end = chunk.rfind(b"\n") + 1
                if end == 0 and len(chunk) == CHUNK:
                    end = CHUNK  # longer than any line may be: no record
                if end == 0:  # half a line: it is read when it is whole
                    break
                for line in chunk[: end - 1].split(b"\n"):
                    self.take(line)
                self.offset += end
                self.tail = (self.tail + chunk[:end])[-TAIL:]
                file.seek(self.offset)
        self.stamp = stamp
        self.publish()

    def take(self, line: bytes) -> None:
        """Take in one line; one that cannot be read is passed over, with a complaint."""
        self.lines += 1
        where = f"{LOG}, line {self.lines},"
        try:
            record = read_record(line, where)
            if record["kind"] == "resume":
                self.config = None  # of a resumed run it may be another
            if record["kind"] in self.curves:
                point = _point(record, where)
                self.point(record["kind"], point)
                if record.get("best") is True:
                    self.run = replace(self.run, best=point[2])
        except (UserError, RecursionError) as error:
            self.complain(str(error))

    def point(self, kind: str, point: Point) -> None:
        """Add a point to the curve of this kind."""
        step, seconds, bound, loss_x, loss_z = point
        # Viewers get tenths of a second; whether a run has finished is read off the exact ones.
        if self.curves[kind].add((step, round(seconds, 1), bound, loss_x, loss_z)):
            self.run = replace(self.run, begun=self.run.begun + 1)
        if kind == "valid":
            sheet = step if _file_in(self.folder, sheet_of(self.place, step)) else None
            self.run = replace(self.run, sheet=sheet)
        self.run = replace(self.run, step=step, seconds=seconds)
        self.recent.append((step, seconds))
        while len(self.recent) > 2 and self.recent[1][1] <= seconds - PACE:
            self.recent.popleft()

    def publish(self) -> None:
        """Put together what is known now."""
        train, valid = (tuple(self.curves[kind].points) for kind in ("train", "valid"))
        self.run = replace(self.run, train=train, valid=valid)
        try:
            if self.config is None:
                path = _file_in(self.folder, self.place / "config.json")
                if path is None:
                    raise UserError("config.json is missing")
                self.config = read_config(path).train
        except UserError as error:
            self.complain(str(error).replace(f"{self.place}/", ""))
            return
        then, now = self.recent[0], self.recent[-1]
        fraction = schedule_fraction(self.config, *now)
        left = seconds_left(self.config, then, now)
        self.run = replace(self.run, fraction=fraction, seconds_left=left)

    def complain(self, error: str) -> None:
        self.run = replace(self.run, error=self.run.error or " ".join(error.split())[:300])


class Curve:
    """Points as they come, at most `POINTS`: past that, neighbours are averaged, two and two, and so are later ones.

    A log line is a mean over batches itself, so that an average is what fewer log lines would have said.
    """

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.span = 1  # how many lines are in a point
        self._waiting: list[Point] = []

    def add(self, point: Point) -> bool:
        """Take in a point; whether earlier ones have become others."""
        self._waiting.append(point)
        if len(self._waiting) == self.span:
            self.points.append(_mean(self._waiting))
            self._waiting = []
        if len(self.points) < POINTS:
            return False
        self.points = [_mean(self.points[i : i + 2]) for i in range(0, POINTS, 2)]
        self.span *= 2
        return True


def seconds_left(config: TrainConfig, then: tuple[int, float], now: tuple[int, float]) -> float | None:
    """Seconds of training to the end of the schedule, at the pace between two points (steps, seconds).

    Example:
        >>> seconds_left(TrainConfig(iterations=100), then=(10, 5.0), now=(20, 10.0))
        40.0
    """
    before, fraction = schedule_fraction(config, *then), schedule_fraction(config, *now)
    return (1 - fraction) * (now[1] - then[1]) / (fraction - before) if fraction > before else None


def _mean(points: Sequence[Point]) -> Point:
    step, seconds, *_ = points[-1]
    bound, loss_x, loss_z = (sum(values) / len(points) for values in list(zip(*points, strict=True))[2:])
    return step, seconds, bound, loss_x, loss_z


def _point(record: dict[str, Any], where: str) -> Point:
    numbers = [record[name] for name in ("step", "seconds", "bound_nats", "loss_x_nats", "loss_z_nats")]
    if not all(isinstance(number, int | float) and abs(number) < 1e12 for number in numbers):  # nor is NaN
        raise UserError(f"{where} holds what is no number")
    step, seconds, *losses = numbers
    bound, loss_x, loss_z = (round(float(loss), 3) for loss in losses)  # the rest is noise, and every viewer's to load
    return int(step), float(seconds), bound, loss_x, loss_z


def _file_in(folder: Path, path: Path) -> Path | None:
    """The file, if there is one and no link leads out of the folder to it."""
    # os.path.isfile says no where it may not look; Path.is_file raises.
    return path if os.path.isfile(path) and path.resolve().is_relative_to(folder) else None  # noqa: PTH113


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
