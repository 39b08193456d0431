"""On a CUDA device: the same numbers as on the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from draw import cuda
from draw.config import ModelConfig, SpeedConfig
from draw.evaluation import evaluate
from draw.kernels import find_cuda_compiler
from draw.model import DRAW
from draw.objective import losses
from draw.packing import write_shards
from draw.run import train
from draw.training import Trainer
from small import data_set, in_patches, small_config
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


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0) or not find_cuda_compiler(),
    reason="no CUDA device with thread block clusters, or no nvcc",
)
def test_all_glimpses_in_one_kernel_are_those_of_the_plain_model():
    model = DRAW(ModelConfig(steps=8), seed=1).cuda()
    for b in (16, 23, 300):
        eps, x = (value.cuda() for value in inputs(model, b))
        found = []
        for unroll in (model.unroll, cuda.unroll_for(model), cuda.unroll_for(model)):
            model.zero_grad()
            bound = losses(x, model(eps, x, unroll=unroll), model.likelihood).bound
            bound.mean().backward()
            found.append([bound.detach(), *(weight.grad.clone() for weight in model.parameters())])
        for plain, fast, again in zip(*found, strict=True):
            assert (fast - plain).norm() < 2e-2 * plain.norm()  # factors have 8 bits
            assert torch.equal(fast, again)


@pytest.mark.parametrize("power", [0.5, 0.75])
def test_training_and_measuring_run_on_the_device(power):
    # Types are checked while testing, which torch.compile cannot trace: the fast path has a process of its own below.
    trainer = Trainer(small_config(adam_power=power), data_set(), "cuda", speed=SpeedConfig(compile="off"))
    for _ in range(3):
        trainer.train_step(0.0)
    assert trainer.model.canvas0.is_cuda
    assert evaluate(trainer.ema, trainer.data, speed=SpeedConfig(compile="off")).images == 13


@pytest.mark.parametrize("binarization", ["static", "stochastic"])
def test_a_run_is_trained_validated_and_pictured_on_the_device(tmp_path, binarization):
    data = data_set(binarization=binarization, grey=binarization == "stochastic")
    records = train(small_config(), tmp_path / "run", data=data, device="cuda", speed=SpeedConfig(compile="off"))
    assert any(record.kind == "valid" for record in records)
    assert list((tmp_path / "run" / "readings").iterdir())


def test_patches_are_taken_on_the_device():
    batch = Trainer(small_config(), in_patches(data_set(height=9, width=9), 6, 5), "cuda").batch(0)
    assert batch.is_cuda
    assert batch.shape == (8, 1, 6, 5)


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
