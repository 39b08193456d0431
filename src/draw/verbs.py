"""What each command does: from parsed options to a call of the package, and its result on stdout.

PyTorch is imported inside the functions, so that this module costs `draw --help` nothing.
"""

import contextlib
import dataclasses
import json
import math
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draw import words
from draw.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    RunConfig,
    SpeedConfig,
    TrainConfig,
    expanded,
    from_dict,
    require_temperature,
    to_dict,
)
from draw.errors import UserError
from draw.presets import PRESETS, preset

if TYPE_CHECKING:
    from torch import Tensor

    from draw.bench import Task, What
    from draw.checkpoint import Checkpoint
    from draw.data import DataSet
    from draw.evaluation import Evaluation
    from draw.model import DRAW
    from draw.parallel import World
    from draw.results import Result


def _given(options: Any, section: type) -> dict[str, Any]:
    """The fields of a section that the command line set."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(section) if field.name in options}


def train(options: Any) -> None:
    from draw.parallel import joined

    with joined() as world:
        _train(options, world)


def _train(options: Any, world: "World") -> None:
    from draw import run
    from draw.progress import TrainingProgress
    from draw.training import schedule_fraction

    def asked() -> tuple[dict[str, Any], str, tuple[int, float] | None]:
        config, out, found = _training_config(options)
        return to_dict(config), str(out), (found.step, found.seconds) if found else None

    values, folder, begun = world.main(asked)
    config, out = from_dict(RunConfig, values), Path(folder)
    step, seconds = begun or (0, 0.0)
    data = world.first_on_each_machine(lambda: _load(config.data, options))
    resized = any(name in options for name in ("source", "size", "grey", "patch"))
    from_file = not begun and options.config.endswith(".json") and not resized
    for name, size in zip(("channels", "height", "width"), data.shape, strict=True):
        if (from_file or name in options) and getattr(config.model, name) != size:
            raise UserError(f"{name} is {getattr(config.model, name)}, but the images of {data.name} have {size}")
    if options.epochs:
        images = min(options.epochs * len(data.split("train")), sys.float_info.max)
        iterations = math.ceil(images / config.train.batch_size)
        config = config.replace(iterations=iterations, schedule_minutes=None)

    stop = _StopSignals()
    records = run.train(
        config, out, data=data, device=options.device, speed=_speed(options), resume=options.resume,
        minutes=options.minutes, stop=lambda: stop.received, tensorboard=options.tensorboard, init=options.init,
        world=world,
    )  # fmt: skip
    last: Any = None
    earlier = world.main(lambda: run.logged_until(out, step) if begun else [])
    with stop, TrainingProgress(config.train, options.minutes, step, seconds, earlier) as progress:
        for last in records:
            progress.show(last)
            step, seconds = last.step, last.seconds
    finished = schedule_fraction(config.train, step, seconds) >= 1
    if last is None and finished:
        print(f"draw: {out} is finished; train it longer with --iterations or --schedule-minutes", file=sys.stderr)
    else:
        go_on = f"to go on: draw train --resume --out {shlex.quote(str(out))}"
        if options.data_dir:
            go_on += f" --data-dir {shlex.quote(str(options.data_dir))}"
        print(f"finished: {out}" if finished else go_on, file=sys.stderr)
    if options.json:
        reached = dataclasses.asdict(last) if last else {"step": step, "seconds": seconds}
        _print_json(reached | {"out": str(out), "finished": finished})


def _training_config(options: Any) -> "tuple[RunConfig, Path, Checkpoint | None]":
    """What a `draw train` command line means: the configuration, the folder, the checkpoint to go on from."""
    from draw import run

    if options.config is None and not options.resume:
        raise UserError(f"name what to train: {', '.join(PRESETS)}; or a config.json")
    if options.config is None and options.out is None:
        raise UserError("--resume needs the run's folder: --out DIR")
    if options.resume and options.init:
        raise UserError("--resume goes on with the run's own weights: leave out --init")
    if options.init and "awake" in options and options.awake is not None:
        raise UserError("--awake is for a network that begins from nothing: leave it out, or --init")
    if options.resume and options.config and options.out:
        raise UserError(f"--resume goes on with the run's own configuration: leave out {options.config!r}")
    out = expanded(options.out or _folder_meant_by(options.config, options.resume))
    found = run.to_go_on_from(out, options.resume)
    if options.resume:
        config = run.read_config(out / "config.json")
    elif options.config.endswith(".json"):
        config = run.read_config(Path(options.config))
    elif options.config not in PRESETS and (Path(options.config) / "config.json").is_file():
        raise UserError(
            f"{options.config} is a run's folder: go on with --resume --out {options.config}, or begin another like it "
            f"with {Path(options.config) / 'config.json'}"
        )
    else:
        config = preset(options.config)
    given = {
        name: value
        for section in (TrainConfig, DataConfig, ModelConfig)
        for name, value in _given(options, section).items()
    }
    ends = {"--iterations": given.get("iterations"), "--epochs": options.epochs}
    ends["--schedule-minutes"] = given.get("schedule_minutes")
    lengths = [flag for flag, value in ends.items() if value]
    if len(lengths) > 1:
        raise UserError(f"give one of {', '.join(lengths)}")
    if "source" in given:
        given["source"] = _absolute(given["source"])
    _settings_of(given, config.data.binarization if options.resume else "auto")
    if "iterations" in given:
        given.setdefault("schedule_minutes", None)
    config = config.replace(**given)
    if (given.get("grow_from") or 0) > config.model.steps:  # a preset's may be, where fewer glimpses are asked for
        raise UserError(f"--grow-from {config.train.grow_from} is more than all {config.model.steps} glimpses")
    return config, out, found


def _folder_meant_by(name: str, resume: bool) -> Path:
    """The run's folder where --out does not name it: that of the preset or the file; to go on with, also a folder."""
    is_folder = resume and name not in PRESETS and not name.endswith(".json")
    return Path(name) if is_folder else Path("runs") / Path(name).stem


