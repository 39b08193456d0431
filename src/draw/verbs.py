"""What each command does: from parsed options to a call of the package, and its result on stdout.

PyTorch is imported inside the functions, so that this module costs `draw --help` nothing.
"""

import dataclasses
import json
import math
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draw.config import DataConfig, EvalConfig, ModelConfig, RunConfig, SpeedConfig, TrainConfig, from_dict, to_dict
from draw.errors import UserError
from draw.presets import PRESETS, preset

if TYPE_CHECKING:
    from torch import Tensor

    from draw.bench import Report, Task, What
    from draw.checkpoint import Checkpoint
    from draw.data import DataSet
    from draw.evaluation import Evaluation
    from draw.growth import Sweep
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
    from_file = not begun and options.config.endswith(".json") and "source" not in options
    for name, size in zip(("channels", "height", "width"), data.shape, strict=True):
        if (from_file or name in options) and getattr(config.model, name) != size:
            raise UserError(f"{name} is {getattr(config.model, name)}, but the images of {data.name} have {size}")
    if options.epochs:
        iterations = math.ceil(options.epochs * len(data.images["train"]) / config.train.batch_size)
        config = config.replace(iterations=iterations, schedule_minutes=None)

    stop = _StopSignals()
    records = run.train(
        config, out, data=data, device=options.device, speed=_speed(options), resume=options.resume,
        minutes=options.minutes, stop=lambda: stop.received, tensorboard=options.tensorboard, init=options.init,
        world=world,
    )  # fmt: skip
    last: Any = None
    with stop, TrainingProgress(config.train, options.minutes, step, seconds) as progress:
        for last in records:
            progress.show(last)
            step, seconds = last.step, last.seconds
    finished = schedule_fraction(config.train, step, seconds) >= 1
    if last is None and finished:
        print(f"draw: {out} is finished; train it longer with --iterations or --schedule-minutes", file=sys.stderr)
    else:
        go_on = f"to go on: draw train --resume --out {shlex.quote(str(out))}"
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
    if options.resume and options.config and options.out:
        raise UserError(f"--resume goes on with the run's own configuration: leave out {options.config!r}")
    out = options.out or Path("runs") / Path(options.config).stem
    found = run.to_go_on_from(out, options.resume)
    if options.resume:
        config = run.read_config(out / "config.json")
    elif options.config.endswith(".json"):
        config = run.read_config(Path(options.config))
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
    if "source" in given and "binarization" not in given:
        given["binarization"] = "auto"
    if "iterations" in given:
        given.setdefault("schedule_minutes", None)
    return config.replace(**given), out, found


def _absolute(source: str) -> str:
    """The same images from whatever folder the run is used later."""
    kind, colon, path = source.partition(":")
    if colon and kind in ("folder", "packed") and path:
        return f"{kind}:{Path(path).expanduser().absolute()}"
    return str(Path(source).expanduser().absolute()) if source.endswith((".npy", ".npz")) else source


class _StopSignals:
    """Within it, Ctrl-C and SIGTERM ask training to stop after the step at hand; a second one stops at once."""

    received = False

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
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
        _print_evaluation(name, result)


def _recorded(checkpoint: "Checkpoint", options: Any) -> "Evaluation | None":
    """What was measured of a model that ships, if no more was asked for and its images would have to be downloaded."""
    from draw.results import is_shipped, result

    asked = _given(options, EvalConfig) or _given(options, DataConfig)
    if asked or not is_shipped(checkpoint) or _has_data(checkpoint, options):
        return None
    return result(checkpoint.path.name).test


def _print_evaluation(name: str, result: "Evaluation") -> None:
    print(f"{name}, {result.split} split, {result.images:,} images, binarization {result.binarization}")
    print(f"bound  {result.bound_nats:.2f}{_error(result.bound_se)} nats ({result.bits_per_dim:.4f} bits/dim), "
          f"{result.samples} sample{'s' * (result.samples > 1)} per image")  # fmt: skip
    print(f"       L^x {result.loss_x_nats:.2f} + L^z {result.loss_z_nats:.2f}")
    if result.iw_nats is not None:
        print(f"IW-{result.importance_samples}  {result.iw_nats:.2f}{_error(result.iw_se)} nats, "
              f"effective sample size {result.effective_sample_size:.1f} (median)")  # fmt: skip
    print("KL per glimpse  " + " ".join(f"{value:.2f}" for value in result.kl_per_glimpse_nats))
    if result.binarization == "none":
        print("The targets are intensities, not bits: these nats are a cross-entropy, no code length.")
    print(f"{result.seconds:.1f} seconds")


