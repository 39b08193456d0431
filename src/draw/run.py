"""A training run as a folder: train, log, validate, keep the best, and go on after a stop as if there had been none.

config.json     the configuration
metrics.jsonl   one JSON object a line: first the run itself (kind run), then kinds train, valid and resume
checkpoints/    the newest resumable checkpoint and the best one
samples/        a sheet of samples for every validation
readings/       some validation images read and redrawn, for every validation
"""

import contextlib
import dataclasses
import errno
import functools
import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

import draw
from draw import checkpoint, parallel, render
from draw.config import EvalConfig, RunConfig, SpeedConfig, expanded, from_json, strict_json, to_dict
from draw.data import DataSet, intensities, load_data
from draw.devices import choose_device
from draw.errors import NonFiniteError, UserError, require_kind
from draw.evaluation import evaluate, spread
from draw.model import DRAW
from draw.noise import seeded
from draw.parallel import World
from draw.pieces import Build, in_words, own_pieces
from draw.presets import preset
from draw.training import Metrics, Trainer, glimpses

SAMPLES = 64  # images on a sample sheet
READINGS = 4  # images read and redrawn for a validation
Rank = tuple[int, float]  # of a validation, see `_rank`
NONE: Rank = (0, math.inf)  # the rank of no validation
LOCK = ".lock"  # in a run's folder; alone it is no run
NO_LOCKS = {  # what file systems without locks answer, as some networks' are
    getattr(errno, name, None) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK")
}
Fields = dict[str, tuple[type, ...]]
MEASURED: Fields = dict.fromkeys(("seconds", "bound_nats", "loss_x_nats", "loss_z_nats"), (int, float))
MEASURED |= {"step": (int,)}
LOGGED: dict[str, Fields] = {  # what each kind of record holds at least, of which types
    "run": {"config": (dict,)},
    "resume": {"step": (int,)},
    "train": MEASURED,
    "valid": MEASURED | {"best": (bool,)},
}
FIXED_ON_RESUME = (
    "seed",
    "batch_size",
    "warmup",
    "ema_decay",
    "clip_norm",
    "awake",
    "grow_from",
    "log_every",
    "validation_images",
)


@dataclass(frozen=True)
class Validation:
    """The bound of the averaged weights on the validation split, nats."""

    step: int
    seconds: float
    bound_nats: float
    bound_se: float | None  # None of a single image
    loss_x_nats: float
    loss_z_nats: float
    images: int
    glimpses: int  # T, of the last step of training
    best: bool  # the lowest so far with as many glimpses
    kind: Literal["valid"] = "valid"


