"""Which digit lies among fragments of others? DRAW's reader as a classifier (section 4.1, Table 2 and figure 5).

    python examples/cluttered_mnist.py --out cluttered                       # 8 glimpses, and the test error
    python examples/cluttered_mnist.py --out cluttered-4 --glimpses 4 --fast   # bfloat16: more steps a minute
    python examples/cluttered_mnist.py --out cluttered --measure             # as far as training has come

At each glimpse a recurrent network sees 12 x 12 numbers of a page of 100 x 100 pixels, through a window that it has
placed itself, and says which digit it takes it for; the last name counts. No error image, no latents, no canvas. The
window and its filters (eqs. 19-27), the LSTM, the digits and the schedule are the package's. It runs on the CPU.

One thing differs from the paper: in training the names of all glimpses are scored, not the last alone (`train_step`).

OUT/state.safetensors is all that going on needs, and is saved every thousand steps: call it again with the same
arguments. Training ends with the error on the test digits, in OUT/measured.json, and a picture of where it looked,
OUT/glimpses.png.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from draw import kernels, render
from draw.attention import WindowHead, extract
from draw.config import DataConfig, TrainConfig
from draw.data import DataSet, batch_indices, load_data
from draw.errors import NonFiniteError, UserError
from draw.evaluation import spread
from draw.model import LSTM, require_same_tensors, stack
from draw.noise import global_seed, seeded
from draw.training import learning_rate
from draw.types import Window

SIDE = 100  # pixels
DISTRACTORS, CROP = 8, 8  # fragments of other digits: how many, and their side in pixels
CLASSES = 10
CLIP_NORM = 0.1  # far below what gradients have: like the package's, it is in force at every step
EMA_DECAY = 0.999  # of the averaged weights, which are measured
STATE = "state.safetensors"


@dataclass(frozen=True)
class Settings:
    """What one may change. The paper's: 4 or 8 glimpses, N = 12, an LSTM of 256 units (Table 3); the rest is ours."""

    glimpses: int = 8
    read_n: int = 12
    size: int = 256
    batch_size: int = 100
    iterations: int = 80_000
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    fall_from: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("glimpses", "read_n", "size"):  # TrainConfig sees to the rest
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")


