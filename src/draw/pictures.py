"""A user's own images: a folder of pictures, or a NumPy file."""

import contextlib
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from draw.errors import UserError
from draw.published import DECODING_ERRORS, Arrays, Images, Stream, open_arrays, rows_per_piece
from draw.sources import Progress

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # of what is in a file, whatever its name
SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
LARGEST_SIDE = 4096  # pixels of a picture that is taken as it is
LARGEST_FOLDER = 8 << 30  # bytes of all its pixels
_HIDDEN = (".", "__MACOSX")  # what such names begin with
_LISTED = 10  # file names in a message
MADE_HERE = ("Software", "draw")  # what a PNG written by `draw.render` says of itself
ONE_IS_WHITE = "no value is above 1: 1 is taken as white"


def read_folder(
    folder: Path,
    size: tuple[int, int] | None = None,
    grey: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Arrays:
    """Every PNG, JPEG, WebP, BMP and GIF (its first frame) below a folder, in the order of their paths.

    If the folder has a subfolder `train`, then it and `valid` (or `val`, `validation`) and `test` beside it are the
    splits, and other pictures are left out; if not, all pictures are one split. Left out are also hidden files, and
    PNGs that this package drew, such as the samples of a run that is trained in the folder. Pictures are turned as
    their EXIF tag says, and put on black where they are transparent. The result has one channel if all of them are
    stored as grey, else three; a palette counts as colour.

    Args:
        size: Height and width, pixels. Pictures are cropped about their middle to its shape, then resized (Lanczos).
        grey: Turn colours into luma (ITU-R 601-2).
        skip_bad: Leave unreadable files out, and say so in the notes, instead of stopping.
        progress: Called with files read and files to read.

    Raises:
        UserError: If there is no such folder or no picture in it, files are unreadable, or sizes differ without `size`.
    """
    pictures: dict[str, list[NDArray[np.uint8]]] = {}
    count, channels = 0, 1

    def keep(split: str, picture: NDArray[np.uint8]) -> None:
        nonlocal count, channels
        pictures.setdefault(split, []).append(picture)
        count, channels = count + 1, 3 if picture.ndim == 3 else channels  # one in colour makes all of them so
        if count * channels * math.prod(picture.shape[:2]) > LARGEST_FOLDER:
            raise UserError(
                f"the images of {folder} take more than {LARGEST_FOLDER >> 30} GiB; give --size 32, or pack them: "
                f"draw data pack folder:{folder} --out DIR"
            )

    found = _survey(folder, size, grey, skip_bad, progress, keep)
    return Arrays({split: _stacked(kept, found.colour) for split, kept in pictures.items()}, notes=found.notes)


def stream_folder(
    folder: Path,
    size: tuple[int, int] | None = None,
    grey: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Stream:
    """`read_folder` of any number of pictures: each is read twice, once to find what all have in common."""
    found = _survey(folder, size, grey, skip_bad, progress)
    rows = rows_per_piece((3 if found.colour else 1) * math.prod(found.size))

    def pieces(paths: list[Path]) -> Iterator[Images]:
        for first in range(0, len(paths), rows):
            pictures = [_readable(path, size, grey) for path in paths[first : first + rows]]
            for path, picture in zip(paths[first : first + rows], pictures, strict=True):
                if picture.shape[:2] != found.size or (picture.ndim == 3 and not found.colour):
                    raise UserError(f"{path} has changed while the folder was read")
            yield _stacked(pictures, found.colour)

    images = {split: pieces(paths) for split, paths in found.paths.items()}
    return Stream(images, {split: len(paths) for split, paths in found.paths.items()}, notes=found.notes)


@dataclass(frozen=True)
class _Survey:
    """What a folder's readable pictures have in common, and where they are, by split."""

    paths: dict[str, list[Path]]
    size: tuple[int, ...]  # height, width
    colour: bool
    notes: tuple[str, ...]


def _survey(
    folder: Path,
    size: tuple[int, int] | None,
    grey: bool,
    skip_bad: bool,
    progress: Progress | None,
    keep: Callable[[str, NDArray[np.uint8]], None] = lambda split, picture: None,
) -> _Survey:
    """Reads every picture, and gives each to `keep` as long as they fit together."""
    splits, notes = _listing(folder)
    total = sum(len(paths) for paths in splits.values())
    readable: dict[str, list[Path]] = {split: [] for split in splits}
    bad: list[str] = []
    sizes: Counter[tuple[int, ...]] = Counter()
    done, ours, colour = 0, 0, False
    for split, paths in splits.items():
        for path in paths:
            try:
                drawn_here, picture = _is_made_here(path), _picture(path, size, grey)
            except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
                bad.append(f"{path.relative_to(folder)}: {_reason(error)}")
            else:
                ours += drawn_here
                if not drawn_here:
                    sizes[picture.shape[:2]] += 1
                    if len(sizes) == 1 and max(picture.shape) <= LARGEST_SIDE:  # else only the sizes matter any more
                        keep(split, picture)
                    readable[split].append(path)
                    colour = colour or picture.ndim == 3
            done += 1
            if progress is not None:
                progress(done, total)
    if bad and not skip_bad:
        raise UserError(
            f"{len(bad)} of {total} files in {folder} cannot be read; give --skip-bad to leave them out\n" + _list(bad)
        )
    if bad:
        notes = (*notes, f"left out {len(bad)} of {total} files that cannot be read", *_list(bad).splitlines())
    if ours:
        notes = (*notes, f"left out {ours} pictures that draw made")
    _require_one_size(folder, sizes)
    for split, paths in readable.items():
        if not paths:
            raise UserError(f"no file of {folder}{'' if len(splits) == 1 else f', split {split},'} can be read")
    return _Survey(readable, next(iter(sizes)), colour, notes)


def read_files(paths: Sequence[Path], channels: int, height: int, width: int) -> Images:
    """Some picture files, each cropped about its middle to one shape, resized, and turned grey or RGB.

    Raises:
        UserError: Naming the first file that cannot be read.
    """
    pictures = [_readable(path, (height, width), grey=channels == 1) for path in paths]
    return _stacked(pictures, colour=channels == 3)


def _readable(path: Path, size: tuple[int, int] | None, grey: bool) -> NDArray[np.uint8]:
    try:
        return _picture(path, size, grey)
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error


def _listing(folder: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """The picture files of each split, and notes on those that are in none and on other files."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}")
    files = list(_files(folder))
    paths = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    others = sorted({path.suffix.lower() or path.name for path in files} - {*SUFFIXES})
    n = len(files) - len(paths)
    other = f"{n} {'file' if n == 1 else 'files'} of other kinds ({', '.join(others[:_LISTED])})"
    if not paths:
        raise UserError(f"{folder} holds no images (PNG, JPEG, WebP, BMP or GIF)" + (f", only {other}" if n else ""))
    notes = (f"left out {other}",) if n else ()
    if not (folder / "train").is_dir():
        first = {path.relative_to(folder).parts[0] for path in paths if path.parent != folder}
        if named := sorted(name for name in first if name.lower() in SPLITS):
            raise UserError(
                f"{folder} has a folder {named[0]} and none named train: name the folders train, valid and test, or "
                f"rename {named[0]} if it is no split"
            )
        return {"train": paths}, notes
    splits: dict[str, list[Path]] = {"train": []}
    outside = 0
    for path in paths:
        split = SPLITS.get(path.relative_to(folder).parts[0].lower())
        if split is None:
            outside += 1
        else:
            splits.setdefault(split, []).append(path)
    if not splits["train"]:
        raise UserError(f"{folder / 'train'} holds no images (PNG, JPEG, WebP, BMP or GIF)")
    if outside:
        notes = (f"left out {outside} images outside the folders {', '.join(splits)}", *notes)
    return splits, notes


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder and below what it links to, each folder once; not hidden ones."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {_reason(error)}") from error

    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(place)
        if real in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN))
        paths = (Path(place) / name for name in files if not name.startswith(_HIDDEN))
        yield from (path for path in paths if path.is_file() or not path.exists())  # a link to nothing is unreadable


def _picture(path: Path, size: tuple[int, int] | None, grey: bool) -> NDArray[np.uint8]:
    """One file's pixels, (h, w) if it is stored as grey, else (h, w, 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as file:
            file.load()
            try:
                image = ImageOps.exif_transpose(file)
            except Exception:  # whatever a damaged tag raises, the pixels are good
                image = file.copy()
        if file.format == "PNG":
            with path.open("rb") as header:
                depth, kind = header.read(26)[24:]
            grey = grey or kind == 4  # which Pillow opens as colour where it has 16 bits
            if kind == 0 and depth in (2, 4) and "transparency" in image.info:  # which Pillow does not scale with them
                image.info["transparency"] *= 255 // (2**depth - 1)
    is_grey = grey or image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scale
        values = np.asarray(image)
        black = values == image.info.get("transparency", -1)
        image = Image.fromarray(np.rint(values.clip(0, 65535) / 257 * ~black).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("L" if is_grey else "RGB")
    if size is not None:
        height, width = size
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _is_made_here(path: Path) -> bool:
    key, value = MADE_HERE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as file:
            return file.info.get(key) == value


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or none of PNG, JPEG, WebP, BMP and GIF"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__


def _list(lines: list[str]) -> str:
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n".join(f"  {line}" for line in lines[:_LISTED] + more)


def _require_one_size(folder: Path, sizes: Counter[tuple[int, ...]]) -> None:
    if len(sizes) > 1:
        common = [f"{h}x{w} ({count})" for (h, w), count in sizes.most_common(5)]
        more = [f"{len(sizes) - 5} more"] if len(sizes) > 5 else []
        raise UserError(
            f"the images of {folder} differ in size, height x width: {', '.join(common + more)}; "
            f"give --size 32 (or --size 24x48) to crop and shrink them"
        )
    for shape in sizes:
        if max(shape) > LARGEST_SIDE:
            raise UserError(
                f"the images of {folder} are {shape[0]}x{shape[1]} pixels, more than {LARGEST_SIDE} on a side; "
                f"give --size 32 (or --size 24x48) to crop and shrink them"
            )


def _stacked(pictures: list[NDArray[np.uint8]], colour: bool) -> Images:
    height, width = pictures[0].shape[:2]
    images = np.empty((len(pictures), 3 if colour else 1, height, width), np.uint8)
    for image, picture in zip(images, pictures, strict=True):
        image[:] = picture.transpose(2, 0, 1) if picture.ndim == 3 else picture
    return images


def read_array(path: Path) -> Arrays:
    """The images of a .npy or .npz file. Nothing is ever unpickled.

    Axes are (n, h, w), (n, h, w, c) or (n, c, h, w) with 1 or 3 channels; where both readings fit, the last axis is
    the channels. Values are uint8, bool, or floats in [0, 1]; where no uint8 is above 1, 1 stands for white.

    A .npz holds `train` and perhaps `valid` (or `val`, `validation`) and `test`; else `images`; else one array under
    any name. Labels, integers (n,), are `train_labels` and so on, or `labels` beside a single array. Names may be
    written in capitals, and other arrays are left out.

    Raises:
        UserError: If the file is missing, unreadable, or not such arrays; the line says what was found.
    """
    with _plain_arrays(path), open_arrays(path) as arrays:
        found, labels, notes = _chosen(path, arrays)
    images = {split: _pixels(array, f"{path}, {split}") for split, array in found.items()}
    counted = [split for split, array in found.items() if array.dtype == np.uint8]
    if max((int(images[split].max()) for split in counted), default=0) == 1:
        images |= {split: images[split] * np.uint8(255) for split in counted}
        notes = (*notes, ONE_IS_WHITE)
    if len(shapes := {array.shape[1:] for array in images.values()}) > 1:
        raise UserError(f"{path}: the splits differ in shape: {', '.join(map(str, sorted(shapes)))}")
    for split, numbers in labels.items():
        if numbers.shape != images[split].shape[:1] or numbers.dtype.kind not in "iu":
            raise UserError(
                f"{path}: labels of {split} must be {len(images[split])} integers, got {numbers.dtype} {numbers.shape}"
            )
    return Arrays(images, {split: numbers.astype(np.int64) for split, numbers in labels.items()}, notes)


def stream_array(path: Path) -> Stream:
    """`read_array` of a .npy of any size.

    Raises:
        UserError: Like `read_array`; about single values not before they are read.
    """
    where = f"{path}, train"

    def mapped() -> NDArray[Any]:
        # Anew for each piece: what a mapping has touched counts as this process's memory until it is closed.
        with _plain_arrays(path):
            return _planes(np.lib.format.open_memmap(path, mode="r"), where)

    whole = mapped()
    n, rows = len(whole), rows_per_piece(whole[0].nbytes)

    def pieces() -> Iterator[Images]:
        return (_bytes(mapped()[first : first + rows], where) for first in range(0, n, rows))

    largest = 0
    if whole.dtype == np.uint8:
        for piece in pieces():
            largest = max(largest, int(piece.max()))
            if largest > 1:
                break
    if largest == 1:
        return Stream({"train": (piece * np.uint8(255) for piece in pieces())}, {"train": n}, notes=(ONE_IS_WHITE,))
    return Stream({"train": pieces()}, {"train": n})


@contextlib.contextmanager
def _plain_arrays(path: Path) -> Iterator[None]:
    """Turns what a file that holds no plain arrays raises into one line."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; --data PATH names your own images")
    try:
        yield
    except MemoryError as error:
        raise UserError(f"{path} does not fit into memory: {error}") from error
    except DECODING_ERRORS as error:
        foreign = "pickle" in str(error) or "Python objects" in str(error)
        reason = "it holds Python objects, or no array at all" if foreign else error
        raise UserError(f"{path} is not a .npy or .npz file of plain arrays: {reason}") from error


def _chosen(
    path: Path, file: Mapping[str, Any]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], tuple[str, ...]]:
    """Which arrays are the images and the labels of which split, and a note on those that are neither."""
    names = {name.lower(): name for name in file}
    keys: dict[str, str] = {}
    for name in file:
        if split := SPLITS.get(name.lower()):
            if split in keys:
                raise UserError(f"{path} holds {keys[split]} and {name}, both of them the split {split}: leave one out")
            keys[split] = name
    label_keys = {split: names.get(f"{name.lower()}_labels") for split, name in keys.items()}
    if not keys:
        images = [name for name in file if name.lower() != "labels"]
        if "images" not in names and len(images) != 1:
            raise UserError(
                f"{path} holds {', '.join(file) or 'nothing'}; name the images 'train', 'valid' and 'test', or 'images'"
            )
        keys, label_keys = {"train": names.get("images", images[0])}, {"train": names.get("labels")}
    if "train" not in keys:
        raise UserError(f"{path} holds {', '.join(keys.values())} but no 'train'")
    found = {split: file[name] for split, name in keys.items()}
    labels = {split: file[name] for split, name in label_keys.items() if name}
    for split, value in [*found.items(), *labels.items()]:
        if not isinstance(value, np.ndarray):  # as NumPy gives a member that is no .npy
            raise UserError(f"{path}: what it holds for {split} is no array")
    others = sorted({*file} - {*keys.values()} - {*label_keys.values()})
    notes = (f"left out of {path.name}: {', '.join(others[:_LISTED])}",) if others else ()
    return found, labels, notes


def _pixels(array: NDArray[Any], where: str) -> Images:
    """Images (n, c, h, w) as uint8."""
    return _bytes(_planes(array, where), where)


def _planes(array: NDArray[Any], where: str) -> NDArray[Any]:
    """A view with axes (n, c, h, w)."""
    if 0 in array.shape:
        raise UserError(f"{where}: the array is empty, shape {array.shape}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim == 4 and 4 in (array.shape[1], array.shape[3]) and array.shape[1] not in (1, 3):
        raise UserError(f"{where}: 4 channels, shape {array.shape}; drop the alpha channel, such as by x[..., :3]")
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise UserError(f"{where}: shape {array.shape}; expected (n, h, w), (n, h, w, c) or (n, c, h, w), c = 1 or 3")
    return array


def _bytes(array: NDArray[Any], where: str) -> Images:
    """Values of any type as 0 to 255, a copy."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return array.astype(np.uint8)
    if array.dtype.kind != "f":
        raise UserError(f"{where}: type {array.dtype}; expected uint8, bool or floats in [0, 1]")
    with np.errstate(over="ignore"):  # what is too large for it is refused below
        values = array.astype(np.float32)
    if np.isnan(values).any():
        raise UserError(f"{where}: some values are NaN")
    if values.min() < 0 or values.max() > 1:
        raise UserError(
            f"{where}: floats must lie in [0, 1], got {values.min():.9g} to {values.max():.9g}; save as uint8 if they "
            "count to 255"
        )
    return np.rint(values * 255).astype(np.uint8)