def train(
    config: RunConfig | str,
    out: str | Path,
    *,
    data: DataSet | None = None,
    data_dir: Path | None = None,
    device: str | torch.device = "auto",
    speed: SpeedConfig | None = None,
    resume: bool = False,
    minutes: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    tensorboard: bool = False,
    init: str | Path | None = None,
    build: Build = DRAW,
    world: World | None = None,
) -> Iterator[Metrics | Validation]:
    """Train in a run's folder, yielding every log line and every validation as it is made.

    A generator: nothing happens until it is iterated, and training pauses between two records.

    Args:
        config: A configuration or a preset's name. When resuming, it may differ from the run's own in how long and
            how fast to train, not in what is trained.
        out: The run's folder.
        data: The data set; otherwise the one that the configuration names.
        data_dir: Where data sets live, see `draw.load_data`.
        device: auto, cpu, cuda or mps.
        speed: How to compute it; a resumed run may choose anew.
        resume: Go on from the folder's newest checkpoint; a job that torchrun restarts does so in any case.
        minutes: Stop after this much training in this call, with a checkpoint to resume from.
        stop: Asked after every step; training stops with a checkpoint when it says yes. On another rank than 0 a yes
            leaves a checkpoint at the next log line.
        tensorboard: Also write TensorBoard event files into the folder.
        init: A model whose averaged weights a new run begins with: of the same sizes, but for T, on which none depends.
            `awake` is for runs that begin from nothing, and becomes None.
        build: Makes a network with pieces of its own: called with the `ModelConfig`, `mean_pixel` and `seed`, as `DRAW`
            is. `draw.load` needs it too.
        world: The processes that train together (`draw.parallel.joined`). Every one of them gets the same records;
            rank 0 alone uses the folder and the clock, so that they never disagree.

    Raises:
        UserError: If the folder, the data or the configuration do not allow it.
        NonFiniteError: If the loss is no longer finite; the last checkpoint is kept.
    """
    config = preset(config) if isinstance(config, str) else config
    require_kind("config", config, RunConfig)
    for name, value, kind in (("data", data, DataSet), ("speed", speed, SpeedConfig)):
        if value is not None:
            require_kind(name, value, kind)
    if minutes is not None and not (isinstance(minutes, int | float) and minutes > 0):
        raise UserError(f"minutes must be positive, got {minutes!r}")
    out = expanded(out)
    world = world or World()
    found: checkpoint.Checkpoint | None = None  # on rank 0

    def look() -> int | None:
        nonlocal found
        found = to_go_on_from(out, resume)
        return found.step if found else None

    resumed: int | None = world.main(look)
    data = data or world.first_on_each_machine(functools.partial(load_data, config.data, data_dir))
    data.split("valid")  # or the first validation would be the run's end
    config = for_images(config, data)
    if init is not None:
        config = config.replace(awake=None)  # a trained model's latents stay as they are
    digests = {"images_sha256": data.images_sha256, "valid_sha256": data.valid_sha256}
    if len(set(world.gather("".join(digests.values())))) > 1:
        raise UserError(f"the images of {data.name} are not the same on all machines of this job")
    where = world.every(lambda: choose_device(device))
    speed = speed or SpeedConfig()
    trainer = Trainer(config, data, where, speed=speed, world=world, build=build)
    here = environment(where) | {"speed": to_dict(speed), "processes": world.size}
    info: dict[str, Any] = {"data": data.name, **digests, "environment": here}
    info |= {"pieces": own} if (own := own_pieces(trainer.model)) else {}
    best, before = NONE, 0.0
    if resumed is None and init is not None:
        info["init"] = world.main(lambda: _begin_with(trainer, checkpoint.find(init)))
        trainer.copy_state_from_main(0)
    if resumed is not None:
        info |= {"init": found.info["init"]} if found and "init" in found.info else {}
        glimpses_of_best, bound, before, trainer.grown = world.main(
            lambda: _restore(trainer, out, found, digests) if found else (0, math.inf, 0.0, 0)
        )
        best = _rank(glimpses_of_best, bound)
        trainer.copy_state_from_main(resumed)
    if trainer.finished(before):
        return
    log = _Log(out)
    with contextlib.ExitStack() as held, contextlib.closing(log):

        def begin() -> None:
            held.enter_context(_locked(out))
            if found is not None and checkpoint.newest(out) != found.path:
                raise UserError(f"{out} was trained by another process in the meantime: resume it again")
            if resumed is None:
                to_go_on_from(out, resume)  # again: another process may have had the folder since
                shutil.rmtree(out / "checkpoints", ignore_errors=True)  # of a run that took no step
            log.begin(config, data, info, resumed, tensorboard)
            if resumed is None:
                _save(out, trainer, config, 0.0, "step", info)  # so that whatever stops this run, it can be resumed

        world.main(begin)
        begun, _ = world.decide(time.perf_counter(), False)
        now = saved = begun
        logged = (trainer.step, begun)
        ended = False
        while not ended:
            trainer.train_step(before + now - begun)
            asked = stop()
            now, stopping = world.decide(time.perf_counter(), asked)
            seconds = before + now - begun
            ended = trainer.finished(seconds)
            stopping = stopping or (minutes is not None and now - begun >= 60 * minutes)
            leaving = False  # whether a machine is about to be taken away, which need not stop the others
            records: list[Metrics | Validation] = []

            if trainer.step % config.train.log_every == 0 or ended:
                rate = (trainer.step - logged[0]) * config.train.batch_size / (now - logged[1])
                records.append(trainer.metrics(seconds, rate))
                logged = (trainer.step, now)
                leaving = world.any(asked)

            if trainer.step % config.train.validate_every == 0 or ended:
                validation = _validate(trainer, data, seconds, best)
                best = min(best, _rank(validation.glimpses, validation.bound_nats))
                records.append(validation)
                now, _ = world.decide(time.perf_counter(), False)
                logged = (trainer.step, now)  # images per second are of training alone

            improved = any(isinstance(record, Validation) and record.best for record in records)
            due = now - saved >= 60 * config.train.checkpoint_minutes or improved or stopping or leaving or ended
            if records or due:
                world.main(functools.partial(_keep, out, trainer, log, records, seconds, info, due))
            saved = now if due else saved
            yield from records
            if stopping:
                break


