"""The study behind the presets: train small variants of one run, then set them side by side.

    python benchmarks/recipe.py --out recipe              # train what is missing, print the table, plot the curves
    python benchmarks/recipe.py --out recipe --table      # print and plot what is there

Every variant is `draw train mnist-cpu` with few glimpses and the flags below, once for each seed, in OUT/VARIANT-SEED;
one that was stopped goes on. All see as many glimpses of as many images, and so cost about the same. The bound is that
of the averaged weights on 2,000 validation images after the last step; the test images are never read. Cost is counted
in glimpses of an image, in millions: it does not depend on the machine.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from draw.run import read_log

COMMON = (
    "--precision",
    "bfloat16",
    "--threads",
    "1",
    "--validate-every",
    "500",
    "--grow-from",
    "8",
    "--grow-until",
    "0.6",
    "--fall-from",
    "0",
    "--weight-decay",
    "0",
    "--awake",
    "none",
)


@dataclass(frozen=True)
class Variant:
    """What is changed, and for which seeds it was tried."""

    flags: str
    seeds: tuple[int, ...] = (0, 1)


SHORT = "--steps 8 --iterations 1500 "
T16 = "--steps 16 --learning-rate 1e-2 "
MINUTES = "--learning-rate 1e-2 --schedule-minutes 8 --validate-every 100000 --validation-images 5000 "
STEPS = "--steps 16 --learning-rate 3e-3 --grow-from none --iterations 6000 --validation-images 5000 "
VARIANTS = {
    "base": Variant(SHORT + "--learning-rate 1e-2"),
    "rate0.0025": Variant(SHORT + "--learning-rate 2.5e-3"),
    "rate0.005": Variant(SHORT + "--learning-rate 5e-3"),
    "rate0.02": Variant(SHORT + "--learning-rate 2e-2"),
    "clip100": Variant(SHORT + "--learning-rate 1e-2 --clip-norm 100"),
    "batch50": Variant("--steps 8 --iterations 3000 --learning-rate 1e-2 --batch-size 50 --warmup 1000"),
    "T16": Variant(T16 + "--iterations 1050 --grow-from none"),
    "T16grow8": Variant(T16 + "--iterations 1500 --grow-from 8"),
    "8min-T32": Variant(MINUTES + "--steps 32"),
    "8min-T16": Variant(MINUTES + "--steps 16"),
    "8min-T16rate0.005": Variant(MINUTES + "--steps 16 --learning-rate 5e-3"),
    "8min-T16batch50": Variant(MINUTES + "--steps 16 --batch-size 50"),
    "8min-T32batch50": Variant(MINUTES + "--steps 32 --batch-size 50", seeds=(0,)),
    "8min-T16batch200": Variant(MINUTES + "--steps 16 --batch-size 200 --warmup 250", seeds=(0,)),
    "6000steps": Variant(STEPS),
    "6000steps-fall0.7": Variant(STEPS + "--fall-from 0.7"),
    "6000steps-decay0.03": Variant(STEPS + "--fall-from 0.7 --weight-decay 0.03", seeds=(0,)),
    "6000steps-decay0.1": Variant(STEPS + "--fall-from 0.7 --weight-decay 0.1"),
}


def main() -> None:
    """Train what is missing, unless told not to; then the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    runs = {(name, seed): options.out / f"{name}-{seed}" for name in options.only for seed in VARIANTS[name].seeds}
    if not options.table:
        for (name, seed), out in sorted(runs.items(), key=lambda run: run[0][1]):  # all of seed 0 first
            train(out, ("mnist-cpu", *COMMON, *VARIANTS[name].flags.split(), "--seed", str(seed)))
    logs = {run: read_log(out) for run, out in runs.items() if (out / "metrics.jsonl").is_file()}
    bounds = {run: [record for record in log if record["kind"] == "valid"] for run, log in logs.items()}
    logs = {run: log for run, log in logs.items() if bounds[run]}  # those that have got so far
    print(f"{'variant':<20}{'seed':>5}{'bound, valid':>14}{'L^x':>8}{'L^z':>7}{'steps':>7}{'M glimpses':>12}  flags")
    for (name, seed), log in logs.items():
        last = bounds[name, seed][-1]
        print(f"{name:<20}{seed:>5}{last['bound_nats']:>14.2f}{last['loss_x_nats']:>8.2f}{last['loss_z_nats']:>7.2f}"
              f"{last['step']:>7,}{cost(log)[-1][0]:>12.1f}  {VARIANTS[name].flags}")  # fmt: skip
    plot(logs, options.out / "recipe.png")


def train(out: Path, arguments: tuple[str, ...]) -> None:
    """One run, or what is left of it."""
    if (out / "metrics.jsonl").is_file():
        arguments = ("--resume",)
    subprocess.run([sys.executable, "-m", "draw", "train", *arguments, "--out", str(out)], check=True)


def cost(log: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Millions of glimpses and the bound of each log line of training."""
    batch = log[0]["config"]["train"]["batch_size"]
    done, step, points = 0.0, 0, []
    for record in log:
        if record["kind"] == "train":
            done += (record["step"] - step) * batch * record["glimpses"] / 1e6
            step = record["step"]
            points.append((done, record["bound_nats"]))
    return points


def plot(logs: dict[tuple[str, int], list[dict[str, Any]]], path: Path) -> None:
    """The bound of the training batches against cost, a line for each run; the longer ones have axes of their own."""
    figure = Figure(figsize=(13, 5), dpi=100, layout="constrained")
    short, long = figure.subplots(1, 2)
    short.set_ylim(105, 210)
    long.set_ylim(92, 130)
    short.set_ylabel("bound on training batches, nats per image")
    longer = [name for name in VARIANTS if name.startswith(("8min", "6000"))]
    for axes, names in ((short, [name for name in VARIANTS if name not in longer]), (long, longer)):
        for (name, seed), log in logs.items():
            if name in names:
                x, y = zip(*cost(log), strict=True)
                style, label = ("-", name) if seed == 0 else (":", None)
                axes.plot(x, y, style, color=f"C{names.index(name)}", linewidth=1, label=label)
        axes.set_xlabel("millions of glimpses of an image")
        if axes.lines:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    print(json.dumps({"plot": str(path)}))


if __name__ == "__main__":
    main()
