"""Measure a trained run and write its row of `src/draw/results.json`; with --ship NAME also the model.

    python benchmarks/record.py runs/mnist-3h mnist-3h --title "with attention, T=32" \
        --hardware "one core of an AMD EPYC" --command "draw train mnist-3h" --ship mnist

What a row holds is decided here once for all of them: the bound on all test images from 20 samples each and on all
validation images from 5, the importance-weighted estimate with 1,000 samples on --weighted-images test images. With
--ship the weights are rounded to float16 first, and it is the rounded ones that are measured.
"""

import argparse
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from draw import checkpoint, results, run
from draw.config import EvalConfig, SpeedConfig
from draw.data import load_data
from draw.evaluation import Evaluation, evaluate
from draw.fast import set_threads
from draw.model import DRAW
from draw.presets import PRESETS
from draw.results import Card, Result

LICENCE = (
    "the images: MNIST (Yann LeCun, Corinna Cortes; CC BY-SA 3.0), binarised by Salakhutdinov and Murray 2008; "
    "the weights: MIT, as this package"
)
LIMITS = [
    "It draws 28 x 28 binary images of single digits and knows nothing else; whatever it is shown it draws as a digit.",
    "Its bound is of the fixed binarisation; other binarisations of MNIST are 1-2 nats apart and not comparable.",
    "Images that it draws are samples of a model of MNIST, whose writers were US census staff and students.",
]


def main(arguments: list[str] | None = None) -> None:
    """Measure, then write everything at the end."""
    options = parsed(arguments)
    set_threads(options.threads)
    found = checkpoint.find(options.run)
    trained_by = commit(found.path.parents[1])
    if options.ship and found.config.data.source != "binarized-mnist" and not (options.licence and options.limit):
        sys.exit(f"a card of {found.config.data.source}: give its --licence and at least one --limit")
    data = load_data(found.config.data, options.data_dir)
    exact = found.model()

    def measured(model: DRAW, **settings: int | str) -> Evaluation:
        result = evaluate(model, data, EvalConfig(**settings), speed=SpeedConfig(threads=options.threads))  # type: ignore[arg-type]
        print(f"{settings}: {result.bound_nats:.3f} nats, {result.seconds:.0f} s", file=sys.stderr)
        return result

    with tempfile.TemporaryDirectory() as folder:
        if options.ship:
            found = rounded(found, Path(folder) / "step-1")
        model = found.model()
        row = Result(
            name=options.name,
            title=options.title,
            model=options.ship,
            note=options.note,
            steps=found.step,
            epochs=found.step * found.config.train.batch_size / len(data.images["train"]),
            hours=found.seconds / 3600,
            hardware=options.hardware,
            seed=found.config.train.seed,
            commit=trained_by,
            commands=options.command,
            sha256=found.sha256[checkpoint.MODEL],
            valid=measured(model, split="valid", samples=5),
            test=measured(model, split="test", samples=20),
            weighted=measured(model, split="test", importance_samples=1000, images=options.weighted_images),
        )
        if options.ship:
            card = Card(
                data=f"{data.name}: {len(data.images['train']):,} training images, binarization {data.binarization}, "
                f"SHA-256 of the training images {data.images_sha256}",
                licence=options.licence or LICENCE,
                limits=[*(options.limit or LIMITS), *([options.note] if options.note else [])],
                float32_bound_nats=measured(exact, split="test").bound_nats,
                one_sample=measured(model, split="test"),
                subset=measured(model, split="test", images=100),
                telling_latents=model.telling_latents(),
            )
            home = checkpoint.WEIGHTS / options.ship
            shutil.rmtree(home, ignore_errors=True)
            rounded(found, home, bound_nats=row.valid.bound_nats)  # the log's is of fewer images
            checkpoint.write_json(home / "card.json", dataclasses.asdict(card))
            shown, labels = results.chosen_examples(data)
            tensors = {"images": shown, "labels": torch.tensor(labels)}
            save_file(tensors, home / "examples.safetensors")
    rows = {other.name: other for other in results.results()}
    for other in rows.values():
        if options.ship and other.model == options.ship:  # its weights have just been replaced
            rows[other.name] = dataclasses.replace(other, model=None)
    rows[row.name] = row
    ordered = sorted(rows.values(), key=lambda other: list(PRESETS).index(other.name))
    checkpoint.write_json(results.RESULTS, {"rows": [dataclasses.asdict(other) for other in ordered]})


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("name", choices=PRESETS, help="of the row: the preset's")
    parser.add_argument("--title", required=True)
    parser.add_argument("--note", default="")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--licence", help="for the card, instead of that of binarised MNIST")
    parser.add_argument("--limit", action="append", help="for the card, instead of those of a model of MNIST")
    parser.add_argument("--command", action="append", required=True, help="one for each command that made the run")
    parser.add_argument("--weighted-images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--ship", metavar="NAME", help="put the model into the package, under this name")
    return parser.parse_args(arguments)


def rounded(found: checkpoint.Checkpoint, path: Path, **known: float) -> checkpoint.Checkpoint:
    """The same checkpoint with float16 weights, in another folder, without what only resuming needs."""
    weights = {name: value.half() for name, value in found.tensors().items()}
    info = {key: found.info[key] for key in ("data", "images_sha256", "bound_nats") if key in found.info} | known
    checkpoint.save(path, found.config, step=found.step, seconds=found.seconds, model=weights, info=info)
    return checkpoint.read(path)


def commit(folder: Path) -> str:
    """The commit that trained the run, or the commits of its parts."""
    records = [record for record in run.read_log(folder) if record["kind"] in ("run", "resume")]
    return ", ".join(dict.fromkeys(record["environment"]["commit"] or "unknown" for record in records))


if __name__ == "__main__":
    main()