def _keep(
    out: Path,
    trainer: Trainer,
    log: "_Log",
    records: list[Metrics | Validation],
    seconds: float,
    info: dict[str, Any],
    due: bool,
) -> None:
    """Put what a step gave into the folder: log lines, pictures, a checkpoint if it is due, and the best."""
    if not (out / "config.json").is_file():  # or a new folder would be begun, which could not be resumed
        raise UserError(f"{out} is no longer there: moved, go on with --resume --out and its new name")
    if any(isinstance(record, Validation) for record in records):
        sheet = render.sheet(trainer.ema.sample(SAMPLES, seed=trainer.config.train.seed))
        render.save_png(sheet, sheet_of(out, trainer.step))
        render.save_png(_reading(trainer), reading_of(out, trainer.step))
    log.write(records)
    if due:
        _save(out, trainer, trainer.config, seconds, "step", info)
    for record in records:
        if isinstance(record, Validation) and record.best:
            # After the resumable one: the best is never from a step that resuming would train again.
            grown = replace(trainer.config, model=trainer.ema.config)
            _save(out, trainer, grown, seconds, "best", info | {"bound_nats": record.bound_nats})


def _begin_with(trainer: Trainer, given: checkpoint.Checkpoint) -> dict[str, str]:
    """Give a new run the weights of a model. Says which they were."""
    weights = given.tensors()
    if (own := own_pieces(trainer.model)) != given.pieces:
        raise UserError(f"cannot begin with {given.path}, made with {in_words(given.pieces)}, not {in_words(own)}")
    try:
        trainer.load_state(trainer.state() | {f"model.{name}": value for name, value in weights.items()}, weights, 0)
    except ValueError as error:
        raise UserError(f"cannot begin with {given.path}: {error}") from error
    return {"model": given.path.name, "sha256": given.sha256[checkpoint.MODEL]}


def sheet_of(out: Path, step: int) -> Path:
    """The sheet of samples that a run's folder holds of the validation after so many steps."""
    return out / "samples" / f"step-{step:08d}.png"


def reading_of(out: Path, step: int) -> Path:
    """The picture of validation images being read and redrawn that a run's folder holds of the same validation."""
    return out / "readings" / sheet_of(out, step).name


def _reading(trainer: Trainer) -> Image.Image:
    # The same images from the same noise at every validation, so that the pictures make a film.
    model, data, seed = trainer.ema, trainer.data, trainer.config.train.seed
    images = data.split("valid")
    x = intensities(images[spread(len(images), READINGS)], data.binarization, seeded(seed, "binarize"))
    x = x.to(model.canvas0)
    with torch.no_grad():
        trace = model(model.noise(len(x), seed, "reconstruct"), x, trace=True).trace
    config, scale = model.config, render.fitting_scale(600, 7 * x.shape[-1])
    return render.reconstructions(
        x, trace, model.likelihood.mean, read_n=config.read_n, write_n=config.write_n, columns=4, scale=scale
    )


def film(run: Path, most: int = 100) -> list[Image.Image]:
    """How a network learned to read and to draw: frames of its `readings`, each under its step and bound.

    Args:
        run: A run's folder.
        most: Frames; of more validations evenly spaced ones are taken, the first and the last among them.

    Raises:
        UserError: If there is no such run, or it holds no readings.
    """
    found = [r for r in read_log(run) if r["kind"] == "valid" and reading_of(run, r["step"]).is_file()]
    if not found:
        raise UserError(f"{run} holds no readings to make a film of; every validation of a run leaves one there")
    shown = [found[i] for i in render.evenly(len(found), most)]
    captions = [f"step {r['step']:,}: validation bound {r['bound_nats']:.1f} nats" for r in shown]
    return render.captioned([render.read_png(reading_of(run, r["step"])) for r in shown], captions)


def _restore(
    trainer: Trainer, out: Path, found: checkpoint.Checkpoint, digests: dict[str, str]
) -> tuple[int, float, float, int]:
    """Bring a trainer to where a run's checkpoint is. Gives the best one's glimpses and bound, the seconds, and the
    glimpses that it has come to."""
    _same_run(out, found.config, trainer.config)
    for name, digest in digests.items():
        if found.info.get(name, digest) != digest:
            of = "validation images" if name == "valid_sha256" else "images"
            raise UserError(f"cannot resume {out}: the {of} are not those that it was begun with")
    if (own := own_pieces(trainer.model)) != found.pieces:
        raise UserError(f"cannot resume {out} with {in_words(own)}: it was begun with {in_words(found.pieces)}")
    try:
        trainer.load_state(found.tensors(checkpoint.TRAINING), found.tensors(), found.step)
    except ValueError as error:
        raise UserError(f"cannot resume {found.path}: {error}") from error
    newest = checkpoint.newest(out, "best")
    best = checkpoint.read(newest) if newest else None
    bound = best.info.get("bound_nats", math.inf) if best else math.inf
    if best and not isinstance(bound, int | float):
        raise UserError(f"{best.path} is damaged: its bound_nats is {bound!r}")
    steps, grown = found.config.model.steps, found.info.get("grown", 0)
    if type(grown) is not int or not 0 <= grown <= steps:
        raise UserError(f"{found.path} is damaged: its grown is {grown!r}")
    grown = max(grown, glimpses(found.config.train, steps, found.step, found.seconds))
    return best.config.model.steps if best else 0, bound, found.seconds, grown