def sample(options: Any) -> None:
    import torch

    from draw import render
    from draw.noise import seeded

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
    if options.images and "source" in options:
        raise UserError("give either image files or --data")
    if options.images:
        images = torch.from_numpy(read_files(options.images, *model.config.image_shape))
        # A model of binary pixels is shown binary pixels.
        binarization = "none" if checkpoint.config.data.binarization == "none" else "stochastic"
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
        train = _data_for(checkpoint, options).images["train"]
        samples = model.sample(options.n * options.n, seed=options.seed)
        nearest = train[figures.nearest_images(samples, train)] / 255
        picture = figures.figure_6(samples, nearest, columns=options.n)
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
    manifest, binary = _packed(options)
    export.write_page(options.page, manifest, binary)
    found = {"bytes": options.page.stat().st_size, "examples": manifest["examples"]["count"]}
    if options.json:
        _print_json({"page": str(options.page), **found})
    else:
        print(f"page: {options.page} ({found['bytes'] / 1e6:.1f} MB, {found['examples']} example images)")


def serve(options: Any) -> None:
    if options.model is None and options.runs is None:
        options.model = "mnist"
    from draw.live import Runs
    from draw.serve import check_address, serve

    if not check_address(options.host, options.token).is_loopback:
        print("draw: warning: nothing is encrypted, and whoever has the address sees the page", file=sys.stderr)

    def ready(address: str) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # for the end, when the server hands its signal on
        print(json.dumps({"address": address}) if options.json else address, flush=True)
        print("draw: open it in a browser; Ctrl-C ends", file=sys.stderr)

    runs = Runs(options.runs) if options.runs else None
    manifest, binary = _packed(options) if options.model else (None, b"")
    serve(manifest, binary, options.port, ready, runs=runs, host=options.host, token=options.token)


def _packed(options: Any) -> "tuple[dict[str, Any], bytes]":
    """The model, and what the page shows beside it, as the studio takes it."""
    from draw import export
    from draw.results import card, is_shipped

    checkpoint, model = _load_model(options)
    examples, labels, binarization = _examples(checkpoint, options)
    # A page is shared: of a path only its last part goes into it.
    about = {
        "name": Path(options.model).resolve().name,
        "data": Path(checkpoint.config.data.source).name,
        "binary": binarization != "none",
        "bound_nats": checkpoint.info.get("bound_nats"),
    }
    if is_shipped(checkpoint):
        about["percentiles_nats"] = card(checkpoint.path.name)[1].one_sample.percentiles_nats
    return export.pack(model, about=about, examples=examples, labels=labels)


def _examples(checkpoint: "Checkpoint", options: Any) -> "tuple[Tensor | None, list[int], str]":
    """Test images to put into a page, 8 bits a pixel as the model is to read them, their labels, the binarization.

    None of them if the model's own data set is not here: a page is no reason for a download.
    """
    from draw.data import intensities
    from draw.noise import seeded
    from draw.results import chosen_examples, examples, is_shipped

    source, asked = checkpoint.config.data.source, checkpoint.config.data.binarization
    try:
        if "source" not in options and not _has_data(checkpoint, options):
            if is_shipped(checkpoint):
                shown, labels = examples(checkpoint)
                return shown, labels, asked
            raise UserError(f"the data set {source} is not here")
        data = _data_for(checkpoint, options)
    except (UserError, OSError) as error:
        if "source" in options:
            raise
        print(f"draw: no example images in the page: {error}; name a set with --data", file=sys.stderr)
        return None, [], "none" if asked == "none" else "static"
    chosen, labels = chosen_examples(data)
    shown = (
        intensities(data.images["test"][chosen], data.binarization, seeded(options.seed, "binarize")).mul(255).byte()
    )
    return shown, labels, data.binarization


def curve(options: Any) -> None:
    from draw import curves, run

    records = run.read_log(options.run)
    curves.curve(records, options.out, title=str(options.run))
    _written({"curve": str(options.out)}, options)


def models(options: Any) -> None:
    from draw.checkpoint import MODEL, shipped
    from draw.results import card, result

    if not options.name:
        rows = {name: result(name) for name in shipped()}
        if options.json:
            _print_json({name: dataclasses.asdict(row) for name, row in rows.items()})
            return
        for name, row in rows.items():
            megabytes = (card(name)[0].path / MODEL).stat().st_size / 1e6
            print(f"{name:<20} {_bound(row.test):>14} nats  {megabytes:.1f} MB  {row.title}")
        return
    checkpoint, about = card(options.name)
    row = result(options.name)
    if options.json:
        _print_json(dataclasses.asdict(row) | {"card": dataclasses.asdict(about), "path": str(checkpoint.path)})
        return
    print(f"{options.name}: {row.title}")
    print(f"data           {about.data}")
    print(f"licence        {about.licence}")
    print("configuration  " + ", ".join(f"{k} {v}" for k, v in to_dict(checkpoint.config.model).items()))
    _print_result(row)
    print(f"float32        {about.float32_bound_nats:.3f} nats on test before the weights were rounded to what ships, "
          f"{row.test.bound_nats:.3f} after")  # fmt: skip
    for limit in about.limits:
        print(f"limit          {limit}")


