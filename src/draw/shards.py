"""Packed data sets: a folder of plain .npy files of bounded size and a manifest, read row by row and never as a whole.

    manifest.json      format, shape, binarization, notes; every file with its length and SHA-256
    train-00000.npy    uint8 (n, c, h, w), then train-00001.npy and so on; valid and test likewise
    train-labels.npy   int64 (n,), where labels are known

`draw.packing` writes it: under another name that it keeps until it is complete.
"""

import itertools
import math
import operator
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from draw.config import from_dict, strict_json
from draw.errors import UserError
from draw.sources import Checked, File, check_file

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "valid", "test")
BINARIZATIONS = ("static", "stochastic", "none")
HEADER = 128  # bytes
_SHA256 = re.compile("[0-9a-f]{64}")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class Shard:
    """A file of images."""

    file: str
    images: int
    sha256: str  # of the file

    def __post_init__(self) -> None:
        # Nothing outside the pack's folder is ever opened.
        _expect(bool(re.fullmatch(r"\w[\w-]*\.npy", self.file)), f"{self.file!r} is no name of a shard")
        _expect(self.images >= 1, f"{self.file} has {self.images} images")
        _expect(bool(_SHA256.fullmatch(self.sha256)), f"the SHA-256 of {self.file} is {self.sha256!r}")


