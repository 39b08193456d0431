"""The images of the named data sets, read from the forms in which they are published."""

import contextlib
import gzip
import io
import tarfile
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from draw import sources
from draw.errors import UserError
from draw.sources import File, Progress, Source

Images = NDArray[np.uint8]  # (n, c, h, w)
Labels = NDArray[np.int64]  # (n,)

PIECE = 4 << 20  # bytes of images at a time: they and what is made of them stay small beside PyTorch itself

DECODING_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    tokenize.TokenError,  # of a .npy whose header is damaged, as the next
    SyntaxError,
)


@dataclass(frozen=True)
class Arrays:
    """Images by split, 0 is black or paper. Splits nobody made are missing, and so are labels nobody knows."""

    images: dict[str, Images]
    labels: dict[str, Labels] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a user should know, a line each


@dataclass(frozen=True)
class Stream:
    """`Arrays` read once, from first to last: by split, pieces (b, c, h, w) and how many images they hold in all."""

    images: dict[str, Iterator[Images]]
    sizes: dict[str, int]
    labels: dict[str, Labels] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def rows_per_piece(row: int) -> int:
    """How many images of so many bytes make a piece of a stream."""
    return max(1, PIECE // row)


def read(name: str, data_dir: Path | None = None, progress: Progress | None = None) -> Arrays:
    """A named set, its files downloaded first if they are not in the data folder.

    Sizes and structure are verified, which finds truncated and foreign files; `sources.check` verifies checksums.

    Args:
        progress: Called with bytes done and bytes to download.

    Raises:
        UserError: If the name is unknown, a file is damaged, or could not be had.
    """
    source = sources.find(name)
    files = sources.present(source, data_dir)
    if files is None:
        sources.get(name, data_dir, progress)
        files = source.files
    folder = sources.data_folder(data_dir) / source.folder
    for file in files:
        _check_size(source, file, folder)
    if name == "binarized-mnist":
        return _read_binarized(source, folder, files, data_dir)
    readers = {"mnist": _read_mnist, "fashion-mnist": _read_mnist, "omniglot": _read_omniglot, "cifar10": _read_cifar10}
    return readers[name](source, folder, files)


@contextlib.contextmanager
def _damage(source: Source, file: str) -> Iterator[None]:
    """Turns what decoders raise on foreign bytes into one line."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot read {source.folder}/{file}: {error.strerror}") from error
    except DECODING_ERRORS as error:
        raise UserError(f"{source.folder}/{file} is damaged: {error}; run `draw data check {source.name}`") from error


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Mapping[str, Any]]:
    """The arrays of a .npz, or that of a .npy under the name `array`; never unpickled, closed whatever happens."""
    with path.open("rb") as stream:
        loaded = np.load(stream, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            yield {"array": loaded}
        else:
            with loaded:
                yield loaded


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_size(source: Source, file: File, folder: Path) -> None:
    with _damage(source, file.name):
        size = (folder / file.name).stat().st_size
        _expect(size == file.size, f"it has {size:,} bytes instead of {file.size:,}")


def _read_idx(source: Source, folder: Path, file: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes of LeCun's IDX format: 0, 0, type 8, the number of axes, big-endian sizes, data."""
    with _damage(source, file):
        data = gzip.decompress((folder / file).read_bytes())
        header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        _expect(data.startswith(header), f"it is not IDX data of shape {shape}")
        return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


def _read_mnist(source: Source, folder: Path, files: tuple[File, ...]) -> Arrays:
    train = _read_idx(source, folder, "train-images-idx3-ubyte.gz", (60_000, 28, 28))[:, None]
    test = _read_idx(source, folder, "t10k-images-idx3-ubyte.gz", (10_000, 28, 28))[:, None]
    train_labels = _read_idx(source, folder, "train-labels-idx1-ubyte.gz", (60_000,)).astype(np.int64)
    test_labels = _read_idx(source, folder, "t10k-labels-idx1-ubyte.gz", (10_000,)).astype(np.int64)
    return Arrays(
        {"train": train[:50_000], "valid": train[50_000:], "test": test},
        {"train": train_labels[:50_000], "valid": train_labels[50_000:], "test": test_labels},
    )


def _read_amat(text: NDArray[np.uint8], n: int) -> Images:
    """Rows of 784 characters 0 or 1, each followed by a space or, at the end of its row, a newline."""
    pairs = text.reshape(n, 784, 2)
    bits = pairs[..., 0] - np.uint8(ord("0"))  # wraps around below "0", so one comparison is enough
    _expect(bool((bits <= 1).all() and (pairs[:, -1, 1] == ord("\n")).all()), "it is not rows of 784 zeros and ones")
    return bits.reshape(n, 1, 28, 28) * np.uint8(255)


def _read_binarized(source: Source, folder: Path, files: tuple[File, ...], data_dir: Path | None) -> Arrays:
    images = {}
    sizes = {"train": 50_000, "valid": 10_000, "test": 10_000}
    if files == source.compact:
        with _damage(source, files[0].name), open_arrays(folder / files[0].name) as arrays:
            for split, n in sizes.items():
                images[split] = np.unpackbits(arrays[split], axis=1).reshape(n, 1, 28, 28) * np.uint8(255)
    else:
        for file, (split, n) in zip(files, sizes.items(), strict=True):
            with _damage(source, file.name):
                images[split] = _read_amat(np.fromfile(folder / file.name, np.uint8), n)
    mnist = sources.find("mnist")
    if sources.present(mnist, data_dir) is None:
        return Arrays(images)
    # The test file is MNIST's, stably sorted by class; the others are a permutation that nobody published.
    labels = _read_idx(mnist, sources.data_folder(data_dir) / mnist.folder, "t10k-labels-idx1-ubyte.gz", (10_000,))
    return Arrays(images, {"test": np.sort(labels).astype(np.int64)})


def area_average(ink: NDArray[np.bool_], side: int = 28) -> Images:
    """Square masks averaged over equal areas, rounded to 8 bits; an area full of ink is 255.

    Args:
        ink: Masks (n, s, s), True is ink.   side: Pixels of the result's sides.

    Returns:
        Images (n, 1, side, side).
    """
    size = ink.shape[-1]
    edges = np.arange(side + 1) * size / side
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.clip(overlap, 0, None).astype(np.float32)  # from 105 to 28 all are quarters, so sums are exact
    sums = weights @ ink.astype(np.float32) @ weights.T
    images: Images = np.rint(sums.astype(np.float64) * 255 / (size / side) ** 2).astype(np.uint8)
    return images[:, None]


def _read_omniglot(source: Source, folder: Path, files: tuple[File, ...]) -> Arrays:
    counts = {"train": 964, "test": 659}  # characters, each by 20 drawers
    labels = {"train": np.repeat(np.arange(964), 20), "test": np.repeat(np.arange(964, 964 + 659), 20)}
    if files == source.compact:
        with _damage(source, files[0].name):
            return Arrays(_load_28x28(folder / files[0].name, counts), labels)
    cache = folder / "averaged_28x28.npz"  # unpacking 32,460 PNG files takes many seconds
    with contextlib.suppress(*DECODING_ERRORS):
        return Arrays(_load_28x28(cache, counts), labels)
    images = {}
    for file, (split, n) in zip(files, counts.items(), strict=True):
        with _damage(source, file.name):
            images[split] = _read_drawings(folder / file.name, n)
    with contextlib.suppress(OSError):  # a folder that cannot be written to is no reason to stop
        _save_atomically(cache, images)
    return Arrays(images, labels)


def _load_28x28(path: Path, characters: dict[str, int]) -> dict[str, Images]:
    with open_arrays(path) as arrays:
        return {split: arrays[split].reshape(n * 20, 1, 28, 28) for split, n in characters.items()}


def _read_drawings(path: Path, characters: int) -> Images:
    """A published archive's drawings as their files are numbered (0001_01.png): by character, then by drawer."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png") and not Path(name).name.startswith(".")]
        _expect(len(names) == characters * 20, f"expected {characters * 20:,} drawings, got {len(names):,}")
        names.sort(key=lambda name: Path(name).name)
        images = np.empty((len(names), 1, 28, 28), np.uint8)
        for start in range(0, len(names), 20):
            pages = [Image.open(io.BytesIO(archive.read(name))).convert("1") for name in names[start : start + 20]]
            images[start : start + 20] = area_average(~np.stack([np.asarray(page) for page in pages]))
    return images


def _save_atomically(path: Path, arrays: dict[str, Images]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        part = Path(stream.name)
        try:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
            stream.close()
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def cifar_planes(delta: Images) -> Images:
    """Undoes the lossless coding of the compact form: two-dimensional differences of R-G, G, B-G, modulo 256."""
    planes = delta.copy()
    for i in range(1, 32):  # cumulative sums; NumPy's own takes four times as long
        planes[:, :, i] += planes[:, :, i - 1]
    for i in range(1, 32):
        planes[..., i] += planes[..., i - 1]
    planes[:, 0] += planes[:, 1]
    planes[:, 2] += planes[:, 1]
    return planes


def _read_cifar10(source: Source, folder: Path, files: tuple[File, ...]) -> Arrays:
    batches: dict[str, tuple[Images, Labels]] = {}
    notes: tuple[str, ...] = ()
    if files == source.compact:
        for file in files:
            with _damage(source, file.name), open_arrays(folder / file.name) as arrays:
                batches[file.name] = cifar_planes(arrays["delta"]), arrays["labels"].astype(np.int64)
        notes = ("test: the first 1,000 of 10,000",)
    else:
        with _damage(source, files[0].name), tarfile.open(folder / files[0].name, "r|gz") as archive:
            for member in archive:
                if member.name.endswith(".bin") and (stream := archive.extractfile(member)):
                    records = np.frombuffer(stream.read(), np.uint8).reshape(10_000, 1 + 3 * 32 * 32)
                    planes = records[:, 1:].reshape(-1, 3, 32, 32)
                    batches[Path(member.name).name] = planes, records[:, 0].astype(np.int64)
            _expect(len(batches) == 6, f"expected 6 batches, got {len(batches)}")
    test, *train = (batches[name] for name in sorted(batches, key=lambda name: (not name.startswith("test"), name)))
    images, labels = zip(*train, strict=True)
    return Arrays(
        {"train": np.concatenate(images), "test": test[0]}, {"train": np.concatenate(labels), "test": test[1]}, notes
    )