def clutter(
    digits: UInt8[Tensor, "n 1 a a"], index: Int64[Tensor, " b"], generator: torch.Generator
) -> Float[Tensor, "b 1 100 100"]:
    """Fresh pages in [0, 1]: each a chosen digit at a random place, over crops of random digits at random places.

    Where ink overlaps it is added and clipped at 1, as in deepmind/mnist-cluttered.

    Args:
        digits: A split's digits, from which the crops are taken too.
        index: Which of them to hide.
        generator: The only source of randomness.
    """
    b, side = len(index), digits.shape[-1]

    def anywhere(room: int, count: int) -> tuple[Tensor, Tensor]:
        """Rows and columns, each (b, count, 1, 1), of uniform corners from 0 to room."""
        corners = torch.randint(room + 1, (2, b, count, 1, 1), generator=generator)
        return corners[0], corners[1]

    def square(corner: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
        """Rows (b, count, size, 1) and columns (b, count, 1, size) of the squares with these corners."""
        return corner[0] + torch.arange(size)[:, None], corner[1] + torch.arange(size)

    image = torch.arange(b)[:, None, None, None]
    pages = torch.zeros(b, SIDE, SIDE)
    of = torch.randint(len(digits), (b, DISTRACTORS, 1, 1), generator=generator)
    crops = digits[(of, 0, *square(anywhere(side - CROP, DISTRACTORS), CROP))]
    pages.index_put_((image, *square(anywhere(SIDE - CROP, DISTRACTORS), CROP)), crops / 255, accumulate=True)
    pages.index_put_((image, *square(anywhere(SIDE - side, 1), side)), digits[index] / 255, accumulate=True)
    return pages.clamp_(max=1)[:, None]


class Classifier(nn.Module):
    """Reads through a window that its own output has placed, and says which digit it takes it for, T times over."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.glimpses, self.n, size = settings.glimpses, settings.read_n, settings.size
        with global_seed(settings.seed):
            # Blunter than the windows of DRAW, so that a whole digit looks brighter than a fragment (docs/results.md).
            self.to_window = WindowHead(size, self.n, SIDE, SIDE, sigma=0.75, gamma=1)
            self.rnn = LSTM(self.n**2, size)
            self.to_logits = nn.Linear(size, CLASSES)
        self.h0, self.s0 = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))

    def step(
        self, x: Float[Tensor, "b 1 y x"], h: Float[Tensor, "b k"], s: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"], Window]:
        """One glimpse: the network's output, its memory, and the window through which it has looked."""
        with torch.autocast("cpu", enabled=False):
            window = self.to_window(h)  # 21-24, in float32: a place on the page to eight bits is off by half a pixel
        r = extract(x, window, self.n)  # 27, of x alone
        h, s = self.rnn(r.flatten(1), h, s)
        return h, s, window

    def forward(self, x: Float[Tensor, "b 1 y x"]) -> tuple[Float[Tensor, "t b 10"], Window]:
        """After every glimpse the logits of the ten digits, the last of which are the answer; and the window."""
        h, s = (initial.expand(len(x), -1) for initial in (self.h0, self.s0))
        steps = []
        for _ in range(self.glimpses):
            h, s, window = self.step(x, h, s)
            steps.append((h, window))
        outputs, windows = zip(*steps, strict=True)
        return self.to_logits(stack(outputs)), stack(windows)


class Run:
    """A classifier in training. As everywhere in draw, all randomness is a function of (seed, step)."""

    def __init__(self, settings: Settings, data: DataSet, out: Path, fast: bool = False) -> None:
        self.settings, self.data, self.out, self.fast = settings, data, out, fast
        shared = {f.name for f in fields(TrainConfig)} & asdict(settings).keys()
        self.train = TrainConfig(**{name: getattr(settings, name) for name in shared})
        self.model = Classifier(settings)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.forward = torch.compile(self.model) if fast else self.model
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim == ndim], "weight_decay": decay}
            for ndim, decay in ((2, settings.weight_decay), (1, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups)
        for p in self.model.parameters():  # so that the state has the same tensors before the first step
            self.optimizer.state[p] = {"step": torch.tensor(0.0)} | {
                moment: torch.zeros_like(p) for moment in ("exp_avg", "exp_avg_sq")
            }
        self.step, self.seconds = 0, 0.0
        if (out / STATE).exists():
            self.load()

    def train_step(self) -> tuple[float, float]:
        """One step of AdamW on fresh pages: their cross-entropy after the last glimpse, nats, and the share misnamed.

        The name is asked for after every glimpse. Asked for after the last alone, gradients grow on their way back
        through the windows until training breaks down (docs/results.md).

        Raises:
            NonFiniteError: Before anything was updated, if a gradient is not finite.
        """
        seed, digits, labels = self.settings.seed, self.data.images["train"], self.data.labels["train"]
        index = batch_indices(len(digits), self.settings.batch_size, seed, self.step)
        x = clutter(digits, index, seeded(seed, "clutter", self.step))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.fast):  # matrix products, but for those of windows
            logits = self.forward(x)[0].float()
        losses = nn.functional.cross_entropy(logits.mT, labels[index].expand(len(logits), -1), reduction="none").mean(1)
        self.optimizer.zero_grad()
        losses.mean().backward()
        if not nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM).isfinite():
            raise NonFiniteError(
                f"step {self.step}: the gradient is not finite; {self.out} keeps what was saved before"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.train, self.step, 0.0)
        self.optimizer.step()
        decay = min(EMA_DECAY, (self.step + 1) / (self.step + 11))
        with torch.no_grad():
            for average, weight in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(weight, 1 - decay)
        self.step += 1
        return losses[-1].item(), (logits[-1].argmax(1) != labels[index]).float().mean().item()

    def tensors(self) -> dict[str, Tensor]:
        """All that is needed to go on: weights, averaged weights, Adam's moments."""
        adam = {
            f"adam.{key}.{name}": value
            for name, p in self.model.named_parameters()
            for key, value in self.optimizer.state[p].items()
        }
        parts: dict[str, Mapping[str, Tensor]] = {"model": self.model.state_dict(), "ema": self.ema.state_dict()}
        return adam | {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def save(self) -> None:
        """Write the state whole or not at all."""
        about = {"settings": json.dumps(asdict(self.settings)), "step": str(self.step), "seconds": str(self.seconds)}
        render.write_whole(self.out / STATE, lambda file: file.write(save(self.tensors(), about)))

    def load(self) -> None:
        """Go on from the state in the folder.

        Raises:
            UserError: If it is damaged, or of other settings.
        """
        own, path = self.tensors(), self.out / STATE
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                given = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        settings = about.get("settings", "other settings")
        if settings != json.dumps(asdict(self.settings)):
            raise UserError(f"{self.out} was begun with {settings}: give the same, or another --out")
        try:
            require_same_tensors(given, own)
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(given[name])
        self.step, self.seconds = int(about["step"]), float(about["seconds"])

    @torch.no_grad()
    def wrong(self, split: str, count: int, key: int) -> Float[Tensor, " n"]:
        """Of `count` digits spread over a split, 0 for all: 1 where the averaged weights misname its page, else 0."""
        digits, labels = self.data.images[split], self.data.labels[split]
        index = spread(len(digits), count)
        pages = (clutter(digits, part, seeded(split, key, int(part[0]))) for part in index.split(500))
        return (torch.cat([self.ema(x)[0][-1].argmax(1) for x in pages]) != labels[index]).float()

    def measure(self, draws: int) -> dict[str, float]:
        """The share of test digits misnamed, each on `draws` fresh pages; the standard error is over digits."""
        wrong = torch.stack([self.wrong("test", 0, draw) for draw in range(draws)]).double().mean(0)
        return {
            "error_percent": 100 * wrong.mean().item(),
            "error_percent_se": 100 * wrong.std().item() / math.sqrt(len(wrong)),
            "digits": len(wrong),
            "pages_of_each": draws,
        }

    @torch.no_grad()
    def picture(self, pages: int = 5) -> None:
        """Where it looks: two rows for each page, the window of every glimpse and what is seen through it."""
        digits, n = self.data.images["test"], self.settings.read_n
        x = clutter(digits, spread(len(digits), pages), seeded("picture"))
        _, windows = self.ema(x)
        columns = []
        for window, boxes in zip(zip(*windows, strict=True), render.window_boxes(windows, n), strict=True):
            looks = render.cells(x, 2)
            for cell, box in zip(looks, boxes, strict=True):
                render.outline(cell, box, 2, render.READ, thickest=1 / 40)
            r = extract(x, Window(*window), n)
            seen = nn.functional.interpolate(r / r.amax((1, 2, 3), keepdim=True), (SIDE, SIDE))
            columns.append(render.by_row([looks, render.cells(seen, 2)]))
        captions = [f"t = {t + 1}" for t in range(len(columns))]
        sheet = render.arrange(render.by_row(columns), len(columns), captions=captions)
        render.save_png(sheet, self.out / "glimpses.png")


def main() -> None:
    """Train to the end of the schedule or as far as --minutes allow, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; one that has a state goes on")
    for name, default in asdict(Settings()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    parser.add_argument("--data-dir", type=Path, help="where MNIST lies; else DRAW_DATA, else the cache folder")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many, to go on another time")
    parser.add_argument("--draws", type=int, default=5, help="fresh pages of each test digit")
    parser.add_argument("--fast", action="store_true", help="compiled, bfloat16 products: more steps a minute")
    parser.add_argument("--measure", action="store_true", help="do not train")
    options = parser.parse_args()
    try:
        run_all(options)
    except (UserError, NonFiniteError) as error:
        parser.error(str(error))


def run_all(options: argparse.Namespace) -> None:
    """Train unless told not to; measure what is finished, or what there is if that was asked for."""
    if options.fast and kernels.find_compiler() is None:
        raise UserError("--fast needs a C++ compiler (c++, g++, clang++, or what CXX names)")
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    if options.draws < 1:
        raise UserError(f"draws must be at least 1, got {options.draws}")
    if options.measure and not (options.out / STATE).exists():
        raise UserError(f"{options.out} holds no {STATE} to measure")
    run = Run(settings, load_data(DataConfig(source="mnist"), options.data_dir), options.out, options.fast)
    if not options.measure:
        train(run, 60 * options.minutes)
    if options.measure or run.step >= settings.iterations:
        measured = {"step": run.step, "seconds": run.seconds, "fast": run.fast} | run.measure(options.draws)
        text = json.dumps(asdict(settings) | measured)
        render.write_whole(options.out / "measured.json", lambda file: file.write(text.encode()))
        print(text)
        run.picture()
    else:
        print(f"stopped after step {run.step:,} of {settings.iterations:,}: the same command goes on", file=sys.stderr)


def train(run: Run, limit: float, every: int = 1000) -> None:
    """Train for at most `limit` seconds, with a save and a line every thousand steps.

    The error in training is that of the weights as they change, the one in validation of the averaged ones.
    """
    began, before = time.monotonic(), run.seconds
    sums, since = torch.zeros(2), run.step
    while run.step < run.settings.iterations and time.monotonic() - began < limit:
        sums += torch.tensor(run.train_step())
        run.seconds = before + time.monotonic() - began
        if run.step % every == 0 or run.step == run.settings.iterations:
            loss, wrong = (sums / (run.step - since)).tolist()
            valid = 100 * run.wrong("valid", 2000, 0).mean().item()
            print(
                f"step {run.step:,}: {loss:.3f} nats, error {100 * wrong:.2f} % in training, {valid:.2f} % in "
                f"validation; {run.seconds / 60:.1f} min",
                flush=True,
            )
            sums, since = torch.zeros(2), run.step
            run.save()
    run.save()


if __name__ == "__main__":
    main()
