"""Measuring speed and memory: one call of training, measuring or drawing, beside the plain path and beside a floor.

Synthetic images, a preset's model and batch. Paths are timed in one process, in turn (A B A B ...), by
`time.perf_counter` between synchronisations, after 2 warm-up rounds (5 on CUDA, where graphs are captured), garbage
collection off; a CUDA training step is timed in rows of 10, since training waits for none. The first call and the peak
of memory are those of a fresh process for each path, so that neither hides in what another left behind.

The floor is the time of the model's own matrix products alone, in the same rounds on the same threads: of every
`nn.Linear` that runs, forward x W^T and in training the input gradient g W, each T times, and the weight gradient as
one product over all T glimpses. It is no proven bound: layers that share an input could be multiplied together.
"""

import contextlib
import gc
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from draw import checkpoint, fast
from draw.config import EvalConfig, ModelConfig, Precision, RunConfig, SpeedConfig, TrainConfig, to_dict
from draw.data import DataSet
from draw.errors import UserError
from draw.evaluation import evaluate
from draw.model import DRAW
from draw.noise import seeded
from draw.run import environment
from draw.training import Trainer

What = Literal["train", "evaluate", "sample"]
Progress = Callable[[int, int], None]  # called with (done, in all)

PLAIN = SpeedConfig(compile="off")


@dataclass(frozen=True)
class Pair:
    """Of the repeats the least and the median, in seconds; or the ratios of two such pairs."""

    min: float
    median: float

    def over(self, other: "Pair") -> "Pair":
        """Least over least, median over median."""
        return Pair(self.min / other.min, self.median / other.median)


@dataclass(frozen=True)
class First:
    """A path in a fresh process."""

    seconds: float  # from nothing to the end of the first call, whatever it builds and compiles
    peak_bytes: int  # CPU: how far the peak of resident memory rose; CUDA: the peak of what PyTorch allocated


@dataclass(frozen=True)
class Report:
    """What one call costs. Seconds are of one call: a training step, or all `images` measured or drawn."""

    what: What
    preset: str
    plain_s: Pair | None  # compile off, float32; None where not asked for
    fast_s: Pair  # the path that was asked for
    floor_s: Pair  # the matrix products alone, at floor_precision
    floor_precision: Precision
    floor_float32_s: Pair | None  # the same in float32, where that is another precision
    plain_over_fast: Pair | None
    fast_over_floor: Pair
    images: int  # in one call
    images_per_s: float  # by the fast path's median
    first_step_s: float  # building the model and the first call, in a fresh process
    plain_first_step_s: float | None
    peak_memory_bytes: int
    plain_peak_memory_bytes: int | None
    process_s: Pair | None  # the command `draw sample -n 64`, start-up included; for sample alone
    batch_size: int  # images at a time
    repeats: int
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    config: dict[str, Any]  # of the model, and how the fast path computes


@dataclass(frozen=True)
class Call:
    """Something to time, so many in a row between two synchronisations."""

    run: Callable[[], object]
    row: int = 1


@dataclass(frozen=True)
class Task:
    """What is timed. It can be sent to another process."""

    what: What
    model: ModelConfig
    images: int  # in one call
    batch_size: int  # images at a time: in training all of them
    device: str

    @property
    def on_cuda(self) -> bool:
        """Whether the device is one of CUDA's."""
        return torch.device(self.device).type == "cuda"

    def data(self) -> DataSet:
        """Random black and white images of the model's size, enough for a call, or for the order of some batches."""
        count = 4 * self.batch_size if self.what == "train" else self.images
        pixels = torch.randint(2, (count, *self.model.image_shape), generator=seeded("bench"), dtype=torch.uint8)
        return DataSet("synthetic", dict.fromkeys(("train", "valid", "test"), pixels * 255), {}, "static")

    def network(self) -> DRAW:
        """The model, on the device, to be used and not trained."""
        return DRAW(self.model).to(self.device).requires_grad_(False).eval()

    def prepare(self, data: DataSet, speed: SpeedConfig) -> Call:
        """The call that is timed, with everything built that is built once."""
        if self.what == "train":
            config = RunConfig(self.model, train=TrainConfig(batch_size=self.batch_size))
            trainer = Trainer(config, data, self.device, speed=speed)
            return Call(lambda: trainer.train_step(0.0), row=10 if self.on_cuda else 1)
        model = self.network()
        if self.what == "evaluate":
            settings = EvalConfig(batch_size=self.batch_size)
            return Call(lambda: evaluate(model, data, settings, speed=speed))
        unroll = fast.unroll_for(model, speed)

        @torch.no_grad()
        def draw() -> Tensor:
            return model.likelihood.mean(model(model.noise(self.images, "sample"), unroll=unroll).canvas)

        return Call(draw)


