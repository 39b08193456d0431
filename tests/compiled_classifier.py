"""Run by the tests in a process of its own: `python compiled_classifier.py SCRIPT`. Fails if --fast differs."""

import importlib.util
import sys
from pathlib import Path

import torch

from draw.data import DataSet


def main(script):
    spec = importlib.util.spec_from_file_location("cluttered_mnist", script)
    example = sys.modules["cluttered_mnist"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    labels = torch.arange(40) % 10
    images = (25 * labels[:, None, None, None]).expand(40, 1, 28, 28).to(torch.uint8)
    data = DataSet("grey", {"train": images}, {"train": labels}, "none")
    settings = example.Settings(glimpses=2, read_n=3, size=16, batch_size=10)
    plain, fast = (example.Run(settings, data, Path("nowhere"), fast=fast) for fast in (False, True))
    torch.testing.assert_close(fast.train_step()[0], plain.train_step()[0], atol=0.01, rtol=0)
    for (name, p), q in zip(plain.model.named_parameters(), fast.model.parameters(), strict=True):
        assert p.grad.norm() > 0, name
        assert (p.grad - q.grad).norm() < 0.05 * p.grad.norm(), name  # factors of eight bits


main(sys.argv[1])
