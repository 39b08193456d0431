"""Kills a process that saves checkpoints, N times at random moments, and after each reads what is there.

    python kill_while_saving.py FOLDER N

Prints how many runs could not be read, and how many kills left an unfinished checkpoint behind.
"""

import json
import os
import random
import signal
import sys
import time
from itertools import count
from pathlib import Path

import torch

from draw import checkpoint
from draw.config import ModelConfig, RunConfig
from draw.model import DRAW

torch.set_num_threads(1)  # forking is safe only without threads
CONFIG = RunConfig(model=ModelConfig(steps=2, enc_size=96, dec_size=96))


def save_forever(run: Path, first: int) -> None:
    tensors = DRAW(CONFIG.model).state_dict()
    for step in count(first):
        path = run / "checkpoints" / f"step-{step:08d}"
        training = {f"moment.{name}": weight for name, weight in tensors.items()}
        checkpoint.save(path, CONFIG, step=step, seconds=1.0, model=tensors, training=training)


def main(run: Path, kills: int) -> None:
    rng = random.Random(0)
    step, unreadable, caught = 0, 0, 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            save_forever(run, step + 1)
        while (checkpoint.newest(run) or Path("step-0")).name == f"step-{step:08d}" or not checkpoint.newest(run):
            time.sleep(0.001)  # until the child has saved once
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        caught += any(p.name.startswith(".") for p in (run / "checkpoints").iterdir())
        try:
            found = checkpoint.find(run)
            found.model()
            found.tensors(checkpoint.TRAINING)
            assert found.step > step
            step = found.step
        except (Exception, AssertionError) as error:
            print(error, file=sys.stderr)
            unreadable += 1
    print(json.dumps({"kills": kills, "unreadable": unreadable, "caught_writing": caught}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