def _rank(glimpses: int, bound_nats: float) -> Rank:
    """The better of two validations has the lower one: more glimpses, or as many and a lower bound."""
    return -glimpses, bound_nats


def _validate(trainer: Trainer, data: DataSet, seconds: float, best: Rank) -> Validation:
    settings = EvalConfig(split="valid", images=trainer.config.train.validation_images, seed=trainer.config.train.seed)
    try:
        measured = evaluate(trainer.ema, data, settings, world=trainer.world, unroll=trainer.ema_unroll)
    except NonFiniteError as error:
        raise NonFiniteError(f"step {trainer.step}: {error}") from error
    return Validation(
        step=trainer.step,
        seconds=seconds,
        bound_nats=measured.bound_nats,
        bound_se=measured.bound_se,
        loss_x_nats=measured.loss_x_nats,
        loss_z_nats=measured.loss_z_nats,
        images=measured.images,
        glimpses=trainer.ema.config.steps,
        best=_rank(trainer.ema.config.steps, measured.bound_nats) < best,
    )


def _save(out: Path, trainer: Trainer, config: RunConfig, seconds: float, kind: str, info: dict[str, Any]) -> None:
    if kind == "step" and trainer.grown:
        info = info | {"grown": trainer.grown}
    checkpoint.save(
        out / "checkpoints" / f"{kind}-{trainer.step:08d}",
        config,
        step=trainer.step,
        seconds=seconds,
        model=trainer.ema.state_dict(),
        training=trainer.state() if kind == "step" else None,
        info=info,
    )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keeps a run's folder for this process; the system lets go of it when the process ends, however it ends.

    The lock's file holds the name of the job, by which the job knows its folder again after a restart.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    with (out / LOCK).open("a") as file:
        for patience in (0.1, 0.1, 0.1, 0.0):  # seconds: whoever asks `is_training` has the lock for an instant
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not patience:
                    raise UserError(f"{out} is being trained by another process") from error
                time.sleep(patience)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                break
        file.truncate(0)
        file.write(parallel.job() or "")
        file.flush()
        yield