def _settings_of(given: dict[str, Any], binarization: str = "auto") -> None:
    """With another data set go its own settings, not those of the one that it takes the place of."""
    if "source" in given:
        given.setdefault("binarization", binarization)
        if not given["source"].startswith("folder:"):
            given.setdefault("size", None)
            given.setdefault("grey", False)
            given.setdefault("skip_bad", False)


def _absolute(source: str) -> str:
    """The same images from whatever folder the run is used later."""
    kind, colon, path = source.partition(":")
    if colon and kind in ("folder", "packed") and path:
        return f"{kind}:{expanded(path).absolute()}"
    return str(expanded(source).absolute()) if source.endswith((".npy", ".npz")) else source


class _StopSignals:
    """Within it, Ctrl-C, SIGTERM and a terminal that is closed ask training to stop after the step at hand.

    A second one stops it at once. What is ignored, as nohup has a closed terminal ignored, stays so.
    """

    received = False

    def __enter__(self) -> None:
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        asking = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self._handle) for number in asking}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        with contextlib.suppress(OSError):  # of a terminal that is gone
            print("draw: stopping after this step, saving", file=sys.stderr)


def evaluate(options: Any) -> None:
    from draw.evaluation import evaluate
    from draw.parallel import joined
    from draw.progress import bar

    with joined() as world:
        checkpoint, model = world.every(lambda: _load_model(options))
        name = checkpoint.config.data.source
        if recorded := _recorded(checkpoint, options):
            result = recorded
            print(f"draw: {name} is not here, this was measured before it shipped; after `draw data get {name}` "
                  "it is measured here", file=sys.stderr)  # fmt: skip
        else:
            data = world.first_on_each_machine(lambda: _data_for(checkpoint, options))
            name = data.name
            with bar("evaluate") as progress:
                settings = EvalConfig(**_given(options, EvalConfig))
                result = evaluate(model, data, settings, speed=_speed(options), progress=progress, world=world)
    if world.rank > 0:
        return
    if options.json:
        _print_json(dataclasses.asdict(result) | {"recorded": bool(recorded)})
    else:
        print(words.evaluation(name, result))


