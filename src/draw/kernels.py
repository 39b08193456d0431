"""The fused loops of kernels.cpp, compiled on first use by the machine's own C++ compiler and kept.

A plain C library called through ctypes: no headers but the language's own, so that it compiles in two seconds.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from draw.errors import UserError
from draw.sources import cache_folder

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
OPTIONAL = ("-march=native", "-fopenmp")  # tried first; a compiler without them makes slower kernels


class Sizes(NamedTuple):
    """What the kernels are compiled for, so that their loops can be unrolled."""

    channels: int
    height: int
    width: int
    read_n: int  # 0: without attention
    write_n: int  # likewise


def find_compiler() -> str | None:
    """The C++ compiler: the one that CXX names, else the first of c++, g++ and clang++ on the path."""
    return next(
        (path for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (path := shutil.which(name))),
        None,
    )


def _macros(sizes: Sizes) -> tuple[str, ...]:
    return tuple(f"-D{name.upper()}={value}" for name, value in sizes._asdict().items())


def _library(compiler: str, macros: tuple[str, ...]) -> Path:
    """Where the compiled kernels of this source, these sizes, this compiler and this processor are kept."""
    machine = platform.machine() + platform.processor()
    if sys.platform == "linux":  # what -march=native depends on
        flags = (
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
        )
        machine += next(flags, "")
    key = "\n".join([compiler, *FLAGS, *OPTIONAL, *macros, machine]).encode() + SOURCE.read_bytes()
    return cache_folder() / "kernels" / f"kernels-{hashlib.sha256(key).hexdigest()[:16]}.so"


@functools.cache
def load(sizes: Sizes) -> ctypes.CDLL:
    """The kernels for a model's sizes, compiled now if need be.

    Raises:
        UserError: If there is no compiler, or it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise UserError("no C++ compiler (c++, g++ or clang++; CXX can name one)")
    macros = _macros(sizes)
    library = _library(compiler, macros)
    if not library.exists():
        _compile(compiler, macros, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise UserError(f"the compiled kernels cannot be loaded: {error}") from error


def _compile(compiler: str, macros: tuple[str, ...], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"no place to keep the compiled kernels: {error}") from error
    failure = ""
    for optional in (OPTIONAL, OPTIONAL[:1], ()):
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            command = [compiler, *FLAGS, *optional, *macros, str(SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                made.replace(library)  # whole or not at all, also with several processes
                return
            failure = failure or done.stderr.strip()
    raise UserError(f"{compiler} cannot compile the kernels: {failure.splitlines()[0] if failure else done.returncode}")