@dataclass(frozen=True)
class Product:
    """The matrix product of a linear layer: (rows, inputs) by (inputs, outputs), at every glimpse."""

    layer: str
    rows: int
    weight: Tensor  # (outputs, inputs)


def measure(
    task: Task,
    preset: str,
    speed: SpeedConfig,
    *,
    against_plain: bool = False,
    repeats: int = 10,
    progress: Progress | None = None,
) -> Report:
    """Time a task the way `speed` says, beside its floor and, if asked to, beside the plain path.

    Args:
        task: What to time.
        preset: The name that the report gives the configuration.
        speed: The fast path. The number of threads is taken as it is set in this process.
        against_plain: Also the plain path, alternating with the fast one.
        repeats: How often each is timed, at least 1.
        progress: Called with (rounds done, rounds in all).

    Raises:
        UserError: If memory cannot be measured on this system, or `draw sample` fails.
        MemoryError: If a fresh process was killed.
    """
    device = torch.device(task.device)
    paths = ({"plain": PLAIN} if against_plain else {}) | {"fast": speed}
    first = {name: in_fresh_process(task, path) for name, path in paths.items()}
    data = task.data()
    calls = {name: task.prepare(data, path) for name, path in paths.items()}
    floors: dict[Precision, dict[str, Call]] = {}
    for precision in dict.fromkeys((speed.precision, "float32")):
        floors[precision] = floor_calls(task, precision)
        calls |= floors[precision]
    seconds = alternate(calls, device, repeats, progress)

    blocks = task.images / task.batch_size
    floor = {
        precision: Pair(
            blocks * sum(seconds[name].min for name in names), blocks * sum(seconds[name].median for name in names)
        )
        for precision, names in floors.items()
    }
    return Report(
        what=task.what,
        preset=preset,
        plain_s=seconds.get("plain"),
        fast_s=seconds["fast"],
        floor_s=floor[speed.precision],
        floor_precision=speed.precision,
        floor_float32_s=floor["float32"] if speed.precision != "float32" else None,
        plain_over_fast=seconds["plain"].over(seconds["fast"]) if against_plain else None,
        fast_over_floor=seconds["fast"].over(floor[speed.precision]),
        images=task.images,
        images_per_s=task.images / seconds["fast"].median,
        first_step_s=first["fast"].seconds,
        plain_first_step_s=first["plain"].seconds if against_plain else None,
        peak_memory_bytes=first["fast"].peak_bytes,
        plain_peak_memory_bytes=first["plain"].peak_bytes if against_plain else None,
        process_s=whole_process(task, repeats) if task.what == "sample" else None,
        batch_size=task.batch_size,
        repeats=repeats,
        **setting(task, speed),
    )


def warmup_rounds(device: torch.device) -> int:
    """Rounds before those that count: on CUDA enough for a graph to be captured (`fast.captured`) and replayed."""
    return 5 if device.type == "cuda" else 2


def alternate(
    calls: Mapping[str, Call], device: torch.device, repeats: int, progress: Progress | None = None
) -> dict[str, Pair]:
    """Seconds of each call, timed in turn, round after round."""

    def synchronize() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize()

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    warmup = warmup_rounds(device)
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for done in range(warmup + repeats):
            for name, call in calls.items():
                synchronize()
                begun = time.perf_counter()
                for _ in range(call.row):
                    call.run()
                synchronize()
                seconds[name].append((time.perf_counter() - begun) / call.row)
            if progress:
                progress(done + 1, warmup + repeats)
    finally:
        if collecting:
            gc.enable()
    counted = {name: values[warmup:] for name, values in seconds.items()}
    return {name: Pair(min(values), statistics.median(values)) for name, values in counted.items()}