def paper(options: Any) -> int:
    from draw.results import PAPER, PUBLISHED, result, results

    if options.check:
        return _check(result(options.check), options)
    rows = {row.name: row for row in results()}
    if options.json:
        measured = [dataclasses.asdict(row) for row in rows.values()]
        _print_json({"rows": measured, "paper": PAPER, "published": PUBLISHED})
        return 0
    print("Table 1: fixed binarised MNIST, all 10,000 test images, upper bounds on -log p(x) in nats per image")
    print(f"{'':<60}{'paper':>7}{'here':>15}")
    for name, bound in PUBLISHED.items():
        print(f"{name:<60}{bound:>7.2f}")
    for name in dict.fromkeys((*PAPER, *rows)):
        reported = f"{PAPER[name]:.2f}" if name in PAPER else ""
        title, here = (rows[name].title, _bound(rows[name].test)) if name in rows else ("", "not trained")
        print(f"{name + (': ' + title if title else ''):<60}{reported:>7}{here:>15}")
    for row in rows.values():
        print(f"\n{row.name}: {row.title}" + (f"; {row.note}" if row.note else ""))
        _print_result(row)
    return 0


def _check(row: "Result", options: Any) -> int:
    """Measure a row of the results again; 1 if it is not what was recorded within its standard error."""
    from draw.checkpoint import find
    from draw.evaluation import evaluate
    from draw.progress import bar
    from draw.run import choose_device

    if row.model is None:
        raise UserError(f"the weights of {row.name!r} do not ship; train them: {row.commands[0]}")
    checkpoint, was = find(row.model), row.test
    model = checkpoint.model(choose_device(options.device))
    settings = EvalConfig(split="test", samples=was.samples)
    with bar(f"check {row.name}") as progress:
        now = evaluate(model, _data_for(checkpoint, options), settings, progress=progress)
    assert was.bound_se is not None  # of all test images
    same = abs(now.bound_nats - was.bound_nats) <= was.bound_se
    if options.json:
        _print_json({"recorded": dataclasses.asdict(was), "measured": dataclasses.asdict(now), "same": same})
    else:
        print(f"recorded  {_bound(was)} nats\nmeasured  {_bound(now)} nats, {now.images:,} {now.split} images, "
              f"{now.samples} samples each, {now.seconds:.0f} seconds\n"
              f"{'the same within its error' if same else 'NOT the same within its error'}")  # fmt: skip
    return 0 if same else 1


def _bound(measured: "Evaluation") -> str:
    return f"{measured.bound_nats:.2f}{_error(measured.bound_se)}"


def _print_result(row: "Result") -> None:
    """What the table has no room for."""
    iw = row.weighted
    print(f"bound          test {_bound(row.test)} nats ({row.test.samples} samples), valid {_bound(row.valid)} "
          f"({row.valid.samples})")  # fmt: skip
    print(f"IW-{iw.importance_samples:<12,}{iw.iw_nats:.2f}{_error(iw.iw_se)} nats on {iw.images:,} test images, whose "
          f"bound is {_bound(iw)}; effective sample size {iw.effective_sample_size:.1f} (median)")  # fmt: skip
    print(f"training       {row.steps:,} steps, {row.epochs:.0f} epochs, seed {row.seed}, {row.hours:.2f} hours on "
          f"{row.hardware}, commit {row.commit}")  # fmt: skip
    for command in row.commands:
        print(f"               {command}")
    print(f"weights        SHA-256 {row.sha256}")


def bench(options: Any) -> None:
    from draw.bench import measure
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
            _write_json(options.out / f"{what}.json", reports[what])
        if not options.json:
            _print_report(report, first=len(reports) == 1)
    if options.json:
        _print_json(reports if options.what == "all" else reports[options.what])


def _grow(options: Any) -> None:
    """The sweeps of `draw bench --grow`, as a table, grow.json and a plot for each axis."""
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
    _write_json(options.out / "grow.json", dataclasses.asdict(sweep))
    names = {"steps": "glimpses T", "batch": "images per step", "side": "image side, pixels", "hidden": "LSTM units"}
    for axis, growth in sweep.axes.items():
        plot(growth, f"{names[axis]}, preset {sweep.preset}", options.out / f"grow-{axis}.png")
    if options.json:
        _print_json(dataclasses.asdict(sweep))
        return
    _print_setting(sweep)
    print(f"preset {sweep.preset}, {sweep.batch_size} images per step unless said, {sweep.repeats} repeats in turn")
    print(f"{'':<8}{'size':>6}{'min ms':>12}{'median ms':>12}{'peak MB':>10}{'fixed MB':>10}")
    for axis, growth in sweep.axes.items():
        for point in growth.points:
            memory = f"{point.peak_memory_bytes / 1e6:>10,.1f}{point.fixed_memory_bytes / 1e6:>10,.1f}"
            print(f"{axis:<8}{point.size:>6}{_ms(point.seconds.min)}{_ms(point.seconds.median)}{memory}")
        laws = {"time": growth.time, "memory above the fixed part": growth.memory}
        print(" " * 8 + ", ".join(f"{name} ~ {axis}^{law.exponent:.2f}" for name, law in laws.items() if law))


