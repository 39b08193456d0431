"""One command on a CUDA machine: check the fast paths, time them, compare precisions, train.

    python benchmarks/gpu.py --out results --minutes 25
    python benchmarks/gpu.py --out results --minutes 25 --parts train -- --precision bfloat16

    check   the tests for CUDA devices; without them, or without such a device, fast glimpses against plain ones
    bench   training steps at three batch sizes and three precisions, measuring and drawing: `draw bench`
    agree   the bound after --agree-steps steps, for each precision and seed
    train   a run in OUT/run, and its bound on the test split

All parts together keep to --minutes: each has a share of what is left, and what it leaves over goes to the next. What
is finished stands in OUT/PART.json and is not done again, a run that was stopped goes on: call it again with the same
arguments. The package need not be installed, only what it needs. --small tries all of it in some minutes on a CPU.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"check": 2, "bench": 6, "agree": 4, "train": 6}
PRECISIONS = ("float32", "tf32", "bfloat16")
TINY = ("--steps", "3", "--enc-size", "12", "--dec-size", "12", "--z-size", "4", "--read-n", "2", "--write-n", "3")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}


def main() -> int:
    """Do the parts that were asked for; 1 if something failed."""
    options = parsed(sys.argv[1:])
    sys.path.insert(0, str(ROOT / "src"))
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    failed = []
    for index, part in enumerate(options.parts):
        left = end - time.monotonic()
        limit = left * SHARES[part] / sum(SHARES[later] for later in options.parts[index:])
        print(f"\n== {part}, at most {limit / 60:.1f} minutes", flush=True)
        if not {"check": check, "bench": bench, "agree": agree, "train": train}[part](
            options, time.monotonic() + limit
        ):
            failed.append(part)
    print(f"\n{(time.monotonic() - end) / 60 + options.minutes:.1f} minutes; "
          + (f"not complete: {', '.join(failed)}" if failed else "complete"))  # fmt: skip
    return 1 if failed else 0


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything; default 25")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(SHARES), help=",".join(SHARES))
    parser.add_argument("--preset", help="default mnist-gpu")
    parser.add_argument("--data", help="data set of agree and train; default the preset's")
    parser.add_argument("--device", default="auto", help="default auto")
    parser.add_argument("--repeats", type=int, help="of every timing; default 10")
    parser.add_argument("--agree-steps", type=int, help="default 2000")
    parser.add_argument("--seeds", type=int, default=3, help="of agree; default 3")
    parser.add_argument("--small", action="store_true", help="tiny sizes and few steps, to try the script itself")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="further flags of draw train, for the part train")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - SHARES.keys():
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; choose from {', '.join(SHARES)}")
    options.preset = options.preset or ("demo" if options.small else "mnist-gpu")
    options.repeats = options.repeats or (2 if options.small else 10)
    options.agree_steps = options.agree_steps or (20 if options.small else 2_000)
    return options


# The parts: each returns whether it is complete


def check(options: argparse.Namespace, deadline: float) -> bool:
    """The tests of CUDA devices where they can run, else the inline check. Result: check.json."""
    import torch

    path = options.out / "check.json"
    tests = ROOT / "tests" / "test_gpu.py"
    tools = all(find_spec(name) for name in ("pytest", "xdist", "pytest_timeout", "beartype"))
    if not (torch.cuda.is_available() and tests.exists() and tools):
        return inline_check(options, path)
    code, output = run([sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(tests)], deadline)
    print(output)
    write(path, {"how": "pytest tests/test_gpu.py", "ok": code == 0, "output": output[-10_000:]})
    return code == 0


def inline_check(options: argparse.Namespace, path: Path) -> bool:
    """Fast glimpses give what plain ones give, values and gradients, with and without attention."""
    import torch

    from draw import fast
    from draw.config import ModelConfig, SpeedConfig
    from draw.devices import choose_device
    from draw.model import DRAW
    from draw.objective import losses

    device = choose_device(options.device)
    sizes = ModelConfig(steps=3, enc_size=12, dec_size=12, z_size=4) if options.small else ModelConfig(steps=16)
    differences = {}
    for name, n in {"attention": 5, "no attention": None}.items():
        model = DRAW(dataclasses.replace(sizes, read_n=n, write_n=n)).to(device)
        x = (torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.3).float().to(device)
        eps = model.noise(len(x), "check")
        found = []
        for unroll in (model.unroll, fast.unroll_for(model, SpeedConfig(compile="on"))):
            drawing = model(eps, x, unroll=unroll)
            bound = losses(x, drawing, model.likelihood).bound.mean()
            gradients = torch.autograd.grad(bound, list(model.parameters()), allow_unused=True)
            with torch.no_grad():
                drawn = model(eps, unroll=unroll).canvas
            found.append([drawing.canvas, drawing.kl, drawn, *(g for g in gradients if g is not None)])
        scaled = [((a - b).abs().max() / a.abs().max().clamp(min=1e-6)).item() for a, b in zip(*found, strict=True)]
        differences[name] = max(scaled)
    # float32 rounding is 6e-8; a gradient sums it over all glimpses.
    ok = all(value < 1e-3 for value in differences.values())
    for name, value in differences.items():
        print(f"{name}: largest difference {value:.1e} of the largest value")
    write(path, {"how": "inline", "device": str(device), "ok": ok, "largest_relative_difference": differences})
    return ok


def bench_commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """The `draw bench` command lines, by the name of their result."""
    common = ["--preset", options.preset, "--device", options.device, "--repeats", str(options.repeats)]
    common += ["--against", "plain", *(TINY if options.small else ())]
    batches = (4, 8) if options.small else (100, 128, 2_048)
    commands = {
        f"train-{batch}-{precision}": [
            "bench", "train", *common, "--batch-size", str(batch), "--precision", precision
        ]
        for precision in PRECISIONS
        for batch in batches
    }  # fmt: skip
    images = ["--images", "50"] if options.small else []
    return {"evaluate": ["bench", "evaluate", *common, *images], "sample": ["bench", "sample", *common]} | commands


def bench(options: argparse.Namespace, deadline: float) -> bool:
    """Every timing. Results: bench.json, by name."""
    path = options.out / "bench.json"
    commands, done = bench_commands(options), read(path)
    for name, command in commands.items():
        if name not in done and (report := draw(command, deadline)):
            done[name] = report
            write(path, done)
    print(f"{'milliseconds, minimum':<22}{'plain':>11}{'fast':>11}{'floor':>11}{'plain/fast':>11}{'fast/floor':>11}"
          f"{'images/s':>11}{'peak MB':>11}")  # fmt: skip
    for name, report in done.items():
        seconds = "".join(f"{1_000 * report[key]['min']:>11,.2f}" for key in ("plain_s", "fast_s", "floor_s"))
        ratios = "".join(f"{report[key]['min']:>11.2f}" for key in ("plain_over_fast", "fast_over_floor"))
        print(f"{name:<22}{seconds}{ratios}{report['images_per_s']:>11,.0f}{report['peak_memory_bytes'] / 1e6:>11,.0f}")
    return commands.keys() <= done.keys()


def agree(options: argparse.Namespace, deadline: float) -> bool:
    """The validation bound after a few steps, by precision and seed. Results: agree.json, by name."""
    path = options.out / "agree.json"
    done = read(path)
    names = [f"{precision}-{seed}" for seed in range(options.seeds) for precision in PRECISIONS]
    steps = str(options.agree_steps)
    for name in names:
        precision, seed = name.split("-")
        flags = ["--precision", precision, "--seed", seed, "--iterations", steps, "--validate-every", steps]
        flags += ["--validation-images", "100" if options.small else "0"]
        folder = options.out / f"agree-{name}"
        if name in done or not (result := trained(options, folder, flags, deadline)):
            continue
        if result["finished"]:
            if "bound_nats" in result:  # else it was stopped after its end, and begins again
                done[name] = {"precision": precision, "seed": int(seed)} | result
                write(path, done)
            shutil.rmtree(folder)
        else:
            print(f"{name}: stopped after step {result['step']:,}; it goes on when called again")
    means = {}
    print(f"{'bound, nats':<12}{'seeds':>7}{'mean':>10}{'spread':>9}{'- float32':>11}   after {steps} steps; "
          "spread: standard deviation over seeds")  # fmt: skip
    for precision in PRECISIONS:
        bounds = [result["bound_nats"] for result in done.values() if result["precision"] == precision]
        if bounds:
            means[precision] = statistics.mean(bounds)
            spread = f"{statistics.stdev(bounds):.3f}" if len(bounds) > 1 else "-"
            beside = f"{means[precision] - means['float32']:+.3f}" if "float32" in means else "-"
            print(f"{precision:<12}{len(bounds):>7}{means[precision]:>10.3f}{spread:>9}{beside:>11}")
    return set(names) <= done.keys()


def train(options: argparse.Namespace, deadline: float) -> bool:
    """Train in OUT/run for the time there is, then measure the best weights. Result: train.json."""
    folder = options.out / "run"
    now = time.monotonic()
    flags = ["--iterations", "50"] if options.small and not options.flags else options.flags
    result = trained(options, folder, flags, deadline - min(120.0, 0.2 * (deadline - now)))
    if not result:
        return False
    images = ["--images", "100"] if options.small else []
    test = draw(["evaluate", str(folder), "--device", options.device, *images], deadline)
    write(options.out / "train.json", result | {"test": test})
    if test:
        print(f"step {result['step']:,}, {result['seconds'] / 60:.1f} minutes: {test['bound_nats']:.2f} nats on test")
    if not result["finished"]:
        print("not finished; it goes on when called again")
    return test is not None


# What the parts share


def trained(options: argparse.Namespace, folder: Path, flags: list[str], deadline: float) -> dict[str, Any] | None:
    """What `draw train` said at its end in this folder, begun or resumed; None if it failed or there is no time."""
    left = deadline - time.monotonic()
    minutes = (left - min(45.0, 0.3 * left)) / 60  # starting and saving take time too
    if minutes < 0.01:
        print(f"no time left for {folder.name}")
        return None
    begun = any(folder.glob("checkpoints/step-*/checkpoint.json"))
    command = [
        "train",
        *(["--resume"] if begun else [options.preset]),
        "--out",
        str(folder),
        "--minutes",
        f"{minutes:.4f}",
    ]
    command += ["--device", options.device, *(["--data", options.data] if options.data else [])]
    command += [*(["--batch-size", "8", *TINY] if options.small else ()), *flags]
    return draw(command, deadline)


def draw(arguments: list[str], deadline: float) -> dict[str, Any] | None:
    """The JSON that a `draw` command prints; None if it failed or there was no time for it."""
    print(f"draw {' '.join(arguments)}", flush=True)
    code, output = run([sys.executable, "-m", "draw", *arguments, "--json"], deadline, stderr=None)
    if code != 0:
        print("no time left for it" if code is None else f"failed with exit code {code}")
        return None
    return json.loads(output)


def run(command: list[str], deadline: float, stderr: int | None = subprocess.STDOUT) -> tuple[int | None, str]:
    """Exit code and output of a command; past the deadline it is ended with all that it started, and the code None."""
    left = deadline - time.monotonic()
    if left <= 0:
        return None, ""
    child = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
    )
    try:
        output, _ = child.communicate(timeout=left)
        return child.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        return None, output
    except BaseException:  # Ctrl-C reaches this process alone
        os.killpg(child.pid, signal.SIGKILL)
        raise


def read(path: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, value: dict[str, Any]) -> None:
    """Results as JSON, all or nothing."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
