"""The command `draw`: parse, call, print. Results go to stdout, progress to stderr; a mistake is one line, exit code 2.

PyTorch is imported by the verbs that need it, so that help is instant.
"""

import argparse
import dataclasses
import io
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import draw
from draw import verbs
from draw.config import MOST, SEEDS, SHARD_MB, DataConfig, EvalConfig, ModelConfig, SpeedConfig, TrainConfig, type_name
from draw.errors import NonFiniteError, UserError, nearest
from draw.presets import PRESETS

MODEL = "the name of a model that ships (draw models), or a run's or a checkpoint's folder"
FIGURES = ("1", "3", "6", "7", "latents")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line that names the nearest valid choice."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        choice = re.fullmatch(r"argument (.*): invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            what, name, choices = choice.groups()
            names = re.findall(r"[^,' ]+", choices)
            message = f"unknown {what.lower()} {name!r}; {nearest(name, names)}"
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)

    def unknown(self, arguments: list[str]) -> NoReturn:
        """Report arguments that nothing took."""
        first = arguments[0].split("=")[0]
        options = [option for option in self._option_string_actions if option.startswith("--")]
        hint = f"; {nearest(first, options)}" if first.startswith("--") else f"; see {self.prog} --help"
        if (short := first.removeprefix("-")) in self._option_string_actions:  # --n for -n
            hint = f"; did you mean {short!r}?"
        self.error(f"unknown argument {first!r}{hint}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    # Threads that wait for each other soon go to sleep: where other programs want the cores too, spinning ones are in
    # the way of those they wait for, and a step takes ten times as long. Read when PyTorch is loaded, hence here.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if sys.stdout is None:  # closed: what would be printed is lost, and nothing else
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what a terminal cannot show, as on stderr
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        options.parser.unknown(rest)
    try:
        code = options.verb(options) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"draw: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"draw: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"draw: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        print(f"draw: out of memory; ask for less at a time: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("draw: interrupted", file=sys.stderr)
        return 130


# The command line


def build_parser() -> Parser:
    """Every verb with its flags."""
    parser = Parser(prog="draw", description=draw.__doc__.splitlines()[0] if draw.__doc__ else None)
    parser.add_argument("--version", action="version", version=f"draw {draw.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def verb(name: str, run: Callable[[Any], int | None], help: str, into: Any = commands) -> Parser:
        added: Parser = into.add_parser(name, help=help, description=help)
        added.set_defaults(verb=run, parser=added)
        return added

    train = verb("train", verbs.train, "train a model in a run's folder")
    train.add_argument("config", nargs="?", metavar="PRESET_OR_CONFIG", help=f"{', '.join(PRESETS)}; or a config.json")
    train.add_argument("--out", type=Path, help="the run's folder; default runs/NAME, of the preset or the file")
    train.add_argument("--resume", action="store_true", help="go on from the folder's newest checkpoint")
    train.add_argument("--minutes", type=_positive, help="stop after this long, with a checkpoint to resume from")
    train.add_argument("--epochs", type=_positive, help="instead of --iterations")
    train.add_argument("--init", metavar="MODEL", help="begin with this model's weights; T may differ, sizes not")
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard event files")
    _common(train, seed=False)
    for section in (TrainConfig, DataConfig, ModelConfig):
        _fields(train, section, "the preset's")
    _fields(train, SpeedConfig)

    evaluate = verb("evaluate", verbs.evaluate, "measure the bound on a split, in nats")
    _model(evaluate)
    _common(evaluate, seed=False)
    _fields(evaluate, EvalConfig)
    _fields(evaluate, DataConfig, "the model's")
    _fields(evaluate, SpeedConfig, leave_out=("checkpoint_glimpses",))

    sample = verb("sample", verbs.sample, "draw new images")
    _model(sample)
    sample.add_argument("-n", type=_count, help="how many; default 64, or 16 with --animate")
    sample.add_argument("--out", type=Path, help="a PNG; default samples.png, or none with --animate")
    sample.add_argument("--animate", type=Path, help="an animation of the drawing: .gif, .webp or .png")
    sample.add_argument("--temperature", type=float, default=1.0, help="factor on the latents' deviation, 0 to 1000")
    _pixels(sample)
    _common(sample)

    reconstruct = verb("reconstruct", verbs.reconstruct, "let a model draw given images")
    _model(reconstruct)
    reconstruct.add_argument(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="image files, of bits white ink on black; else from --data",
    )
    reconstruct.add_argument("-n", type=_count, default=8, help="how many of the data set's; default 8")
    reconstruct.add_argument("--split", default="test", choices=("train", "valid", "test"), help="default test")
    reconstruct.add_argument("--out", type=Path, default=Path("reconstructions.png"), help="a PNG")
    _common(reconstruct)
    _fields(reconstruct, DataConfig, "the model's")

    info = verb("info", verbs.info, "what a model is: configuration, parameters, training")
    info.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    info.add_argument("--preset", choices=PRESETS, help="a preset instead: its configuration and parameters")
    _common(info, seed=False)

    models = verb("models", verbs.models, "the models that ship, or the card of one")
    models.add_argument("name", nargs="?", metavar="NAME", help="its card: data, licence, configuration, bound, limits")
    _common(models, seed=False, device=False)

    paper = verb("paper", verbs.paper, "Table 1 of the paper, with what was measured here")
    paper.add_argument("--check", metavar="NAME", help="measure the row of this model again")
    _common(paper, seed=False)

    figure = verb(
        "figure", verbs.figure, "one of the paper's figures, from our own model and data, or what each latent decides"
    )
    figure.add_argument("number", choices=FIGURES, metavar="FIGURE", help="its number in the paper, or latents")
    _model(figure)
    figure.add_argument("-n", type=_count, default=8, help="rows of all but figure 3; default 8")
    figure.add_argument("--out", type=Path, help="a PNG; default figure_NUMBER.png")
    _common(figure)
    _fields(figure, DataConfig, "the model's")

    curve = verb("curve", verbs.curve, "plot a run: the bound and its two parts over time")
    curve.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    curve.add_argument("--out", type=Path, default=Path("curve.png"), help="a PNG; default curve.png")
    _common(curve, seed=False, device=False)

    film = verb("film", verbs.film, "validation images read and redrawn, again and again while a run learned it")
    film.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    film.add_argument("--out", type=Path, default=Path("film.gif"), help="a GIF, WebP or PNG; default film.gif")
    film.add_argument("-n", type=_count, default=100, help="most frames; default 100")
    _common(film, seed=False, device=False)

    export = verb("export", verbs.export, "the studio with a model inside, as one page that needs nothing else")
    _model(export)
    export.add_argument("page", type=Path, metavar="PAGE", help="the file to write, .html")
    _common(export)
    _fields(export, DataConfig, "the model's")

    serve = verb("serve", verbs.serve, "the same page from a server on this machine, and runs while they train")
    serve.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"{MODEL}; default all that ship, with --data mnist, with --runs none",
    )
    serve.add_argument("--runs", type=Path, metavar="DIR", help="show the training of every run in this folder, live")
    serve.add_argument("--port", type=_port, default=8000, help="default 8000; 0: any free one")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1; others need --token")
    serve.add_argument("--token", help="a secret part of the page's address, 16 characters or more")
    _common(serve)
    _fields(serve, DataConfig, "the model's")

    bench = verb("bench", verbs.bench, "time a preset on random images, beside the plain path and its matrix products")
    whats = ("train", "evaluate", "sample", "all")
    bench.add_argument("what", nargs="?", default="train", choices=whats, metavar="WHAT", help=", ".join(whats))
    bench.add_argument("--preset", default="mnist", choices=PRESETS, help="default mnist")
    bench.add_argument("--against", choices=("plain",), help="also time this path, in turn with the other")
    bench.add_argument("--repeats", type=_count, default=10, help="how often each is timed; default 10")
    bench.add_argument("--batch-size", type=_count, help="images of a step, or at a time of evaluate")
    bench.add_argument("--images", type=_count, help="images of one evaluate; default 2000")
    bench.add_argument("--grow", action="store_true", help="sweep T, batch, side and hidden sizes of a training step")
    bench.add_argument("--out", type=Path, help="a folder for the reports as JSON, and for the plots of --grow")
    _common(bench, seed=False)
    _fields(bench, ModelConfig, "the preset's")
    _fields(bench, SpeedConfig)

    data = verb("data", lambda options: options.parser.print_help(), "list, get, check, preview and pack data sets")
    actions = data.add_subparsers(metavar="ACTION", parser_class=Parser)
    listed = verb("list", verbs.data_list, "the named data sets, and which are here", actions)
    get = verb("get", verbs.data_get, "download a data set and check it", actions)
    check = verb("check", verbs.data_check, "check a data set's files against their checksums", actions)
    get.add_argument("name", metavar="NAME", help="a data set's name")
    check.add_argument("name", metavar="NAME", help="a data set's name, or packed:DIR")
    preview = verb("preview", verbs.data_preview, "a contact sheet of a data set", actions)
    pack = verb("pack", verbs.data_pack, "write a data set as shards, to train without holding it in memory", actions)
    for action in (preview, pack):
        field = next(field for field in dataclasses.fields(DataConfig) if field.name == "source")
        action.add_argument("source", metavar="SOURCE", help=field.metadata["help"])
    preview.add_argument("-n", type=_count, default=64, help="how many images; default 64")
    preview.add_argument("--split", default="train", choices=("train", "valid", "test"), help="default train")
    preview.add_argument("--out", type=Path, default=Path("preview.png"), help="a PNG; default preview.png")
    pack.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, then packed:DIR")
    most = f"most megabytes of one file of images; default {SHARD_MB}"
    pack.add_argument("--shard-mb", type=_positive, default=SHARD_MB, help=most)
    for action in (listed, get, check, preview, pack):
        _common(action, seed=False, device=False)
    for action in (preview, pack):
        _fields(action, DataConfig, leave_out=("source",))
    return parser


def _model(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)


def _common(parser: Parser, *, seed: bool = True, device: bool = True) -> None:
    if seed:
        parser.add_argument("--seed", type=_seed, default=0, help="default 0")
    if device:
        parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default auto")
    parser.add_argument("--data-dir", type=Path, help="where data sets live; else DRAW_DATA, else the cache folder")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _pixels(parser: Parser) -> None:
    pixels = parser.add_mutually_exclusive_group()
    pixels.add_argument("--probabilities", action="store_true", help="show each pixel's probability (the default)")
    pixels.add_argument("--binary", action="store_true", help="draw each pixel, 0 or 1")


def _fields(parser: Parser, section: type, owner: str = "", leave_out: tuple[str, ...] = ()) -> None:
    """A flag for every field of a section; where absent, the value is the owner's, else the section's default."""
    hints = typing.get_type_hints(section)
    group = parser.add_argument_group(f"{section.__name__} ({_first_line(section)})")
    for field in dataclasses.fields(section):
        if field.name in leave_out:
            continue
        hint = hints[field.name]
        settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
        flag = "--" + (field.metadata["flag"] or field.name).replace("_", "-")
        help = f"{field.metadata['help']}; default {owner or field.default}"
        if hint is bool:
            group.add_argument(flag, help=help, action=argparse.BooleanOptionalAction, **settings)
        elif typing.get_origin(hint) is typing.Literal:
            group.add_argument(flag, help=help, choices=typing.get_args(hint), **settings)
        else:
            metavar = flag.lstrip("-").upper().replace("-", "_")
            group.add_argument(flag, help=help, type=_parser_of(hint), metavar=metavar, **settings)


def _first_line(section: type) -> str:
    return (section.__doc__ or "").splitlines()[0].rstrip(".")


def _parser_of(hint: Any) -> Callable[[str], Any]:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)

    def parse(text: str) -> Any:
        if type(None) in kinds and text.lower() == "none":
            return None
        for kind in kinds:
            if kind is not type(None):
                try:
                    return kind(text)
                except ValueError:
                    pass
        raise argparse.ArgumentTypeError(f"expected {type_name(hint)}, got {text!r}")

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) not in SEEDS:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {MOST:,}, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