def is_training(out: Path) -> bool:
    """Whether a process is training in a run's folder; where there are no locks, nobody can tell: yes."""
    try:
        import fcntl
    except ImportError:
        return True
    if not (out / LOCK).is_file():
        return False
    with (out / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            return error.errno in NO_LOCKS
    return False


class _Log:
    """metrics.jsonl, and TensorBoard's event files when asked for."""

    def __init__(self, out: Path) -> None:
        self.path = out / "metrics.jsonl"
        self.board: Any = None

    def begin(
        self,
        config: RunConfig,
        data: DataSet,
        info: dict[str, Any],
        resumed: int | None,
        tensorboard: bool,
    ) -> None:
        """Write the first lines of a new run, or go on with those up to the step that it is resumed from."""
        if tensorboard:
            self.board = _tensorboard(self.path.parent, resumed)
        here = {"images": {k: len(v) for k, v in data.images.items()}} | info
        lines: list[dict[str, Any]] = []
        if resumed is None:
            lines.append({"kind": "run", "config": to_dict(config)} | here)
        else:  # what an interrupted run logged after its last checkpoint will be logged again
            lines += logged_until(self.path.parent, resumed)
            lines.append({"kind": "resume", "step": resumed, "train": to_dict(config.train)} | here)
        checkpoint.write_text(self.path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        checkpoint.write_json(self.path.with_name("config.json"), to_dict(config))

    def write(self, records: Iterable[Metrics | Validation]) -> None:
        """Append records to the log."""
        lines = [dataclasses.asdict(record) for record in records]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        except OSError as error:
            what = f"cannot write {self.path}: {error.strerror or error}"
            raise UserError(f"{what}; the last checkpoint is kept, to go on with --resume") from error
        for line in lines if self.board else []:
            for name in line.keys() - {"kind", "step", "best", "images"}:
                if line[name] is not None:
                    self.board.add_scalar(f"{line['kind']}/{name}", line[name], line["step"])

    def close(self) -> None:
        """Flush what TensorBoard holds."""
        if self.board:
            self.board.close()


def _tensorboard(out: Path, resumed: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs an extra: pip install 'draw[tensorboard]'") from error
    # What an interrupted run wrote after its last checkpoint will be written again.
    return SummaryWriter(str(out / "tensorboard"), purge_step=None if resumed is None else resumed + 1)


def for_images(config: RunConfig, data: DataSet) -> RunConfig:
    """The configuration with the data's name, image size and resolved binarization."""
    channels, height, width = data.shape
    return config.replace(
        source=data.name, channels=channels, height=height, width=width, binarization=data.binarization
    )


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and the commit of this code, for the record of a run."""

    def git(*command: str) -> str:
        here = ["git", "-C", str(Path(__file__).parent), *command]
        return subprocess.run(here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # or it would be that of whatever this is installed in
        commit = git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "draw": draw.__version__,
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl; a last line cut short by a crash is left out.

    Raises:
        UserError: If the run has no log.
    """
    path = run / "metrics.jsonl"
    if not run.is_dir():
        raise UserError(f"{run} is no run's folder: there is none of this name")
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if line.endswith(b"\n"):
            records.append(read_record(line, f"{path}, line {number},"))
    return records


def logged_until(run: Path, step: int) -> list[dict[str, Any]]:
    """The records of a run's log as it was at a step; none if the log is gone."""
    logged = read_log(run) if (run / "metrics.jsonl").exists() else []
    return [record for record in logged if record.get("step", 0) <= step]


def read_record(line: bytes, where: str) -> dict[str, Any]:
    """One line of metrics.jsonl.

    Raises:
        UserError: Naming the place, if it is none.
    """
    record = strict_json(line.decode(errors="replace"), where)
    wanted = LOGGED.get(str(record.get("kind"))) if isinstance(record, dict) else None
    if wanted is None or not all(type(record.get(name)) in types for name, types in wanted.items()):
        raise UserError(f"{where} is no record of a run: {line[:60].decode(errors='replace')!r}")
    return record


def require_unused(out: Path) -> None:
    """Check that nothing would be overwritten in a new run's folder but a run that did not take a step.

    Raises:
        UserError: If something is there.
    """
    if not out.exists() or (out.is_dir() and (not _visible(out) or _took_no_step(out))):
        return
    raise UserError(
        f"{out} exists already: {'go on with --resume, or ' if checkpoint.newest(out) else ''}choose another --out"
    )


def _visible(out: Path) -> set[str]:
    """The names in a folder but for hidden ones: the lock, what a file manager leaves, a file cut short."""
    return {path.name for path in out.iterdir() if not path.name.startswith(".")}


def _took_no_step(out: Path) -> bool:
    """Whether a folder holds a run that ended before its first step, and nothing else."""
    others = _visible(out) - {"config.json", "metrics.jsonl", "checkpoints", "tensorboard"}
    saved = {path.name for path in out.glob("checkpoints/[!.]*")}
    if others or saved - {"step-00000000"} or not (out / "metrics.jsonl").is_file():
        return False
    return {record["kind"] for record in read_log(out)} <= {"run", "resume"}


def read_config(path: Path) -> RunConfig:
    """The configuration in a config.json.

    Raises:
        UserError: If there is none, or it is not valid.
    """
    try:
        return from_json(RunConfig, path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def to_go_on_from(out: Path, resume: bool) -> checkpoint.Checkpoint | None:
    """The checkpoint that `train` goes on from, None of a new run.

    Asked or not, a job that torchrun restarts goes on with the folder that it made itself; if it was stopped before the
    first checkpoint, it begins anew.

    Raises:
        UserError: If the folder has none to resume from, or of a new run, if something is in it.
    """
    path = checkpoint.newest(out)
    if resume and path is None:
        raise UserError(f"{out} holds no checkpoint to resume from: begin anew without --resume, with another --out")
    if not resume and not _made_by_this_job(out):
        require_unused(out)
        return None
    return checkpoint.read(path) if path else None


def _made_by_this_job(out: Path) -> bool:
    job = parallel.job()
    return job is not None and (out / LOCK).is_file() and (out / LOCK).read_text() == job


def _same_run(out: Path, was: RunConfig, now: RunConfig) -> None:
    """Check all that decides the numbers but how long and how fast; where the images lie is not compared, they are."""
    for section, names in (("model", None), ("data", None), ("train", FIXED_ON_RESUME)):
        then, asked = to_dict(getattr(was, section)), to_dict(getattr(now, section))
        for name in ("source", "size", "grey", "skip_bad"):
            then.pop(name, None)  # how the images came to be here
        for name in names or then:
            if then[name] != asked[name]:
                raise UserError(f"cannot resume {out} with {name} {asked[name]!r}: it was begun with {then[name]!r}")
