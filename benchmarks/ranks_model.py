"""The efficiency that docs/scaling.md predicts for many GPUs: its model, with its assumptions as constants.

python benchmarks/ranks_model.py
"""

import math

BYTES = 4 * 961_275  # of gradients, preset mnist
IMAGES, GLIMPSES, LATENTS = 100, 64, 100  # per GPU and step
NEAR = (200e9, 3e-6)  # bytes/s and seconds per hop of a ring inside one machine of 8 GPUs
FAR = (40e9, 10e-6)  # of a ring over machines: one 400 Gb/s adapter per GPU
NOISE = 50e9  # normal numbers per second and GPU
HOST = 100e-6  # seconds per hop between hosts, TCP


def parts(n: int) -> dict[str, float]:
    """The seconds that n GPUs add to a step of one, by cause."""
    bandwidth, latency = NEAR if n <= 8 else FAR
    return {
        "bytes": 2 * (n - 1) / n * BYTES / bandwidth,
        "latency": 2 * (n - 1) * latency,
        "noise": (n - 1) * IMAGES * GLIMPSES * LATENTS / NOISE,
        "decision": math.ceil(math.log2(n)) * HOST,
    }


if __name__ == "__main__":
    print("| GPUs | global batch | bytes | latency | noise | decision | t_c = 10 ms | t_c = 50 ms |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for n in (8, 64, 1024):
        cells = [f"{1000 * value:.2f} ms" for value in parts(n).values()]
        cells += [f"{compute / (compute + sum(parts(n).values())):.0%}" for compute in (10e-3, 50e-3)]
        print(f"| {n:,} | {n * IMAGES:,} | " + " | ".join(cells) + " |")
