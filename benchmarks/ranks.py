"""What it costs to train together: the bytes and the time of a step's messages, and the step alone and together.

    torchrun --nproc-per-node 2 benchmarks/ranks.py [--preset mnist] [--images 20] [--repeats 20]

Prints one JSON object: medians over the repeats, each the slowest process's, in milliseconds. "Alone" every process
trains for itself, all at the same time, so that both share memory and cores alike and differ by the messages only.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from draw.data import DataSet
from draw.devices import choose_device
from draw.noise import seeded
from draw.parallel import World, joined
from draw.presets import PRESETS, preset
from draw.run import environment
from draw.training import Trainer


def milliseconds(world: World, repeats: int, actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median time of each action, begun together, as the slowest process sees it; in turns, as machines drift."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 3):
        for name, act in actions.items():
            world.gather(None)
            begun = time.perf_counter()
            act()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - begun))
    medians = {name: statistics.median(row[3:]) for name, row in times.items()}  # the first three warmed up
    return {name: round(max(world.gather(median)), 3) for name, median in medians.items()}


def measure(world: World, options: argparse.Namespace) -> dict[str, object]:
    """Every number, the same on every rank."""
    device = choose_device(options.device)
    config = preset(options.preset)
    shape = (1000, *config.model.image_shape)
    images = 255 * torch.randint(2, shape, generator=seeded("benchmark"), dtype=torch.uint8)
    data = DataSet("noise", {"train": images}, {}, "static")
    alone = Trainer(config.replace(batch_size=options.images), data, device)
    together = Trainer(config.replace(batch_size=options.images * world.size), data, device, world=world)
    parameters = sum(parameter.numel() for parameter in together.model.parameters())
    gradients, values = torch.zeros(parameters, device=device), torch.zeros(5, dtype=torch.float64, device=device)
    actions: dict[str, Callable[[], object]] = {
        "all_reduce_of_gradients": lambda: world.sum(gradients),
        "all_reduce_of_logged_values": lambda: world.sum(values),
        "broadcast_of_decision": lambda: world.decide(0.0, False),
        "noise_of_own_images": lambda: alone.model.noise(options.images, 0),
        "noise_of_all_images": lambda: together.model.noise(options.images * world.size, 0),
        "step_alone": lambda: alone.train_step(0.0),
        "step_together": lambda: together.train_step(0.0),
    }
    measured = milliseconds(world, options.repeats, actions)
    return {
        "processes": world.size,
        "preset": options.preset,
        "images_per_process": options.images,
        "parameters": parameters,
        "bytes_all_reduced": 4 * parameters + values.numel() * values.element_size(),
        "milliseconds": measured,
        "environment": environment(device),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="mnist", choices=PRESETS)
    parser.add_argument("--images", type=int, default=20, help="per process and step")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="auto")
    with joined() as world:
        result = measure(world, parser.parse_args())
        if world.rank == 0:
            print(json.dumps(result, indent=2))
