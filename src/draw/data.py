"""Data sets in memory or packed on disk, binarisation, and batches in an order that is a function of seed and step."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from draw import glyphs, pictures, published, shards, sources, two_digits
from draw.config import DataConfig, expanded
from draw.errors import UserError, nearest
from draw.noise import seeded
from draw.published import Arrays
from draw.shards import BINARIZATIONS, Shards
from draw.sources import Progress

Images = UInt8[Tensor, "_ c h w"]  # splits differ in length
Labels = Int64[Tensor, " _"]

_CHUNK = 4096  # images at a time, where a temporary of the whole set would be many times its size


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images by split (train, valid, test), 8 bits a pixel, and labels by split where they are known.

    0 is black or paper, 255 white or ink: intensity 1.

    Raises:
        UserError: If images are of another type, of several sizes or none, of values from 0 to 1, or grey and static;
            or if binarization is no resolved one.
    """

    name: str
    images: dict[str, Images | Shards]  # in memory, or on disk and indexed alike
    labels: dict[str, Labels]
    binarization: str  # static, stochastic or none: what `intensities` does
    notes: tuple[str, ...] = ()  # what a user should know, a line each
    # Training images of which random patches are trained on; `images` has the middle ones.
    whole: UInt8[Tensor, "n c _ _"] | None = None

    def __post_init__(self) -> None:
        if self.binarization not in BINARIZATIONS:
            raise UserError(f"binarization must be static, stochastic or none, got {self.binarization!r}")
        if not isinstance(self.images, Mapping) or not self.images:
            raise UserError(f"the images of {self.name} must be a dict of one tensor or more by split")
        for split, images in self.images.items():
            if isinstance(images, Shards):
                continue
            if not isinstance(images, Tensor):
                raise UserError(
                    f"the {split} images of {self.name} must be a torch tensor, got {type(images).__name__}"
                )
            if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
                raise UserError(
                    f"the {split} images of {self.name} must be a uint8 tensor (n, channels, height, width), of at "
                    f"least one image and values from 0 to 255, got {images.dtype} {tuple(images.shape)}"
                )
            if tuple(images.shape[1:]) != self.shape:
                raise UserError(
                    f"the {split} images of {self.name} are {tuple(images.shape[1:])}, others {self.shape} (channels, "
                    "height, width): all must have one size"
                )
        here = [x for x in self.images.values() if isinstance(x, Tensor) and x.device.type == "cpu"]
        require_white(self.name, max((int(images.amax()) for images in here), default=0))
        if self.binarization == "static" and not all(_two_valued(images) for images in here):
            raise UserError(
                f"the images of {self.name} are grey, and static ones are 0 or 255 once and for all: "
                "binarization must be stochastic or none"
            )

    def split(self, name: str) -> Images | Shards:
        """The images of a split.

        Raises:
            UserError: If there are none.
        """
        if name not in self.images:
            raise UserError(f"{self.name} has no split {name}, only {', '.join(self.images) or 'none at all'}")
        return self.images[name]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = next(iter(self.images.values())).shape
        return channels, height, width

    @property
    def mean_pixel(self) -> float:
        """The mean intensity of the training images, in [0, 1]."""
        train = self.split("train")
        if isinstance(train, Shards):
            return train.mean_pixel
        return train.sum(dtype=torch.int64).item() / (255 * train.numel())

    @property
    def images_sha256(self) -> str:
        """The SHA-256 of the training images' pixels in their order, whole ones': the same in memory and packed."""
        return _sha256(self.split("train") if self.whole is None else self.whole)

    @property
    def valid_sha256(self) -> str:
        """The same of the validation images."""
        return _sha256(self.split("valid"))

    def to(self, device: torch.device | str) -> "DataSet":
        """The same set on a device, still 8 bits a pixel; packed images stay on disk."""
        whole = None if self.whole is None else self.whole.to(device)
        images = {split: x.to(device) for split, x in self.images.items() if whole is None or split != "train"}
        if whole is not None:
            images["train"] = middle(whole, self.shape[1:])  # a view of it here too
        labels = {split: tensor.to(device) for split, tensor in self.labels.items()}
        return dataclasses.replace(self, images=images, labels=labels, whole=whole)


def _sha256(images: Images | Shards) -> str:
    if isinstance(images, Shards):
        return images.sha256
    return hashlib.sha256(images.cpu().contiguous().numpy().data).hexdigest()