@torch.no_grad()
def products(model: DRAW, b: int, *, generate: bool = False) -> list[Product]:
    """The matrix products of one glimpse of b images: every linear layer that ran, found by running it."""
    found: list[Product] = []
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        found.append(Product(names[layer], inputs[0].numel() // layer.in_features, layer.weight.detach()))

    hooks = [layer.register_forward_pre_hook(note) for layer in names]
    try:
        x = None if generate else model.canvas0.new_zeros(b, *model.config.image_shape)
        model(model.noise(b, "floor")[:1], x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def floor_calls(task: Task, precision: Precision) -> dict[str, Call]:
    """The floor's calls by name, whose times add up to that of a training step, or of a batch measured or drawn.

    On CUDA each is a captured graph, so that it is the device which is timed and not the launches.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    steps = task.model.steps
    calls: dict[str, Call] = {}

    def repeated(a: Tensor, b: Tensor, times: int) -> Call:
        out = a @ b

        def multiply() -> None:
            with _float32_products(precision):
                for _ in range(times):
                    torch.mm(a, b, out=out)

        return Call(fast.captured(multiply), row=10) if task.on_cuda else Call(multiply)

    for product in products(task.network(), task.batch_size, generate=task.what == "sample"):
        weight = product.weight.to(dtype)
        rows = steps * product.rows if task.what == "train" else product.rows
        generator = seeded("floor", device=weight.device)
        x, g = (torch.randn(rows, n, generator=generator, device=weight.device).to(dtype) for n in weight.mT.shape)
        name = f"{product.layer} {precision} {len(calls)}"
        calls[f"{name} forward"] = repeated(x[: product.rows], weight.mT, steps)
        if task.what == "train":
            calls[f"{name} input gradient"] = repeated(g[: product.rows], weight, steps)
            calls[f"{name} weight gradient"] = repeated(g.mT, x, 1)
    return calls


@contextlib.contextmanager
def _float32_products(precision: Precision) -> Iterator[None]:
    """Within it, CUDA multiplies float32 matrices as they are, or in TF32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def in_fresh_process(task: Task, speed: SpeedConfig) -> First:
    """Building a path, its first call, and its memory over the warm-up rounds, in a process that did nothing else.

    Raises:
        UserError: If memory cannot be measured on this system.
        MemoryError: If the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_first, task, speed, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise MemoryError("the process that measures memory was killed") from error


def _first(task: Task, speed: SpeedConfig, threads: int) -> First:
    torch.set_num_threads(threads)
    device = torch.device(task.device)
    data = task.data()
    before = _peak_bytes(device)
    begun = time.perf_counter()
    call = task.prepare(data, speed)
    call.run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    seconds = time.perf_counter() - begun
    for _ in range(warmup_rounds(device) - 1):
        call.run()
    return First(seconds, _peak_bytes(device) - before)


def _peak_bytes(device: torch.device) -> int:
    """The most memory so far: of this process, or on CUDA of PyTorch's tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        # Linux hands a parent's ru_maxrss down to its children; this counter starts with the program.
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if peak:
            return 1024 * int(peak[1])
    try:
        import resource
    except ImportError as error:
        raise UserError("memory cannot be measured on this system: draw bench needs Linux or macOS") from error
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def whole_process(task: Task, repeats: int) -> Pair:
    """Seconds of the command `draw sample` from its start to its end, of at most 5 repeats after one that is not kept.

    Raises:
        UserError: If it fails.
    """
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        weights = task.network().state_dict()
        path = Path(folder) / "checkpoints" / "best-00000000"
        checkpoint.save(path, RunConfig(task.model), step=0, seconds=0.0, model=weights)
        command = [sys.executable, "-m", "draw", "sample", folder, "-n", str(task.images)]
        command += ["--device", torch.device(task.device).type, "--out", f"{folder}/samples.png"]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        for _ in range(1 + min(repeats, 5)):
            begun = time.perf_counter()
            done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
            seconds.append(time.perf_counter() - begun)
            if done.returncode:
                raise UserError(f"draw sample failed: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return Pair(min(seconds[1:]), statistics.median(seconds[1:]))


def setting(task: Task, speed: SpeedConfig) -> dict[str, Any]:
    """What a report says of its circumstances: hardware, versions, commit, config.

    The hardware is the processor's name, the cores this process may use, the threads it does use, and the device.
    """
    here = environment(torch.device(task.device))
    try:
        processor = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        processor = None
    return {
        "hardware": {
            "processor": processor[1] if processor else here["processor"],
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": here["threads"],
            "device": here["device"],
        },
        "versions": {name: here[name] for name in ("draw", "torch", "python")},
        "commit": here["commit"],
        "config": {"model": to_dict(task.model), "speed": to_dict(speed)},
    }
