"""Where the time of a training step goes: PyTorch's profiler over some steps of the preset mnist on random images.

    python benchmarks/profile_step.py [--compile off] [--precision bfloat16] [--threads 2]

`Glimpses` and `GlimpsesBackward` are all glimpses but for the gradients of the weights, which `mm` are.
"""

import argparse

from torch.profiler import profile

from draw import fast
from draw.bench import Task
from draw.config import SpeedConfig
from draw.presets import preset

STEPS = 5

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    fast.set_threads(options.threads)
    task = Task("train", preset("mnist").model, images=100, batch_size=100, device="cpu")
    call = task.prepare(task.data(), SpeedConfig(compile=options.compile, precision=options.precision))
    for _ in range(2):  # to warm up
        call.run()
    with profile() as profiler:
        for _ in range(STEPS):
            call.run()
    rows = sorted(profiler.key_averages(), key=lambda row: row.self_cpu_time_total, reverse=True)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"{'':<36}{'ms a step':>10}{'share':>8}{'calls a step':>14}")
    for row in rows[:12]:
        milliseconds = row.self_cpu_time_total / 1000 / STEPS
        print(f"{row.key:<36}{milliseconds:>10.1f}{row.self_cpu_time_total / total:>8.0%}{row.count / STEPS:>14.0f}")