def load_data(config: DataConfig, data_dir: Path | None = None, progress: Progress | None = None) -> DataSet:
    """The data set that a configuration names, complete with splits, ready to be drawn from.

    A split that the source does not have is a tenth of its training images, at least one, held out by data_seed.

    Args:
        data_dir: Where named sets lie and are downloaded to; see `sources.data_folder`.
        progress: Called with (done, total): bytes of a download, or files of a folder.

    Raises:
        UserError: If there is no such source, or it cannot be read; the message says what to do.
    """
    if not isinstance(config, DataConfig):
        raise UserError(
            f"config must be a DataConfig, got {type(config).__name__}; for a name alone, draw.DataConfig(source=...)"
        )
    if config.source.startswith("packed:"):
        packed = _packed(config)
        if config.patch_hw not in (None, packed.shape[1:]):
            raise UserError(
                f"patches are not taken of packed images: give the source of {config.source}, or --patch none"
            )
        return packed
    arrays = _complete(read_source(config, data_dir, progress), config)
    tensors = {split: torch.tensor(arrays.images[split]).contiguous() for split in ("train", "valid", "test")}
    labels = {split: torch.tensor(numbers) for split, numbers in arrays.labels.items()}
    two_valued = all(_two_valued(tensor) for tensor in tensors.values())
    binarization = resolved(config.binarization, two_valued, tensors["train"].shape[1])
    if binarization == "static" and not two_valued:
        for split, tensor in tensors.items():
            _binarize(tensor, seeded(config.data_seed, "static", split))
    whole = tensors["train"] if config.patch else None
    if patch := config.patch_hw:
        tensors = {split: middle(tensor, patch) for split, tensor in tensors.items()}
    return DataSet(config.source, {**tensors}, labels, binarization, arrays.notes, whole)


def require_white(name: str, largest: int) -> None:
    """Refuse images whose largest value is 1: what was meant is not known.

    Raises:
        UserError: If it is.
    """
    if largest == 1:
        raise UserError(f"no value of the images of {name} is above 1: white is 255")


def resolved(asked: str, two_valued: bool, channels: int) -> str:
    """The binarization of a set: the one asked for, or by the rule of `auto`; two-valued images are always static."""
    if two_valued:
        return "static"
    if asked == "auto":
        return "none" if channels == 3 else "stochastic"
    return asked


def intensities(
    images: UInt8[Tensor, "b c h w"],
    binarization: str,
    generator: torch.Generator | None = None,
    *,
    of: int | None = None,
    first: int = 0,
) -> Float[Tensor, "b c h w"]:
    """Images as targets of the likelihood, float32 in [0, 1].

    Args:
        binarization: "stochastic" draws each pixel, 0 or 1, with its grey value as the probability of 1; "static" and
            "none" only scale.
        generator: The source of noise, on any device. Needed for "stochastic".
        of, first: The images are a part of a batch of `of`, from its `first` on, and get that part of its noise.

    Raises:
        ValueError: If "stochastic" has no generator, or binarization is no resolved one.
    """
    if binarization not in BINARIZATIONS:
        raise ValueError(f"binarization must be static, stochastic or none, got {binarization!r}")
    grey = images.to(torch.float32) / 255
    if binarization != "stochastic":
        return grey
    if generator is None:
        raise ValueError("stochastic binarization needs a generator")
    # rand is in [0, 1): grey 0 is never drawn as 1, grey 1 always is.
    noise = torch.rand((of or len(grey), *grey.shape[1:]), generator=generator, device=generator.device)
    return (noise[first : first + len(grey)].to(grey.device) < grey).to(torch.float32)


def middle(images: UInt8[Tensor, "b c h w"], patch: tuple[int, int]) -> UInt8[Tensor, "b c _ _"]:
    """The patch of this height and width, pixels, in the middle of each image.

    Raises:
        UserError: If the images are smaller.
    """
    (height, width), (h, w) = images.shape[-2:], patch
    if h > height or w > width:
        raise UserError(
            f"cannot take patches of {h} x {w} pixels: the images have {height} x {width}; or give --patch none"
        )
    top, left = (height - h) // 2, (width - w) // 2
    return images[..., top : top + h, left : left + w]