def _recorded(checkpoint: "Checkpoint", options: Any) -> "Evaluation | None":
    """What was measured of a model that ships, if no more was asked for and its images would have to be downloaded."""
    from draw.results import is_shipped, result

    asked = any(_given(options, section) for section in (EvalConfig, DataConfig, SpeedConfig))
    if asked or options.device != "auto" or not is_shipped(checkpoint) or _has_data(checkpoint, options):
        return None
    return result(checkpoint.path.name).test


def sample(options: Any) -> None:
    import torch

    from draw import render
    from draw.noise import seeded

    if options.out and options.animate and options.out.resolve() == options.animate.resolve():
        raise UserError(f"--out and --animate are both {options.out}: give each a name of its own")
    require_temperature(options.temperature)
    _, model = _load_model(options)
    n = options.n or (16 if options.animate else 64)
    with torch.no_grad():
        drawing = model(options.temperature * model.noise(n, options.seed, "sample"), trace=options.animate is not None)

    def show(canvas: "Tensor") -> "Tensor":
        mean = model.likelihood.mean(canvas)
        if not options.binary:
            return mean
        # The same key for every frame: a pixel changes only when its probability does.
        return torch.bernoulli(mean, generator=seeded(options.seed, "pixels", device=mean.device))

    written = {}
    if options.animate:
        frames = render.animation(drawing.trace, show, write_n=model.config.write_n, initial=model.canvas0)
        pace = min(max(4_000 // len(frames), 50), 250)  # about four seconds, whatever T
        render.save_animation(frames, options.animate, milliseconds=pace)
        written["animation"] = str(options.animate)
    if options.out or not options.animate:
        out = options.out or Path("samples.png")
        render.save_png(render.sheet(show(drawing.canvas)), out)
        written["samples"] = str(out)
    _written(written, options)


def reconstruct(options: Any) -> None:
    import torch

    from draw import render
    from draw.data import intensities
    from draw.evaluation import spread
    from draw.noise import seeded
    from draw.objective import losses
    from draw.pictures import read_files

    checkpoint, model = _load_model(options)
    if options.images and (named := [*_given(options, DataConfig)]):
        flag = "data" if "source" in named else named[0].replace("_", "-")
        raise UserError(f"give either image files or --{flag}")
    if options.out.resolve() in [path.resolve() for path in options.images]:
        raise UserError(f"--out {options.out} is one of the images to read: give it another name")
    if options.images:
        images = torch.from_numpy(read_files(options.images, *model.config.image_shape))
        # A model of binary pixels is shown binary pixels.
        binarization = "none" if checkpoint.config.data.binarization == "none" else "stochastic"
        for path, image in zip(options.images, images, strict=True):
            if binarization == "stochastic" and image.float().mean() > 255 / 2:
                print(f"draw: {path} is mostly white, which is ink to this model: was it meant so?",
                      file=sys.stderr)  # fmt: skip
    else:
        data = _data_for(checkpoint, options)
        binarization = data.binarization
        images = data.images[options.split][spread(len(data.images[options.split]), options.n)]
    x = intensities(images, binarization, seeded(options.seed, "binarize")).to(model.canvas0)
    with torch.no_grad():
        drawing = model(model.noise(len(x), options.seed, "reconstruct"), x, trace=True)
        measured = losses(x, drawing, model.likelihood)
    config = model.config
    picture = render.reconstructions(
        x, drawing.trace, model.likelihood.mean, read_n=config.read_n, write_n=config.write_n
    )
    render.save_png(picture, options.out)
    _written({"reconstructions": str(options.out), "bound_nats": measured.bound.tolist()}, options)


def info(options: Any) -> None:
    from draw.model import DRAW

    if (options.model is None) == (options.preset is None):
        raise UserError("give either a MODEL or --preset NAME")
    if options.preset:
        config, about = preset(options.preset), {"preset": options.preset}
        model = DRAW(config.model)
    else:
        checkpoint, model = _load_model(options)
        config = checkpoint.config
        about = {"checkpoint": str(checkpoint.path), "step": checkpoint.step, "minutes": checkpoint.seconds / 60}
        about |= checkpoint.info
    parameters = {name: list(weight.shape) for name, weight in model.named_parameters()}
    total = sum(math.prod(shape) for shape in parameters.values())
    if options.json:
        _print_json(about | {"parameters": total, "shapes": parameters, "config": to_dict(config)})
        return
    for name, value in about.items():
        print(f"{name:<20} {value:,.2f}" if isinstance(value, float) else f"{name:<20} {value}")
    for section in ("model", "data", "train"):
        print(section + ": " + ", ".join(f"{k} {v}" for k, v in to_dict(getattr(config, section)).items()))
    for name, shape in parameters.items():
        print(f"{name:<28} {' x '.join(map(str, shape)):>16} {math.prod(shape):>12,}")
    print(f"{'parameters':<28} {'':>16} {total:>12,}")


def figure(options: Any) -> None:
    import torch

    from draw import figures, render

    checkpoint, model = _load_model(options)
    mean, write_n = model.likelihood.mean, model.config.write_n
    if options.number == "3":
        data = _data_for(checkpoint, options)
        index = options.seed % len(data.images["test"])
        picture = figures.figure_3(data.images["test"][index] / 255)
    elif options.number == "6":
        data = _data_for(checkpoint, options)
        train = data.split("train")
        if data.whole is not None:
            print("draw: the nearest patches are looked for in the middle of each training image, and the model was "
                  "trained on those from anywhere", file=sys.stderr)  # fmt: skip
        samples = model.sample(options.n * options.n, seed=options.seed)
        nearest = train[figures.nearest_images(samples, train)] / 255
        picture = figures.figure_6(samples, nearest, columns=options.n)
    elif options.number == "latents":
        picture = figures.figure_latents(model, options.n, seed=options.seed)
    else:
        if options.number == "7" and write_n is not None:
            raise UserError("figure 7 shows drawing without attention: this model writes with it; see figure 1")
        with torch.no_grad():
            trace = model(model.noise(options.n, options.seed, "sample"), trace=True).trace
        picture = figures.figure_1(trace, mean, write_n)
    out = options.out or Path(f"figure_{options.number}.png")
    render.save_png(picture, out)
    _written({"figure": str(out)}, options)


def export(options: Any) -> None:
    from draw import export

    export.require_html(options.page)
    manifest, binary = _packed(options, Path(options.model).resolve().name)  # a page is shared: no path goes into it
    export.write_page(options.page, manifest, binary)
    found = {"bytes": options.page.stat().st_size, "examples": manifest["examples"]["count"]}
    if options.json:
        _print_json({"page": str(options.page), **found})
    else:
        print(f"page: {options.page} ({found['bytes'] / 1e6:.1f} MB, {found['examples']} example images)")


def serve(options: Any) -> None:
    from draw.live import Runs
    from draw.serve import Packed, check_address, serve

    if not check_address(options.host, options.token).is_loopback:
        print("draw: warning: nothing is encrypted, and whoever has the address sees the page", file=sys.stderr)

    def ready(address: str) -> None:
        print(json.dumps({"address": address}) if options.json else address, flush=True)
        print("draw: open it in a browser; Ctrl-C ends", file=sys.stderr)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # for the end, when the server hands its signal on
    runs = Runs(options.runs) if options.runs else None
    models: dict[str, Packed] = {}
    for name, model in _names(options.models or _default_models(options)).items():
        options.model = model
        models[name] = _packed(options, name)
    serve(models, options.port, ready, runs=runs, host=options.host, token=options.token)


def _default_models(options: Any) -> list[str]:
    """Which models to serve where none was named: all that ship, `mnist` first; with --data only `mnist`."""
    from draw.checkpoint import shipped

    if options.runs:
        return []
    return ["mnist"] if "source" in options else sorted(shipped(), key=lambda name: name != "mnist")


def _names(models: list[str]) -> dict[str, str]:
    """MODEL arguments by the names on a page: of a path its last part, but where two have the same it is all of it.

    Raises:
        UserError: If one is given twice.
    """
    last = [Path(model).resolve().name for model in models]
    names = {model if last.count(name) > 1 else name: model for name, model in zip(last, models, strict=True)}
    if len(names) < len(models):
        twice = next(model for model in models if models.count(model) > 1)
        raise UserError(f"cannot serve {twice!r} beside itself")
    return names


def _packed(options: Any, name: str) -> "tuple[dict[str, Any], bytes]":
    """The model, and what the page shows beside it, as the studio takes it; `name` is what the page calls it."""
    from draw import export
    from draw.results import card, is_shipped

    checkpoint, model = _load_model(options)
    examples, labels, binarization = _examples(checkpoint, options)
    about = {
        "name": name,
        "data": Path(checkpoint.config.data.source).name,
        "binary": binarization != "none",
        "bound_nats": checkpoint.info.get("bound_nats"),
    }
    latents = None
    if is_shipped(checkpoint):
        known = card(checkpoint.path.name)[1]
        latents = known.telling_latents
        if about["binary"]:  # of intensities the bound is mostly their own entropy, and ranks images by that
            about["percentiles_nats"] = known.one_sample.percentiles_nats
    return export.pack(model, about=about, examples=examples, labels=labels, latents=latents)


def _examples(checkpoint: "Checkpoint", options: Any) -> "tuple[Tensor | None, list[int], str]":
    """Test images to put into a page, 8 bits a pixel as the model is to read them, their labels, the binarization.

    None of them if the model's own data set is not here: a page is no reason for a download.
    """
    from draw.results import chosen_examples, examples, is_shipped

    source, asked = checkpoint.config.data.source, checkpoint.config.data.binarization
    if is_shipped(checkpoint) and not _given(options, DataConfig):  # they lie beside it
        shown, labels = examples(checkpoint)
        return shown, labels, asked
    try:
        if "source" not in options and not _has_data(checkpoint, options):
            raise UserError(f"the data set {source} is not here")
        data = _data_for(checkpoint, options)
    except (UserError, OSError) as error:
        if "source" in options:
            raise
        print(f"draw: no example images in the page: {error}; name a set with --data", file=sys.stderr)
        return None, [], "none" if asked == "none" else "static"
    return *chosen_examples(data, options.seed), data.binarization


def curve(options: Any) -> None:
    from draw import curves, run

    records = run.read_log(options.run)
    curves.curve(records, options.out, title=str(options.run))
    _written({"curve": str(options.out)}, options)


def film(options: Any) -> None:
    from draw import render, run

    frames = run.film(options.run, options.n)
    render.save_animation(frames, options.out)
    _written({"film": str(options.out), "frames": len(frames)}, options)


def models(options: Any) -> None:
    from draw.checkpoint import MODEL, find, shipped
    from draw.results import card, result

    if not options.name:
        rows = {name: result(name) for name in shipped()}
        if options.json:
            _print_json({name: dataclasses.asdict(row) for name, row in rows.items()})
            return
        for name, row in rows.items():
            megabytes = (find(name).path / MODEL).stat().st_size / 1e6
            print(f"{name:<20} {words.bound(row.test):>14} nats  {megabytes:.1f} MB  {row.title}")
        return
    checkpoint, about = card(options.name)
    row = result(options.name)
    if options.json:
        _print_json(dataclasses.asdict(row) | {"card": dataclasses.asdict(about), "path": str(checkpoint.path)})
    else:
        print(words.card(checkpoint, about, row))


def paper(options: Any) -> int:
    from draw.results import PAPER, PUBLISHED, result, results

    if options.check:
        return _check(result(options.check), options)
    if options.json:
        rows = [dataclasses.asdict(row) for row in results()]
        _print_json({"rows": rows, "paper": PAPER, "published": PUBLISHED})
    else:
        print(words.paper(results()))
    return 0


def _check(row: "Result", options: Any) -> int:
    """Measure a row of the results again; 1 if it is not what was recorded.

    Of the same images only the noise of the latents can differ, on other hardware: by four standard errors of the
    difference of two such measurements at most. Of another number of images by two, of what the images differ in.
    """
    from draw.evaluation import evaluate
    from draw.progress import bar

    if row.model is None:
        raise UserError(f"the weights of {row.name!r} do not ship; train them: {row.commands[0]}")
    options.model, was = row.model, row.test
    checkpoint, model = _load_model(options)
    settings = EvalConfig(split="test", samples=was.samples)
    with bar(f"check {row.name}") as progress:
        now = evaluate(model, _data_for(checkpoint, options), settings, progress=progress)
    if now.images == was.images:
        error = 4 * math.sqrt(2) * (now.bound_sampling_se or 0.0)  # None of one sample: rows have 20
    else:  # a data set of which only a part was at hand
        error = 2 * math.hypot(was.bound_se or 0.0, now.bound_se or 0.0)
    same = abs(now.bound_nats - was.bound_nats) <= error
    if options.json:
        _print_json({"recorded": dataclasses.asdict(was), "measured": dataclasses.asdict(now), "same": same})
    else:
        print(words.again(was, now, same, error))
    return 0 if same else 1


def bench(options: Any) -> None:
    from draw.bench import measure
    from draw.checkpoint import write_json
    from draw.progress import bar

    if options.images and options.what not in ("evaluate", "all"):
        raise UserError("--images is for evaluate")
    if options.grow:
        _grow(options)
        return
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    speed = _speed(options)
    reports = {}
    for what in ("train", "evaluate", "sample") if options.what == "all" else (options.what,):
        task = _bench_task(what, options)
        with bar(f"bench {what}") as progress:
            report = measure(
                task, options.preset, speed,
                against_plain=options.against == "plain", repeats=options.repeats, progress=progress,
            )  # fmt: skip
        reports[what] = dataclasses.asdict(report)
        if options.out:
            write_json(options.out / f"{what}.json", reports[what])
        if not options.json:
            print(words.report(report, first=len(reports) == 1))
    if options.json:
        _print_json(reports if options.what == "all" else reports[options.what])


def _grow(options: Any) -> None:
    """The sweeps of `draw bench --grow`, as a table, grow.json and a plot for each axis."""
    from draw.checkpoint import write_json
    from draw.growth import grow, plot
    from draw.progress import bar

    if options.what != "train":
        raise UserError(f"--grow is of training steps: leave out {options.what!r}")
    if options.against:
        raise UserError("--grow sweeps one path: leave out --against; --compile off is the plain one")
    if not options.out:
        raise UserError("--grow needs a folder for its plots: --out DIR")
    options.out.mkdir(parents=True, exist_ok=True)
    speed = _speed(options)
    with bar("bench --grow") as progress:
        sweep = grow(_bench_task("train", options), options.preset, speed, repeats=options.repeats, progress=progress)
    write_json(options.out / "grow.json", dataclasses.asdict(sweep))
    names = {"steps": "glimpses T", "batch": "images per step", "side": "image side, pixels", "hidden": "LSTM units"}
    for axis, growth in sweep.axes.items():
        plot(growth, f"{names[axis]}, preset {sweep.preset}", options.out / f"grow-{axis}.png")
    if options.json:
        _print_json(dataclasses.asdict(sweep))
    else:
        print(words.sweep(sweep))


def _bench_task(what: "What", options: Any) -> "Task":
    from draw.bench import Task
    from draw.devices import choose_device

    config = preset(options.preset).replace(**_given(options, ModelConfig))
    device = str(choose_device(options.device))
    if what == "sample":
        return Task(what, config.model, 64, 64, device)
    if what == "train":
        batch = options.batch_size or config.train.batch_size
        return Task(what, config.model, batch, batch, device)
    images = options.images or 2_000
    return Task(what, config.model, images, min(images, options.batch_size or EvalConfig().batch_size), device)


def data_list(options: Any) -> None:
    from draw import sources

    here = sources.available(options.data_dir)
    rows = [dataclasses.asdict(source) | {"here": here[name]} for name, source in sources.SOURCES.items()]
    if options.json:
        _print_json({row["name"]: {k: row[k] for k in ("description", "licence", "here")} for row in rows})
        return
    print(f"data folder: {sources.data_folder(options.data_dir)}")
    for row in rows:
        print(f"{row['name']:<16} {'here' if row['here'] else '-':<5} {row['description']}; {row['licence']}")


def data_get(options: Any) -> None:
    from draw import sources
    from draw.progress import bar

    with bar(f"get {options.name}") as progress:
        folder = sources.get(options.name, options.data_dir, progress)
    _written({"data": str(folder)}, options)


def data_check(options: Any) -> int:
    from draw import sources

    if options.name.startswith("packed:"):
        from draw import shards
        from draw.data import path_of

        report, again = shards.check(path_of(DataConfig(options.name))), "pack the set again"
    else:
        report = sources.check(options.name, options.data_dir)
        again = f"get them with: draw data get {options.name}"
    if options.json:
        _print_json({str(one.path): one.state for one in report})
    if not report and not options.json:
        print(f"{options.name} has no files: it comes with the package")
    for one in report if not options.json else ():
        print(f"{one.state:<8} {one.path}" + (f": {one.detail}" if one.detail else ""))
    bad = [one for one in report if one.state != "ok"]
    if bad:
        raise UserError(f"{len(bad)} of {len(report)} files are missing or damaged; {again}")
    return 0


def data_preview(options: Any) -> None:
    from draw import render
    from draw.evaluation import spread

    data = _load(DataConfig(**_given(options, DataConfig)), options)
    images = data.images[options.split]
    render.save_png(render.sheet(images[spread(len(images), options.n)] / 255), options.out)
    if not options.json:
        print(_description(data))
    _written({"preview": str(options.out)}, options)


def data_pack(options: Any) -> None:
    from draw.packing import pack_data
    from draw.progress import bar

    config = DataConfig(**_given(options, DataConfig))
    with bar(f"pack {config.source}") as progress:
        data = pack_data(config, options.out, data_dir=options.data_dir, shard_mb=options.shard_mb, progress=progress)
    _tell_notes(data)
    if not options.json:
        print(_description(data))
    _written({"pack": str(options.out)}, options)


# What the verbs share


def _load_model(options: Any) -> "tuple[Checkpoint, DRAW]":
    from draw import checkpoint
    from draw.devices import choose_device

    found = checkpoint.find(options.model)
    return found, found.model(choose_device(options.device))


def _speed(options: Any) -> SpeedConfig:
    """How the command line wants it computed; the number of threads is set."""
    from draw import fast

    speed = SpeedConfig(**_given(options, SpeedConfig))
    fast.set_threads(speed.threads)
    return speed


def _load(config: DataConfig, options: Any) -> "DataSet":
    from draw.data import is_readable, load_data
    from draw.progress import bar

    if "source" not in options and not is_readable(config.source):
        raise UserError(
            f"{config.source!r} names no data set: images given in Python are measured there, by draw.evaluate(model, "
            "data), or named here, by --data"
        )
    with bar(f"data {config.source}") as progress:
        data = load_data(config, options.data_dir, progress)
    _tell_notes(data)
    return data


def _tell_notes(data: "DataSet") -> None:
    for note in data.notes:
        print(f"draw: {note}", file=sys.stderr)


def _description(data: "DataSet") -> str:
    sizes = ", ".join(f"{name} {len(images):,}" for name, images in data.images.items())
    shape = " x ".join(map(str, data.shape))
    return f"{data.name}: {shape} (channels, height, width); {sizes}; binarization {data.binarization}"


def _has_data(checkpoint: "Checkpoint", options: Any) -> bool:
    """Whether the model's own data set can be used without a download."""
    from draw import sources

    return sources.available(options.data_dir).get(checkpoint.config.data.source, True)


def _data_for(checkpoint: "Checkpoint", options: Any) -> "DataSet":
    """The data set that the command line names, else the one the model was trained on."""
    given = _given(options, DataConfig)
    _settings_of(given)
    from draw.evaluation import require_shape

    config = dataclasses.replace(checkpoint.config.data, **given)
    data = _load(config, options)
    require_shape(data, checkpoint.config.model)
    trained_on = checkpoint.info.get("images_sha256")
    if "source" not in given and trained_on and trained_on != data.images_sha256:
        print(
            f"draw: the training images of {data.name} are not those that the model was trained on: they or their "
            "settings have changed since, and what is held out of them now may hold some of those",
            file=sys.stderr,
        )
    return data


def _written(files: dict[str, Any], options: Any) -> None:
    if options.json:
        _print_json(files)
    else:
        for name, value in files.items():
            print(f"{name}: {value}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, allow_nan=False))
