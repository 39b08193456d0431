"""Where the named data sets come from: their files, checksums and mirrors.

A data folder holds one subfolder per set. Each set is known in the form its publisher gives it, which is what is
downloaded, and some also in a compact form that is used when it is already there. The checksums of published files
are those of tensorflow/datasets (url_checksums), those of compact files come with them; nothing unverified is ever
given its final name. No image is read here (`draw.published` does), so this import is cheap.
"""

import dataclasses
import errno
import hashlib
import http.client
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from draw.config import expanded
from draw.errors import UserError, nearest

Progress = Callable[[int, int], None]  # (done, total)

TIMEOUT = 30.0  # seconds without a byte before the next mirror is tried
_CHUNK = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class File:
    """A file and how to know it: its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """A named data set and where it is published."""

    name: str
    description: str
    licence: str
    folder: str = ""  # inside the data folder
    files: tuple[File, ...] = ()  # as published; none for the embedded set
    mirrors: tuple[str, ...] = ()  # addresses that a file's name is appended to
    compact: tuple[File, ...] = ()  # a smaller form of the same images, used when present


@dataclass(frozen=True)
class Checked:
    """What `check` found out about one file."""

    path: Path
    state: Literal["ok", "missing", "damaged"]
    detail: str = ""  # what was expected and what came


def _files(table: str) -> tuple[File, ...]:
    """Lines of SHA-256, bytes and name."""
    rows = (line.split() for line in table.strip().splitlines())
    return tuple(File(name, int(size), sha256) for sha256, size, name in rows)


_MNIST = Source(
    "mnist",
    "50,000 + 10,000 + 10,000 handwritten digits, 28x28 grey",
    "Yann LeCun and Corinna Cortes; commonly stated as CC BY-SA 3.0",
    folder="mnist",
    files=_files("""
        440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 9912422 train-images-idx3-ubyte.gz
        3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c 28881 train-labels-idx1-ubyte.gz
        8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 1648877 t10k-images-idx3-ubyte.gz
        f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 4542 t10k-labels-idx1-ubyte.gz
    """),
    mirrors=(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
)

SOURCES = {
    source.name: source
    for source in (
        Source(
            "glyphs",
            "20,000 + 2,000 + 2,000 typeset digits, 28x28 grey; drawn on the spot, nothing to download",
            "the typeface is Pillow's (Aileron, CC0)",
        ),
        _MNIST,
        dataclasses.replace(
            _MNIST,
            name="two-digit-mnist",
            description="as many pairs of MNIST's digits, at random places on 60x60 grey; put together on the spot",
        ),
        Source(
            "binarized-mnist",
            "MNIST with the fixed binarization of the published likelihoods (Larochelle), 50,000 + 10,000 + 10,000",
            "that of MNIST",
            folder="binarized_mnist",
            files=_files("""
                ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d 78400000 binarized_mnist_train.amat
                1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2 15680000 binarized_mnist_valid.amat
                e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c 15680000 binarized_mnist_test.amat
            """),
            mirrors=(
                "https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
                "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
            ),
            compact=_files("""
                cbd02aae10a3863231e3ebb41e26eaa854bba025e4a1b09cd47fdb665206c533 2255365 binarized_mnist.npz
            """),
        ),
        Source(
            "fashion-mnist",
            "50,000 + 10,000 + 10,000 pieces of clothing, 28x28 grey",
            "MIT (Zalando SE)",
            folder="fashion_mnist",
            files=_files("""
                3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84 26421880 train-images-idx3-ubyte.gz
                a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845 29515 train-labels-idx1-ubyte.gz
                346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073 4422102 t10k-images-idx3-ubyte.gz
                67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5 5148 t10k-labels-idx1-ubyte.gz
            """),
            mirrors=(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            ),
        ),
        Source(
            "omniglot",
            "19,280 + 13,180 handwritten characters of 50 alphabets, averaged down to 28x28 grey",
            "MIT (Brenden Lake)",
            folder="omniglot",
            files=_files("""
                ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640 9464212 images_background.zip
                1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee 6462886 images_evaluation.zip
            """),
            mirrors=(
                "https://github.com/brendenlake/omniglot/raw/master/python/",
                "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
            ),
            compact=_files("""
                2a7a47f7ecabb8165912f11dffd64809863f4894552a931cd120255dc90efdda 4041889 omniglot_28x28.npz
            """),
        ),
        Source(
            "cifar10",
            "50,000 + 10,000 photographs of 10 classes, 32x32 colour",
            "none stated; cite Krizhevsky 2009",
            folder="cifar10",
            files=_files("""
                c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd 170052171 cifar-10-binary.tar.gz
            """),
            mirrors=(
                "https://www.cs.toronto.edu/~kriz/",
                "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
            ),
            compact=_files("""
                9193a92b879b4fe63d23468bd6b3d87e8f32472541430d4d8c13c95c11c63efa 18587305 train_batch_1.npz
                ff3d58c40ffdaf763f0f5dd8bb2f5f9056fdd62bb8199ab45213a96187a40622 18641120 train_batch_2.npz
                bd97c9803499e03aefbeb44ab5effde157d6a22a6e12e7e9256c2fdaafabadc0 18639521 train_batch_3.npz
                e42ef0cecaa47e1ff91b24a3be72d7b9ecae3201e5e23f3f588c227c8f64913c 18616191 train_batch_4.npz
                8f6114767279c93b1e7b8752f9463d0e224e383b17e865cc5d703638fbb62485 18575852 train_batch_5.npz
                84a30483e209ee1719de5b1197df05f3eae36391fcb40e607e9c96ef09f33257 1868395 test_first1000.npz
            """),
        ),
    )
}


def data_folder(data_dir: Path | None = None) -> Path:
    """Where data sets lie: the argument, else the environment's DRAW_DATA, else the platform's cache folder."""
    if data_dir is not None:
        return expanded(data_dir)
    if given := os.environ.get("DRAW_DATA"):
        return expanded(given)
    return cache_folder()


def cache_folder() -> Path:
    """The platform's cache folder for this package."""
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or expanded("~") / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = expanded("~") / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or expanded("~") / ".cache")
    return cache / "draw"


