"""Randomness as a function of a key: no hidden state, so a resumed run draws what an uninterrupted one would."""

import hashlib

import numpy as np
import torch


def seeded(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on its key alone, such as `seeded(seed, "noise", step)`.

    The same key gives the same bits on one kind of device and one version of PyTorch.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))


def seeded_array(seed: int, words: str) -> np.random.Generator:
    """The same for arrays, where data sets are made: NumPy's generator, the same bits on every machine."""
    return np.random.Generator(np.random.PCG64([seed % 2**64, *words.encode()]))
