"""The loops of glimpses.cpp and glimpses.cu, compiled on first use by the machine's own compilers and kept.

Plain C libraries called through ctypes.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from draw.errors import UserError
from draw.sources import cache_folder

SOURCE = Path(__file__).with_name("glimpses.cpp")
INCLUDED = SOURCE.with_name("glimpse.h")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-pthread", "-shared", "-fPIC")
FILL = 16  # floats, to multiples of which the kernels have lines of pixels filled up
BLOCK = 32  # columns, to multiples of which they have what feeds products filled up
CUDA_SOURCE = Path(__file__).with_name("glimpses.cu")
CUDA_FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC")
# Tried one after the other, as not every compiler has all of them; the later ones make slower kernels.
OPTIONS = (
    ("-march=native", "-fopenmp-simd", "-mprefer-vector-width=512"),
    ("-march=native", "-fopenmp-simd"),
    ("-march=native",),
    (),
)


class Sizes(NamedTuple):
    """What the CPU's kernels are compiled for, so that their loops can be unrolled."""

    channels: int
    height: int
    width: int
    read_n: int  # 0: without attention
    write_n: int  # likewise
    enc_size: int
    dec_size: int
    z_size: int


class CudaSizes(NamedTuple):
    """What the kernels of glimpses.cu are compiled for."""

    height: int
    width: int
    read_n: int
    write_n: int
    hidden: int
    z_size: int


def find_compiler() -> str | None:
    """The C++ compiler: the one that CXX names, else the first of c++, g++ and clang++ on the path."""
    return _first_found(os.environ.get("CXX"), "c++", "g++", "clang++")


def find_cuda_compiler() -> str | None:
    """nvcc: that of CUDA_HOME, else the one on the path, else where CUDA is put on Linux."""
    home = os.environ.get("CUDA_HOME")
    return _first_found(home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc")


def _first_found(*programs: str | None) -> str | None:
    return next((path for program in programs if program and (path := shutil.which(program))), None)


def macros(sizes: Sizes | CudaSizes) -> tuple[str, ...]:
    """The compiler's flags that name the sizes."""
    return tuple(f"-D{name.upper()}={value}" for name, value in sizes._asdict().items())


def _processor() -> str:
    """What -march=native depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.machine() + platform.processor() + flags


@functools.cache
def load(sizes: Sizes, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The CPU's kernels for a model's sizes, compiled now if need be.

    Args:
        flags: More of the compiler's flags: -DBFLOAT16 for factors of that precision, -DNO_AMX for products of them
            without the processor's matrix unit, -DNO_AVX512BF16 without its vectors.

    Raises:
        UserError: If there is no compiler, or it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise UserError("no C++ compiler (c++, g++ or clang++; CXX can name one)")
    always = [*FLAGS, *macros(sizes), f"-DFILL={FILL}", f"-DBLOCK={BLOCK}", *flags]
    commands = [[compiler, *options, *always] for options in OPTIONS]
    return _loaded((SOURCE, INCLUDED), commands, _processor())


@functools.cache
def load_cuda(sizes: CudaSizes, capability: tuple[int, int]) -> ctypes.CDLL:
    """A CUDA device's kernels for a model's sizes, compiled now if need be: some five seconds.

    Args:
        capability: The device's compute capability.

    Raises:
        UserError: If there is no CUDA compiler, or it fails.
    """
    compiler = find_cuda_compiler()
    if compiler is None:
        raise UserError("no CUDA compiler (nvcc; CUDA_HOME can say where CUDA is)")
    architecture = "-arch=sm_{}{}".format(*capability)
    return _loaded((CUDA_SOURCE,), [[compiler, *CUDA_FLAGS, architecture, *macros(sizes)]], platform.machine())


def _loaded(sources: tuple[Path, ...], commands: list[list[str]], machine: str) -> ctypes.CDLL:
    """The library that the first command to succeed makes of the first source, kept for all later processes.

    The other sources are those that it includes.
    """
    source = sources[0]
    key = "\n".join([*(part for command in commands for part in command), machine]).encode()
    key += b"".join(path.read_bytes() for path in sources)
    library = cache_folder() / "kernels" / f"{source.stem}-{hashlib.sha256(key).hexdigest()[:16]}.so"
    if not library.exists():
        _compile(source, commands, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise UserError(f"the compiled kernels cannot be loaded: {error}") from error


def _compile(source: Path, commands: list[list[str]], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"no place to keep the compiled kernels: {error}") from error
    failures = []
    try:
        for command in commands:
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                made = Path(folder) / library.name
                done = subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, text=True)
                if done.returncode == 0:
                    made.replace(library)  # whole or not at all, also with several processes
                    return
                failures += (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
    except OSError as error:
        raise UserError(f"the kernels cannot be compiled: {error}") from error
    why = next((line for line in failures if re.search(r"\b(error|fatal)\b", line)), failures[0])
    raise UserError(f"{commands[0][0]} cannot compile the kernels: {why}")