def random_patches(
    images: UInt8[Tensor, "b c h w"], patch: tuple[int, int], generator: torch.Generator, *, of: int, first: int = 0
) -> UInt8[Tensor, "b c _ _"]:
    """A patch of this height and width, pixels, at a uniform random place of each image.

    Args:
        generator: The source of places, on any device.
        of, first: As for `intensities`.
    """
    (height, width), (h, w), device = images.shape[-2:], patch, images.device

    def places(most: int, side: int) -> Int64[Tensor, "b side"]:
        """The rows, or columns, of each patch."""
        starts = torch.randint(most + 1, (of, 1), generator=generator, device=generator.device)
        return starts[first : first + len(images)].to(device) + torch.arange(side, device=device)

    rows, columns = places(height - h, h), places(width - w, w)
    image, channel = (torch.arange(n, device=device) for n in images.shape[:2])
    return images[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


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


def path_of(config: DataConfig) -> Path:
    """The path of folder:PATH, packed:DIR, or a file's own.

    Raises:
        UserError: If there is none, or settings are given that are for folders only.
    """
    source = config.source
    prefix = next((prefix for prefix in ("folder:", "packed:") if source.startswith(prefix)), "")
    if prefix and source == prefix:
        raise UserError(f"{prefix} needs a path, such as {prefix}photos")
    if prefix != "folder:" and (config.size is not None or config.grey or config.skip_bad):
        raise UserError(f"size, grey and skip-bad are for folder:PATH, not for {source}")
    return expanded(source.removeprefix(prefix))


def _packed(config: DataConfig) -> DataSet:
    """A pack; what was decided when it was made, the splits and static pixels among it, is not decided again."""
    folder = path_of(config)
    manifest = shards.read_manifest(folder)
    if config.binarization == "static" != manifest.binarization:
        raise UserError(
            f"{config.source} has binarization {manifest.binarization}: static pixels are drawn when a set is packed; "
            f"pack it with --binarization static"
        )
    fixed = manifest.binarization == "static" or config.binarization == "auto"
    return DataSet(
        config.source,
        {split: Shards(folder, manifest, split) for split in shards.SPLITS},
        {split: torch.from_numpy(numbers) for split, numbers in shards.read_labels(folder, manifest).items()},
        manifest.binarization if fixed else config.binarization,
        manifest.notes,
    )


def read_source(config: DataConfig, data_dir: Path | None, progress: Progress | None) -> Arrays:
    """The arrays and splits of a source that is no pack, as `load_data` completes them."""
    source, path = config.source, path_of(config)
    if source.startswith("folder:"):
        return pictures.read_folder(path, config.size_hw, config.grey, config.skip_bad, progress)
    if source.endswith((".npy", ".npz")):
        return pictures.read_array(path)
    if source == "glyphs":
        drawn = {split: glyphs.render(config.data_seed, split, n) for split, n in glyphs.SIZES.items()}
        return Arrays({split: x for split, (x, _) in drawn.items()}, {split: y for split, (_, y) in drawn.items()})
    if source == "two-digit-mnist":
        return two_digits.compose(published.read("mnist", data_dir, progress), config.data_seed)
    if source in sources.SOURCES:
        return published.read(source, data_dir, progress)
    if source and path.is_dir():
        kind = "packed" if (path / shards.MANIFEST).is_file() else "folder"
        raise UserError(f"{source} is a folder: write {kind}:{source}")
    raise UserError(
        f"unknown data set {source!r} (and no folder:PATH, packed:DIR, PATH.npy or PATH.npz); "
        f"{nearest(source, sources.SOURCES)}"
    )


def is_readable(source: str) -> bool:
    """Whether a source is of a kind that can be read; those of a `DataSet` made in Python have any name."""
    return source in sources.SOURCES or source.startswith(("folder:", "packed:")) or source.endswith((".npy", ".npz"))


def _complete(arrays: Arrays, config: DataConfig) -> Arrays:
    """With a seeded tenth of the training images held out for each split that is missing."""
    missing = [split for split in ("valid", "test") if split not in arrays.images]
    if not missing:
        return arrays
    rows, notes = held_out(config.source, len(arrays.images["train"]), missing, config.data_seed)
    pixels = arrays.images | {split: arrays.images["train"][index] for split, index in rows.items()}
    labels = dict(arrays.labels)
    if "train" in labels:
        labels |= {split: labels["train"][index] for split, index in rows.items()}
    return Arrays(pixels, labels, arrays.notes + notes)


def held_out(
    name: str, n: int, missing: Sequence[str], data_seed: int
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """The rule by which missing splits are made of n training images: a seeded tenth each, at least one image.

    Args:
        name: Of the set, for the message.   missing: valid, test or both.

    Returns:
        Which training images are in each missing split and which stay in `train`, in ascending order; notes.

    Raises:
        UserError: If there are too few images.
    """
    tenth = max(1, n // 10)
    if n <= tenth * len(missing):
        raise UserError(f"{name} has {n} training images; {len(missing) + 1} or more are needed for the splits")
    order = torch.randperm(n, generator=seeded(data_seed, "held out")).numpy()
    rows = {split: np.sort(order[i * tenth : (i + 1) * tenth]) for i, split in enumerate(missing)}
    notes = [f"{split}: {tenth:,} of the {n:,} training images, held out by data_seed {data_seed}" for split in missing]
    return rows | {"train": np.sort(order[len(missing) * tenth :])}, tuple(notes)


def _two_valued(tensor: Images) -> bool:
    """Whether every pixel is 0 or 255; grey images give it away in the first chunk."""
    return all(bool(((chunk == 0) | (chunk == 255)).all()) for chunk in torch.split(tensor, _CHUNK))


def _binarize(tensor: Images, generator: torch.Generator) -> None:
    """Replaces each pixel, in place, by one draw of 0 or 255."""
    for chunk in torch.split(tensor, _CHUNK):
        chunk.copy_(intensities(chunk, "stochastic", generator) * 255)