def _bench_task(what: "What", options: Any) -> "Task":
    from draw.bench import Task
    from draw.run import choose_device

    config = preset(options.preset).replace(**_given(options, ModelConfig))
    device = str(choose_device(options.device))
    if what == "sample":
        return Task(what, config.model, 64, 64, device)
    if what == "train":
        batch = options.batch_size or config.train.batch_size
        return Task(what, config.model, batch, batch, device)
    images = options.images or 2_000
    return Task(what, config.model, images, min(images, options.batch_size or EvalConfig().batch_size), device)


def _print_report(report: "Report", first: bool) -> None:
    """A report as a table; the circumstances once, before the first."""
    if first:
        _print_setting(report)
    what = {
        "train": f"one step of {report.images:,} images",
        "evaluate": f"{report.images:,} images, {report.batch_size:,} at a time",
        "sample": f"{report.images:,} images drawn",
    }[report.what]
    print(f"\n{report.what}, preset {report.preset}: {what}; {report.repeats} repeats in turn")
    print(f"{'':<20}{'min ms':>12}{'median ms':>12}")
    rows = (
        ("plain, float32", report.plain_s),
        (f"fast, {report.floor_precision}", report.fast_s),
        (f"floor, {report.floor_precision}", report.floor_s),
        ("floor, float32", report.floor_float32_s),
        ("draw sample, whole", report.process_s),
    )
    for name, pair in rows:
        if pair:
            print(f"{name:<20}{_ms(pair.min)}{_ms(pair.median)}")
    for name, pair in {"plain / fast": report.plain_over_fast, "fast / floor": report.fast_over_floor}.items():
        if pair:
            print(f"{name:<20}{pair.min:>12.2f}{pair.median:>12.2f}")
    print(f"{'images per second':<20}{'':>12}{report.images_per_s:>12,.0f}")
    first_call, memory = f"{report.first_step_s:.2f} s", f"{report.peak_memory_bytes / 1e6:,.1f} MB"
    if report.plain_first_step_s is not None and report.plain_peak_memory_bytes is not None:
        first_call += f", plain {report.plain_first_step_s:.2f} s"
        memory += f", plain {report.plain_peak_memory_bytes / 1e6:,.1f} MB"
    print(f"{'first call':<20}  {first_call}")
    print(f"{'peak memory':<20}  {memory}")


def _print_setting(report: "Report | Sweep") -> None:
    here, versions = report.hardware, report.versions
    threads = f"{here['threads']} thread" + "s" * (here["threads"] > 1)
    print(f"hardware  {here['processor']}, {here['cores']} cores, {threads}, device {here['device']}")
    commit = report.commit or "an unknown commit"
    print(f"versions  draw {versions['draw']} at {commit}, torch {versions['torch']}, python {versions['python']}")
    print("computed  " + ", ".join(f"{name} {value}" for name, value in report.config["speed"].items()))


def _ms(seconds: float) -> str:
    return f"{1_000 * seconds:>12,.2f}"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    from draw.checkpoint import write_text

    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


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
    from draw.run import choose_device

    found = checkpoint.find(options.model)
    return found, found.model(choose_device(options.device))


def _speed(options: Any) -> SpeedConfig:
    """How the command line wants it computed; the number of threads is set."""
    from draw import fast

    speed = SpeedConfig(**_given(options, SpeedConfig))
    fast.set_threads(speed.threads)
    return speed


def _load(config: DataConfig, options: Any) -> "DataSet":
    from draw.data import load_data
    from draw.progress import bar

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
    if "source" in given:
        given.setdefault("binarization", "auto")
    from draw.evaluation import require_shape

    config = dataclasses.replace(checkpoint.config.data, **given)
    data = _load(config, options)
    require_shape(data, checkpoint.config.model)
    return data


def _error(standard_error: float | None) -> str:
    return "" if standard_error is None else f" ± {standard_error:.2f}"


def _written(files: dict[str, Any], options: Any) -> None:
    if options.json:
        _print_json(files)
    else:
        for name, value in files.items():
            print(f"{name}: {value}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, allow_nan=False))
