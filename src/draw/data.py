"""Data sets as in-memory tensors, binarisation, and batches in an order that is a function of seed and step."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from draw import glyphs, pictures, published, sources
from draw.config import DataConfig
from draw.errors import UserError, nearest
from draw.noise import seeded
from draw.published import Arrays
from draw.sources import Progress

Images = UInt8[Tensor, "_ c h w"]  # splits differ in length
Labels = Int64[Tensor, " _"]

_CHUNK = 4096  # images at a time, where a temporary of the whole set would be many times its size


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images by split (train, valid, test), 0 is black or paper, and labels by split where they are known."""

    name: str
    images: dict[str, Images]
    labels: dict[str, Labels]
    binarization: str  # static, stochastic or none: what `intensities` does
    notes: tuple[str, ...] = ()  # what a user should know, a line each

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.images["train"].shape
        return channels, height, width

    @property
    def mean_pixel(self) -> float:
        """The mean intensity of the training images, in [0, 1]."""
        train = self.images["train"]
        return train.sum(dtype=torch.int64).item() / (255 * train.numel())

    def to(self, device: torch.device | str) -> "DataSet":
        """The same set on a device, still 8 bits a pixel."""
        return dataclasses.replace(
            self,
            images={split: tensor.to(device) for split, tensor in self.images.items()},
            labels={split: tensor.to(device) for split, tensor in self.labels.items()},
        )


def load_data(config: DataConfig, data_dir: Path | None = None, progress: Progress | None = None) -> DataSet:
    """The data set that a configuration names, complete with splits, ready to be drawn from.

    A split that the source does not have is a tenth of its training images, at least one, held out by data_seed.

    Args:
        data_dir: Where named sets lie and are downloaded to; see `sources.data_folder`.
        progress: Called with (done, total): bytes of a download, or files of a folder.

    Raises:
        UserError: If there is no such source, or it cannot be read; the message says what to do.
    """
    arrays = _complete(_read(config, data_dir, progress), config)
    tensors = {split: torch.tensor(arrays.images[split]).contiguous() for split in ("train", "valid", "test")}
    labels = {split: torch.tensor(numbers) for split, numbers in arrays.labels.items()}
    binarization: str = config.binarization
    if all(_two_valued(tensor) for tensor in tensors.values()):
        binarization = "static"
    elif binarization == "auto":
        binarization = "none" if tensors["train"].shape[1] == 3 else "stochastic"
    elif binarization == "static":
        for split, tensor in tensors.items():
            _binarize(tensor, seeded(config.data_seed, "static", split))
    return DataSet(config.source, tensors, labels, binarization, arrays.notes)


def intensities(
    images: UInt8[Tensor, "b c h w"], binarization: str, generator: torch.Generator | None = None
) -> Float[Tensor, "b c h w"]:
    """Images as targets of the likelihood, float32 in [0, 1].

    Args:
        binarization: "stochastic" draws each pixel, 0 or 1, with its grey value as the probability of 1; "static" and
            "none" only scale.
        generator: The source of noise, on the images' device. Needed for "stochastic".

    Raises:
        ValueError: If "stochastic" has no generator, or binarization is no resolved one.
    """
    if binarization not in ("static", "stochastic", "none"):
        raise ValueError(f"binarization must be static, stochastic or none, got {binarization!r}")
    grey = images.to(torch.float32) / 255
    if binarization != "stochastic":
        return grey
    if generator is None:
        raise ValueError("stochastic binarization needs a generator")
    # rand is in [0, 1): grey 0 is never drawn as 1, grey 1 always is.
    return (torch.rand(grey.shape, generator=generator, device=grey.device) < grey).to(torch.float32)


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Int64[Tensor, " b"]:
    """The images of one training step: a window of the endless row of seeded permutations, one per epoch.

    Stateless: step s takes positions s * batch_size to (s + 1) * batch_size - 1, so each image comes exactly once an
    epoch, a batch may straddle epochs, and a resumed run goes on where it stopped.

    Args:
        n: Images, at least 1.   step: From 0.

    Returns:
        Indices (batch_size,) in 0 to n - 1, on the CPU.
    """
    first, last = step * batch_size, (step + 1) * batch_size  # last is exclusive
    parts = []
    for epoch in range(first // n, (last - 1) // n + 1):
        start = epoch * n
        parts.append(_permutation(n, seed, epoch)[max(first - start, 0) : last - start])
    return torch.cat(parts)


@functools.lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> Int64[Tensor, " n"]:
    return torch.randperm(n, generator=seeded(seed, "order", epoch))


def _read(config: DataConfig, data_dir: Path | None, progress: Progress | None) -> Arrays:
    """The source's own arrays and splits."""
    source = config.source
    if source == "folder:":
        raise UserError("folder: needs a path, such as folder:photos")
    if source.startswith("folder:"):
        folder = Path(source.removeprefix("folder:")).expanduser()
        return pictures.read_folder(folder, config.size_hw, config.grey, config.skip_bad, progress)
    if config.size is not None or config.grey:
        raise UserError(f"size and grey are for folder:PATH, not for {source}")
    if source.endswith((".npy", ".npz")):
        return pictures.read_array(Path(source).expanduser())
    if source == "glyphs":
        drawn = {split: glyphs.render(config.data_seed, split, n) for split, n in glyphs.SIZES.items()}
        return Arrays({split: x for split, (x, _) in drawn.items()}, {split: y for split, (_, y) in drawn.items()})
    if source in sources.SOURCES:
        return published.read(source, data_dir, progress)
    if source and Path(source).expanduser().is_dir():
        raise UserError(f"{source} is a folder: write folder:{source}")
    raise UserError(
        f"unknown data set {source!r} (and no folder:PATH, PATH.npy or PATH.npz); {nearest(source, sources.SOURCES)}"
    )


def _complete(arrays: Arrays, config: DataConfig) -> Arrays:
    """With a seeded tenth of the training images held out for each split that is missing."""
    pixels, labels, notes = dict(arrays.images), dict(arrays.labels), list(arrays.notes)
    missing = [split for split in ("valid", "test") if split not in pixels]
    n = len(pixels["train"])
    tenth = max(1, n // 10)
    if n <= tenth * len(missing):
        raise UserError(
            f"{config.source} has {n} training images; {len(missing) + 1} or more are needed for the splits"
        )
    order = torch.randperm(n, generator=seeded(config.data_seed, "held out")).numpy()
    for split in missing:
        held, order = np.sort(order[:tenth]), order[tenth:]
        pixels[split] = pixels["train"][held]
        if "train" in labels:
            labels[split] = labels["train"][held]
        notes.append(f"{split}: {tenth:,} of the {n:,} training images, held out by data_seed {config.data_seed}")
    if missing:
        kept = np.sort(order)
        pixels["train"] = pixels["train"][kept]
        if "train" in labels:
            labels["train"] = labels["train"][kept]
    return Arrays(pixels, labels, tuple(notes))


def _two_valued(tensor: Images) -> bool:
    """Whether every pixel is 0 or 255; grey images give it away in the first chunk."""
    return all(bool(((chunk == 0) | (chunk == 255)).all()) for chunk in torch.split(tensor, _CHUNK))


def _binarize(tensor: Images, generator: torch.Generator) -> None:
    """Replaces each pixel, in place, by one draw of 0 or 255."""
    for chunk in torch.split(tensor, _CHUNK):
        chunk.copy_(intensities(chunk, "stochastic", generator) * 255)