def find(name: str) -> Source:
    """The source of a name.

    Raises:
        UserError: If the name is unknown, with the nearest one.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data set {name!r}; {nearest(name, SOURCES)}")
    return SOURCES[name]


def present(source: Source, data_dir: Path | None = None) -> tuple[File, ...] | None:
    """The files of the first form of a set that is there as a whole, as published or compact; else None."""
    folder = data_folder(data_dir) / source.folder
    for files in (source.files, source.compact):
        # os.path answers False, where pathlib raises, on a folder that must not be looked into.
        if files and all(os.path.isfile(folder / file.name) for file in files):  # noqa: PTH113
            return files
    return None


def available(data_dir: Path | None = None) -> dict[str, bool]:
    """Every named set, and whether it can be had without a download."""
    return {name: not source.files or present(source, data_dir) is not None for name, source in SOURCES.items()}


def check(name: str, data_dir: Path | None = None) -> tuple[Checked, ...]:
    """The checksum of every file of a set: of the form that is there, or of the published one and what it lacks.

    Raises:
        UserError: If the name is unknown.
    """
    source = find(name)
    folder = data_folder(data_dir) / source.folder
    return tuple(check_file(folder / file.name, file) for file in present(source, data_dir) or source.files)


def get(name: str, data_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """Makes sure of a set's files: verifies those that are there, downloads those missing or damaged.

    Args:
        progress: Called with bytes done and bytes to download.

    Returns:
        The folder that holds them.

    Raises:
        UserError: If the name is unknown or a file could not be had; the line says where to put it.
    """
    source = find(name)
    folder = data_folder(data_dir) / source.folder
    if all(checked.state == "ok" for checked in check(name, data_dir)):
        return folder
    wanted = [file for file in source.files if check_file(folder / file.name, file).state != "ok"]
    done, total = 0, sum(file.size for file in wanted)

    def advance(size: int) -> None:
        if progress is not None:
            progress(done + size, total)

    for file in wanted:
        _download(source, file, folder, advance)
        done += file.size
    return folder


def check_file(path: Path, file: File) -> Checked:
    """Compare a file's size and SHA-256, read piece by piece, with what they should be."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except FileNotFoundError:
        return Checked(path, "missing")
    except OSError as error:
        return Checked(path, "damaged", f"cannot be read: {error.strerror}")
    fault = _fault(file, size, digest.hexdigest())
    return Checked(path, "damaged" if fault else "ok", fault)


def _fault(file: File, size: int, sha256: str) -> str:
    """What tells bytes from the file's, or nothing."""
    if size > file.size:
        return f"expected {file.size:,} bytes, got more"
    if size < file.size:
        return f"expected {file.size:,} bytes, got {size:,}"
    return "" if sha256 == file.sha256 else f"expected sha256 {file.sha256}, got {sha256}"


def _download(source: Source, file: File, folder: Path, progress: Callable[[int], None]) -> None:
    """Tries each mirror in turn; the file appears under its name only once its checksum is right."""
    faults, part = [], None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=folder)
        part = Path(name)
        with os.fdopen(handle, "wb") as stream:
            for mirror in source.mirrors:
                stream.seek(0)
                stream.truncate()
                if not (fault := _fetch(mirror + file.name, file, stream, progress)):
                    break
                faults.append(f"{mirror}: {fault}")
            else:
                raise UserError(
                    f"cannot download {source.folder}/{file.name} ({'; '.join(faults)}): put it into {folder}, "
                    f"or point --data-dir or DRAW_DATA to a folder with {source.folder}/{file.name}"
                )
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(0o644)  # mkstemp's are for their owner alone
        part.replace(folder / file.name)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {folder} ({reason}): choose another by --data-dir or DRAW_DATA") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _fetch(url: str, file: File, stream: IO[bytes], progress: Callable[[int], None]) -> str:
    """Writes what an address sends to the stream; returns what is wrong with it, or nothing.

    Raises:
        OSError: If there is no room for it, which no other address would change.
    """
    digest, size = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "draw"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            while size <= file.size and (chunk := response.read(_CHUNK)):
                digest.update(chunk)
                stream.write(chunk)
                size += len(chunk)
                progress(min(size, file.size))
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise
        return str(error) or type(error).__name__
    return _fault(file, size, digest.hexdigest())
