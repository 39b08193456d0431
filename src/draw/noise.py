"""Randomness as a function of a key: no hidden state, so a resumed run draws what an uninterrupted one would."""

import contextlib
import hashlib
import operator
from collections.abc import Iterator

import numpy as np
import torch


def seeded(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on its key alone, such as `seeded(seed, "noise", step)`.

    The same key gives the same bits on one kind of device and one version of PyTorch; a number may be NumPy's.
    """
    plain = tuple(part if isinstance(part, str) else int(operator.index(part)) for part in key)
    digest = hashlib.sha256(repr(plain).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Within it PyTorch's global generator, from which layers draw their weights, goes on from a seed of its own.

    It is put back afterwards, and other devices' are left alone, which `torch.manual_seed` would set too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(operator.index(seed))
        yield


def seeded_array(seed: int, words: str) -> np.random.Generator:
    """The same for arrays, where data sets are made: NumPy's generator, the same bits on every machine."""
    return np.random.Generator(np.random.PCG64([seed % 2**64, *words.encode()]))
