"""Writing packed data sets (`draw.shards`) from any source, or from a user's own stream of images, piece by piece."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draw import pictures
from draw.checkpoint import write_text
from draw.config import SHARD_MB, Binarization, DataConfig, expanded
from draw.data import DataSet, held_out, intensities, load_data, path_of, read_source, require_white, resolved
from draw.errors import UserError, require_kind
from draw.noise import seeded
from draw.published import Images, Stream, rows_per_piece
from draw.shards import FORMAT, HEADER, MANIFEST, SPLITS, Manifest, Shard, Shards, Split, header, labels_file
from draw.sources import Progress

LARGEST_SHARD_MB = 1 << 20  # a terabyte


def pack_data(
    config: DataConfig,
    out: str | Path,
    *,
    data_dir: Path | None = None,
    shard_mb: int | float = SHARD_MB,
    progress: Progress | None = None,
) -> DataSet:
    """Pack the data set that a configuration names: training from the pack is training from the source.

    A folder of pictures (the names of its files aside) and a .npy never are in memory as a whole; the named sets and a
    .npz are read as `load_data` reads them.

    Args:
        out: The folder to make; see `write_shards`.
        data_dir: Where named sets lie, see `draw.load_data`.
        shard_mb: Most megabytes of one file of images.
        progress: Called with (done, total): bytes of a download, files of a folder, then images written.

    Raises:
        UserError: If the source cannot be read or the folder not be made; the message says what to do.
    """
    require_kind("config", config, DataConfig)
    _unused(Path(out))  # before anything is read
    if config.patch:
        raise UserError("a pack holds whole images, of which no patches are taken: leave --patch out")
    stream, binarization = _stream(config, data_dir, progress)
    return write_shards(
        out,
        _counted(stream, progress) if progress else stream.images,
        labels=stream.labels,
        train_images=stream.sizes["train"],
        binarization=binarization,
        data_seed=config.data_seed,
        source=config.source,
        notes=stream.notes,
        shard_mb=shard_mb,
    )


def write_shards(
    out: str | Path,
    images: Mapping[str, Iterable[Images]],
    *,
    labels: Mapping[str, Sequence[int] | NDArray[Any]] | None = None,
    train_images: int | None = None,
    binarization: Binarization = "auto",
    data_seed: int = 0,
    source: str = "stream",
    notes: Sequence[str] = (),
    shard_mb: int | float = SHARD_MB,
) -> DataSet:
    """Pack images that come piece by piece, such as from a generator; no more than a piece is held in memory.

    All is written to a folder beside `out` that gets its name once complete, and is removed if anything goes wrong.

    Args:
        out: The folder to make; it may exist if it is empty.
        images: For train, and perhaps valid and test, arrays of any number of images, uint8 (b, c, h, w) with 1 or 3
            channels, 0 is black or paper. They are read in turn, each from first to last.
        labels: For the splits where they are known, one integer an image. They are looked at after the images, so a
            generator of images may fill the list.
        train_images: How many images train has. Needed where valid or test is missing, which then is a tenth of
            them held out by data_seed, as `load_data` does it.
        binarization: What `load_data` makes of it: "static" draws each grey pixel once, by data_seed.
        source: What the pack will say that it was made from.
        notes: What a user should know, a line each.
        shard_mb: Most megabytes (2**20 bytes) of one file of images; one image may be larger.

    Returns:
        The packed set, ready to train on; `load_data(DataConfig(source=f"packed:{out}"))` gives it again.

    Raises:
        UserError: If the folder is in use or cannot be written, or the images are not such arrays.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> pieces = (np.full((10, 1, 4, 4), i, np.uint8) for i in range(10))
        >>> data = write_shards(folder, {"train": pieces}, train_images=100)
        >>> {split: len(images) for split, images in data.images.items()}
        {'train': 80, 'valid': 10, 'test': 10}
        >>> data.images["train"][:2].shape
        torch.Size([2, 1, 4, 4])
        >>> shutil.rmtree(folder)
    """
    out, labels = _unused(Path(out)), labels or {}
    DataConfig(binarization=binarization, data_seed=data_seed)  # which checks them
    if "train" not in images or not set(labels) <= set(images) <= set(SPLITS):
        raise UserError(
            f"give images of train, and maybe valid and test; got images of {', '.join(images) or 'none'}, "
            f"labels of {', '.join(labels) or 'none'}"
        )
    if not 0 < shard_mb <= LARGEST_SHARD_MB:
        raise UserError(f"shard_mb must be positive and at most {LARGEST_SHARD_MB:,}, got {shard_mb}")
    missing = [split for split in SPLITS if split not in images]
    route, held = _route(source, missing, train_images, data_seed) if missing else ({}, ())

    with _all_or_nothing(out) as folder:
        writers = {}
        for split in SPLITS:
            drawn = seeded(data_seed, "static", split) if binarization == "static" else None
            writers[split] = _Writer(folder, split, int(shard_mb * 2**20), drawn)
        shape = _write_images(writers, images, route)
        require_white(source, max(writer.largest for writer in writers.values()))
        _write_labels(writers, labels, route)
        splits = {split: writer.finished() for split, writer in writers.items()}
        two_valued = all(writer.two_valued for writer in writers.values())
        manifest = Manifest(
            format=FORMAT,
            source=source,
            shape=shape,
            binarization=resolved(binarization, two_valued, shape[0]),
            notes=(*notes, *held),
            splits=splits,
        )
        write_text(folder / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=1, allow_nan=False) + "\n")
    return load_data(DataConfig(source=f"packed:{out}"))


def _route(
    source: str, missing: list[str], train_images: int | None, data_seed: int
) -> tuple[dict[str, NDArray[np.bool_]], tuple[str, ...]]:
    """Which of the training images go to train and to each missing split, a mask each, and notes on it."""
    if train_images is None:
        raise UserError(f"no images of {' and '.join(missing)}: give them, or train_images to hold them out of train")
    rows, notes = held_out(source, train_images, missing, data_seed)
    route = {split: np.zeros(train_images, np.bool_) for split in rows}
    for split, mask in route.items():
        mask[rows[split]] = True
    return route, notes


def _unused(out: Path) -> Path:
    """The absolute path of a folder that is not there, or empty."""
    out = expanded(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already and is not an empty folder: choose another for the pack")
    return out


@contextlib.contextmanager
def _all_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write to that becomes `out` at the end, and is removed if there is no such end."""
    part = out.with_name(f"{out.name}.part")
    try:
        part.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f"{part} exists: another pack is being made, or one was cut short; then remove it") from error
    except OSError as error:
        raise UserError(f"cannot write to {part}: {error.strerror}") from error
    try:
        yield part
        if out.is_dir():
            out.rmdir()  # it is empty, or this is an error
        part.rename(out)
    except BaseException:  # whatever it is, an interruption too
        shutil.rmtree(part, ignore_errors=True)
        raise


