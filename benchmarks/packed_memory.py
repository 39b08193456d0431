"""Memory and time of training on a packed set of any size: random images, made piece by piece and removed afterwards.

    python benchmarks/packed_memory.py --gigabytes 20 --dir FOLDER_WITH_ROOM

Prints resident memory (anonymous: what the process itself needs; total: with mapped files, libraries among them) while
the set is packed, while a tiny model is trained on it, and while every image is read once. Needs Linux.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import draw
from draw.run import environment, for_images
from draw.shards import Shards, read_manifest
from draw.training import Trainer

SHAPE = (1, 28, 28)
PIECE = 5_000  # images
HELD_OUT = 1_000  # images of the validation and of the test split
MODEL = {"steps": 4, "enc_size": 32, "dec_size": 32, "z_size": 8, "read_n": 2, "write_n": 5}


class Timed(Shards):
    """Shards that remember how long each batch took to gather, in seconds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, read_manifest(folder), "train")
        self.seconds: list[float] = []

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        begun = time.perf_counter()
        images = super().__getitem__(index)
        self.seconds.append(time.perf_counter() - begun)
        return images


def memory() -> str:
    """Two cells of a table: anonymous and total resident memory of this process, MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, total = (int(lines[key].split()[0]) * 1024 / 1e6 for key in ("RssAnon", "VmRSS"))
    return f"{anonymous:,.0f} | {total:,.0f}"


def random_images(n: int) -> Iterator[NDArray[np.uint8]]:
    """n images in pieces, with ten lines of the table of packing on the way."""
    generator, begun = np.random.default_rng(0), time.perf_counter()
    told = 0
    for first in range(0, n, PIECE):
        yield generator.integers(0, 256, (min(PIECE, n - first), *SHAPE), np.uint8)
        if 10 * min(first + PIECE, n) // n > told:
            told = 10 * min(first + PIECE, n) // n
            gigabytes = min(first + PIECE, n) * np.prod(SHAPE) / 1e9
            print(f"| {gigabytes:.2f} | {memory()} | {time.perf_counter() - begun:.0f} |", flush=True)


def forget(folder: Path) -> None:
    """Let the system drop its cache of the files, so that reading them is reading the disk."""
    for path in folder.glob("*.npy"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.2, help="of training images, 10**9 bytes; default 0.2")
    parser.add_argument("--steps", type=int, default=500, help="training steps; default 500")
    parser.add_argument("--batch-size", type=int, default=100, help="images per step; default 100")
    parser.add_argument("--dir", type=Path, default=None, help="where the images are for a while; default the system's")
    options = parser.parse_args()
    n = max(10 * options.batch_size, int(options.gigabytes * 1e9 / np.prod(SHAPE)))
    print(f"{n:,} images of {' x '.join(map(str, SHAPE))}, batches of {options.batch_size}")
    print(f"{environment(torch.device('cpu'))}")

    with tempfile.TemporaryDirectory(prefix="draw-packed-", dir=options.dir) as place:
        folder = Path(place) / "packed"
        print(f"\nbefore anything: {memory()}\n\n| GB packed | anonymous MB | total MB | seconds |\n|---|---|---|---|")
        begun = time.perf_counter()
        streams = {"train": random_images(n), "valid": _few(1), "test": _few(2)}
        draw.write_shards(folder, streams)
        print(f"\npacked in {time.perf_counter() - begun:.0f} s, generating the images included")
        forget(folder)

        begun = time.perf_counter()
        data = draw.load_data(draw.DataConfig(source=f"packed:{folder}"))
        images = data.images["train"] = Timed(folder)  # opens most of it again
        print(f"opened in {(time.perf_counter() - begun) / 2:.3f} s")
        train(data, images, options)
        read_all(images, options)


def _few(seed: int) -> list[NDArray[np.uint8]]:
    return [np.random.default_rng(seed).integers(0, 256, (HELD_OUT, *SHAPE), np.uint8)]


def train(data: draw.DataSet, images: Timed, options: argparse.Namespace) -> None:
    """The table of training: a tenth of the steps a line, times as medians since the line before."""
    config = for_images(draw.RunConfig().replace(batch_size=options.batch_size, **MODEL), data)
    trainer = Trainer(config, data)
    print("\n| step | anonymous MB | total MB | gathering a batch, ms | a step in all, ms |\n|---|---|---|---|---|")
    print(f"| 0 | {memory()} | | |")
    steps: list[float] = []
    for step in range(1, options.steps + 1):
        begun = time.perf_counter()
        trainer.train_step(0.0)
        steps.append(time.perf_counter() - begun)
        if step == 1 or step % max(1, options.steps // 10) == 0:
            gather, whole = 1e3 * statistics.median(images.seconds), 1e3 * statistics.median(steps)
            print(f"| {step} | {memory()} | {gather:.1f} | {whole:.1f} |", flush=True)
            images.seconds.clear()
            steps.clear()


def read_all(images: Timed, options: argparse.Namespace) -> None:
    """The table of reading every image once, in order."""
    print("\n| GB read | anonymous MB | total MB | seconds |\n|---|---|---|---|")
    begun, tenths = time.perf_counter(), 0
    for first in range(0, len(images), PIECE):
        piece = images[first : first + PIECE]
        done = first + len(piece)
        if 10 * done // len(images) > tenths:
            tenths = 10 * done // len(images)
            gigabytes = done * np.prod(SHAPE) / 1e9
            print(f"| {gigabytes:.2f} | {memory()} | {time.perf_counter() - begun:.0f} |", flush=True)


if __name__ == "__main__":
    main()