@dataclass(frozen=True)
class Split:
    """What is known of a split's images without reading them."""

    shards: tuple[Shard, ...]
    mean_pixel: float  # in [0, 1]
    sha256: str  # of all pixels in their order, however they are cut into files
    labels_sha256: str | None  # of the file of labels, where there is one

    def __post_init__(self) -> None:
        _expect(len(self.shards) >= 1, "a split has no shards")
        _expect(0 <= self.mean_pixel <= 1, f"a mean pixel is {self.mean_pixel}")
        for sha256 in (self.sha256, self.labels_sha256):
            _expect(sha256 is None or bool(_SHA256.fullmatch(sha256)), f"a SHA-256 is {sha256!r}")

    @property
    def images(self) -> int:
        """Their number."""
        return sum(shard.images for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """What a pack says of itself."""

    format: int
    source: str  # what was packed
    shape: tuple[int, ...]  # channels, height, width
    binarization: str  # static, stochastic or none
    notes: tuple[str, ...]
    splits: dict[str, Split]

    def __post_init__(self) -> None:
        good = len(self.shape) == 3 and self.shape[0] in (1, 3) and min(self.shape) >= 1
        _expect(good, f"shape is {list(self.shape)}; expected channels (1 or 3), height, width")
        _expect(self.binarization in BINARIZATIONS, f"binarization is {self.binarization!r}")
        _expect(sorted(self.splits) == sorted(SPLITS), f"splits are {', '.join(self.splits)}, not {', '.join(SPLITS)}")

    def files(self, split: str) -> tuple[File, ...]:
        """The files of a split: its shards, then its labels where there are any."""
        part, pixels = self.splits[split], math.prod(self.shape)
        files = [File(shard.file, HEADER + shard.images * pixels, shard.sha256) for shard in part.shards]
        if part.labels_sha256 is not None:
            files.append(File(labels_file(split), HEADER + 8 * part.images, part.labels_sha256))
        return tuple(files)


class Shards:
    """The images of one split of a pack, indexed like a tensor (n, c, h, w) of bytes and read from disk each time.

    Attributes:
        shape: Images, channels, height, width.
        device: Where what is read arrives: the CPU.
        mean_pixel: Of all images, in [0, 1].
        sha256: Of all pixels in their order.

    Raises:
        UserError: If a file is missing, or is not what the manifest says but for the values of its pixels; those
            `check` compares.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        part = manifest.splits[split]
        channels, height, width = manifest.shape
        self.shape = (part.images, channels, height, width)
        self.device = torch.device("cpu")
        self.mean_pixel = part.mean_pixel
        self.sha256 = part.sha256
        self._paths = [folder / shard.file for shard in part.shards]
        self._ends = np.cumsum([shard.images for shard in part.shards])
        for shard, file in zip(part.shards, manifest.files(split), strict=False):
            _require_file(folder / file.name, file.size, header("|u1", (shard.images, channels, height, width)))

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: torch.device | str) -> "Shards":
        """Itself: images leave the disk a batch at a time."""
        return self

    def __getitem__(self, index: int | slice | Int64[Tensor, " _"]) -> UInt8[Tensor, "... c h w"]:
        """Some images, in the order of their indices.

        Raises:
            IndexError: If there is no such image.
            UserError: If a file has changed since it was opened.
        """
        if isinstance(index, int):
            return self[torch.tensor([index])][0]
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(len(self))))
        if index.dtype != torch.int64:
            raise IndexError(f"packed images are indexed by int64 tensors, got {index.dtype}")
        return self._read(index.cpu().numpy())

    def _read(self, rows: NDArray[np.int64]) -> UInt8[Tensor, "b c h w"]:
        n, *size = self.shape
        images = np.empty((len(rows), *size), np.uint8)
        outside = rows[(rows < -n) | (rows >= n)]
        if len(outside):
            raise IndexError(f"image {outside[0]} of {n:,}")
        rows = np.where(rows < 0, rows + n, rows)
        shard = np.searchsorted(self._ends, rows, side="right")
        # Runs of neighbours are read at once, and each shard is opened once.
        starts = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (np.diff(shard, prepend=-1) != 0))
        stops = np.append(starts, len(rows))[1:]
        runs = zip(shard[starts].tolist(), starts.tolist(), stops.tolist(), strict=True)
        for number, group in itertools.groupby(sorted(runs), key=operator.itemgetter(0)):
            path, begin = self._paths[number], int(self._ends[number - 1]) if number else 0
            # Reading into a buffer, not mapping: mapped pages would count as this process's memory, and stay, until
            # all of the set is there; the system's cache of a file that is read is its own, and given up first.
            try:
                with path.open("rb", buffering=0) as file:
                    for _, start, stop in group:
                        file.seek(HEADER + (int(rows[start]) - begin) * math.prod(size))
                        rest = images[start:stop].data.cast("B")
                        while rest:
                            if not (count := file.readinto(rest)):
                                raise UserError(f"{path} is damaged: it has become shorter")
                            rest = rest[count:]
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from error
        return torch.from_numpy(images)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a pack.

    Raises:
        UserError: If the folder has none, or it is damaged or of an unknown format.
    """
    path = folder / MANIFEST
    try:
        values = strict_json(path.read_text(encoding="utf-8"), str(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{folder} is no pack: it has no {MANIFEST}; make one: draw data pack SOURCE --out DIR"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path} is no manifest of format {FORMAT}, the one this version reads")
    try:
        return from_dict(Manifest, values)
    except (UserError, TypeError) as error:  # TypeError: a key is missing
        raise UserError(f"{path} is damaged: {error}") from error


def read_labels(folder: Path, manifest: Manifest) -> dict[str, NDArray[np.int64]]:
    """The labels of the splits that have them.

    Raises:
        UserError: If a file is missing or damaged.
    """
    labels = {}
    for split, part in manifest.splits.items():
        if part.labels_sha256 is not None:
            path, file = folder / labels_file(split), manifest.files(split)[-1]
            _require_file(path, file.size, header("<i8", (part.images,)))
            labels[split] = np.fromfile(path, "<i8", offset=HEADER).astype(np.int64, copy=False)
    return labels


def check(folder: Path) -> tuple[Checked, ...]:
    """The checksum of every file of a pack.

    Raises:
        UserError: If the manifest is missing or damaged.
    """
    manifest = read_manifest(folder)
    return tuple(check_file(folder / file.name, file) for split in manifest.splits for file in manifest.files(split))


def labels_file(split: str) -> str:
    """The name of the file of a split's labels."""
    return f"{split}-labels.npy"


def header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file, format 1.0 (numpy.lib.format).

    NumPy's own may differ in length from version to version. This one is always the same, so that equal images have
    equal checksums, and can be written before the number of images is known.
    """
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


def _require_file(path: Path, size: int, begins: bytes) -> None:
    """Check a file without reading it all."""
    again = "pack the set again"
    try:
        got = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(HEADER)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {again}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if got != size:
        raise UserError(f"{path} is damaged: expected {size:,} bytes, got {got:,}; {again}")
    if first != begins:
        raise UserError(f"{path} is damaged: it is not the .npy file that {MANIFEST} describes; {again}")