class _Writer:
    """The files of one split while they are written.

    Args:
        folder: Where.   split: Its name.   shard_bytes: Most bytes of images in a file, but for a single image.
        drawn: The noise of static binarization, or None to keep pixels as they are.
    """

    def __init__(self, folder: Path, split: str, shard_bytes: int, drawn: torch.Generator | None) -> None:
        self.folder, self.split, self.shard_bytes, self.drawn = folder, split, shard_bytes, drawn
        self.two_valued = True  # every pixel so far is 0 or 255
        self.largest = 0  # pixel that was given
        self._shape: tuple[int, ...] = ()
        self._images = self._sum = 0  # of all pixels so far
        self._pixels = hashlib.sha256()
        self._shards: list[Shard] = []
        self._in_shard = 0  # images in the file at hand
        self._labels_sha256: str | None = None

    def add(self, images: Images) -> None:
        """Write images (b, c, h, w) after those that are there."""
        self._shape = images.shape[1:]
        rows = rows_per_piece(math.prod(self._shape))
        for first in range(0, len(images), rows):
            piece = np.ascontiguousarray(images[first : first + rows])
            self.largest = max(self.largest, int(piece.max()))
            if self.drawn is not None:  # it leaves 0 and 255 as they are
                piece = (intensities(torch.tensor(piece), "stochastic", self.drawn) * 255).to(torch.uint8).numpy()
            self.two_valued = self.two_valued and bool(((piece == 0) | (piece == 255)).all())
            self._images += len(piece)
            self._sum += int(piece.sum(dtype=np.int64))
            self._pixels.update(piece.data)
            self._write(piece)

    def add_labels(self, labels: NDArray[Any]) -> None:
        """Write the label of every image."""
        if labels.shape != (self._images,) or labels.dtype.kind not in "iu":
            raise UserError(
                f"labels of {self.split} must be {self._images} integers, got {labels.dtype} {labels.shape}"
            )
        name = labels_file(self.split)
        self._append(name, header("<i8", labels.shape) + labels.astype("<i8").tobytes())
        self._labels_sha256 = _flushed_sha256(self.folder / name)

    def finished(self) -> Split:
        """What was written; nothing can be added any more."""
        if self._in_shard:
            self._end_shard()
        if not self._images:
            raise UserError(f"{self.split} has no images")
        mean_pixel = self._sum / (255 * self._images * math.prod(self._shape))
        return Split(tuple(self._shards), mean_pixel, self._pixels.hexdigest(), self._labels_sha256)

    @property
    def _shard(self) -> str:
        return f"{self.split}-{len(self._shards):05}.npy"

    def _write(self, piece: Images) -> None:
        most = max(1, self.shard_bytes // math.prod(self._shape))
        while len(piece):
            now, piece = piece[: most - self._in_shard], piece[most - self._in_shard :]
            if not self._in_shard:
                self._append(self._shard, bytes(HEADER))  # until the number of images is known
            self._append(self._shard, now.data)
            self._in_shard += len(now)
            if self._in_shard == most:
                self._end_shard()

    def _end_shard(self) -> None:
        path = self.folder / self._shard
        with _writing(path), path.open("r+b") as file:
            file.write(header("|u1", (self._in_shard, *self._shape)))
        self._shards.append(Shard(path.name, self._in_shard, _flushed_sha256(path)))
        self._in_shard = 0

    def _append(self, name: str, content: bytes | memoryview) -> None:
        path = self.folder / name
        with _writing(path), path.open("ab") as file:
            file.write(content)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a full disk, which has no name in the system's message, into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _flushed_sha256(path: Path) -> str:
    """The checksum of a file that is on the disk, not just on its way there."""
    with _writing(path), path.open("r+b") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_images(
    writers: dict[str, _Writer], images: Mapping[str, Iterable[Images]], route: dict[str, NDArray[np.bool_]]
) -> tuple[int, ...]:
    """Every image to its split's writer, training images by the route if there is one. Gives their shape."""
    shape: tuple[int, ...] = ()
    for split, pieces in images.items():
        count = 0
        for given in pieces:
            piece = np.asarray(given)
            shape = shape or piece.shape[1:]
            if piece.dtype != np.uint8 or piece.ndim != 4 or shape[0] not in (1, 3) or 0 in shape:
                raise UserError(
                    f"{split}: images must be uint8 arrays (b, c, h, w), c = 1 or 3, got {piece.dtype} {piece.shape}"
                )
            if piece.shape[1:] != shape:
                raise UserError(f"{split}: images differ in shape, {piece.shape[1:]} after {shape}")
            count += len(piece)
            if split != "train" or not route:
                writers[split].add(piece)
            elif count <= len(route["train"]):
                for target, mask in route.items():
                    writers[target].add(piece[mask[count - len(piece) : count]])
            else:
                break
        if split == "train" and route and count != (stated := len(route["train"])):
            more = " or more" if count > stated else ""
            raise UserError(f"train_images is {stated:,}, but train has {count:,}{more} images")
    return shape


def _write_labels(
    writers: dict[str, _Writer], labels: Mapping[str, Sequence[int] | NDArray[Any]], route: dict[str, NDArray[np.bool_]]
) -> None:
    for split, given in labels.items():
        numbers = np.asarray(given)
        if split != "train" or not route:
            writers[split].add_labels(numbers)
        elif numbers.shape != route["train"].shape:
            raise UserError(f"labels of train must be {len(route['train'])} integers, got shape {numbers.shape}")
        else:
            for target, mask in route.items():
                writers[target].add_labels(numbers[mask])


def _stream(config: DataConfig, data_dir: Path | None, progress: Progress | None) -> tuple[Stream, Binarization]:
    """The images of any source, piece by piece, and the binarization to give them."""
    source, binarization = config.source, config.binarization
    if source.startswith("packed:"):
        data = load_data(dataclasses.replace(config, binarization="auto"))
        images = {split: _pieces(rows) for split, rows in data.images.items()}
        sizes = {split: len(rows) for split, rows in data.images.items()}
        labels = {split: numbers.numpy() for split, numbers in data.labels.items()}
        kept = cast(Binarization, data.binarization) if binarization == "auto" else binarization
        return Stream(images, sizes, labels, data.notes), kept
    if source.startswith("folder:"):
        folder = path_of(config)
        return pictures.stream_folder(folder, config.size_hw, config.grey, config.skip_bad, progress), binarization
    if source.endswith(".npy"):
        return pictures.stream_array(path_of(config)), binarization
    arrays = read_source(config, data_dir, progress)
    images = {split: _pieces(array) for split, array in arrays.images.items()}
    sizes = {split: len(array) for split, array in arrays.images.items()}
    return Stream(images, sizes, arrays.labels, arrays.notes), binarization


def _pieces(images: Images | Tensor | Shards) -> Iterator[Images]:
    rows = rows_per_piece(math.prod(images.shape[1:]))
    return (np.asarray(images[first : first + rows]) for first in range(0, len(images), rows))


def _counted(stream: Stream, progress: Progress) -> dict[str, Iterator[Images]]:
    """The images of a stream, with progress told after each piece is written."""
    done, total = 0, sum(stream.sizes.values())

    def counted(pieces: Iterator[Images]) -> Iterator[Images]:
        nonlocal done
        for piece in pieces:
            yield piece
            done += len(piece)
            progress(done, total)

    return {split: counted(pieces) for split, pieces in stream.images.items()}
