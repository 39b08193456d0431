"""On a CUDA device: the same numbers as on the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from draw.config import ModelConfig, SpeedConfig
from draw.evaluation import evaluate
from draw.model import DRAW
from draw.objective import losses
from draw.packing import write_shards
from draw.training import Trainer
from small import data_set, small_config
from tiny import inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("sizes", [{}, {"read_n": None, "write_n": None}])
def test_a_cuda_device_agrees_with_the_cpu(sizes):
    model = DRAW(ModelConfig(steps=8, **sizes))
    eps, x = inputs(model, 16)
    here = losses(x, model(eps, x), model.likelihood).bound
    model = model.cuda()
    there = losses(x.cuda(), model(eps.cuda(), x.cuda()), model.likelihood).bound
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


def test_training_and_measuring_run_on_the_device():
    # Types are checked while testing, which torch.compile cannot trace: the fast path has a process of its own below.
    trainer = Trainer(small_config(), data_set(), "cuda", speed=SpeedConfig(compile="off"))
    for _ in range(3):
        trainer.train_step(0.0)
    assert trainer.model.canvas0.is_cuda
    assert evaluate(trainer.ema, trainer.data, speed=SpeedConfig(compile="off")).images == 13


@pytest.mark.slow
def test_the_compiled_step_and_the_captured_update_agree():
    script = Path(__file__).with_name("compiled_step.py")
    done = subprocess.run([sys.executable, script, "cuda"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_pack_gives_the_device_the_batches_of_its_source(tmp_path):
    source = data_set(binarization="stochastic", grey=True)
    streams = {split: [images.numpy()] for split, images in source.images.items()}
    packed = write_shards(tmp_path / "packed", streams, binarization="stochastic")
    ours, theirs = (Trainer(small_config(), data, "cuda") for data in (packed, source))
    for step in range(3):
        assert ours.batch(step).is_cuda
        assert torch.equal(ours.batch(step), theirs.batch(step))
