"""The paper's figures 1, 3, 6 and 7, each as one picture (arXiv:1502.04623v2), and one of our own: the latents."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from draw import render
from draw.attention import extract
from draw.model import DRAW
from draw.shards import Shards
from draw.types import Trace, Window

PATCH_N = 12  # filters along each axis of figure 3's patches
FINE = 4  # figure 3's lines are drawn this much larger, then reduced
LINE: render.Colour = (255, 196, 61)  # figure 3's filters and labels
EDGE: render.Colour = (36, 37, 42)

Point = tuple[float | int, float | int]  # x and y on the screen


def figure_1(
    trace: Trace,
    mean: Callable[[Tensor], Tensor],
    write_n: int | None,
    *,
    columns: int = 14,
    scale: int | None = None,
) -> Image.Image:
    """Stages of drawing: a row per image, evenly spaced glimpses from first to last, each with its write window.

    Args:
        trace: The glimpses; without write windows there are no rectangles.
        mean: From canvases (logits) to expected images in [0, 1].
        write_n: Filters N of the write window along each axis; None draws no rectangles.
        columns: Glimpses shown.
        scale: Screen pixels per image pixel; by default the picture is about 1,200 pixels wide.
    """
    shown = render.glimpses(trace, columns)
    scale = scale or render.fitting_scale(1_200, len(shown) * trace.canvas.shape[-1])
    stages = render.stages(trace, mean, shown, write_n, scale)
    return render.arrange(render.by_row(stages), len(shown), captions=[f"t = {t + 1}" for t in shown])


def figure_7(
    trace: Trace, mean: Callable[[Tensor], Tensor], *, columns: int = 14, scale: int | None = None
) -> Image.Image:
    """`figure_1` without rectangles, for a network without attention."""
    return figure_1(trace, mean, None, columns=columns, scale=scale)


def figure_6(
    samples: Float[Tensor, "n c h w"],
    nearest: Float[Tensor, "n c h w"],
    *,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Samples, and apart on the right the training images nearest to those of the last column.

    Args:
        samples: Intensities in [0, 1]; a last row that is not full is left out.
        nearest: The training image nearest to each sample, in [0, 1].
        columns: Samples side by side; by default the grid is about square.
        scale: Screen pixels per image pixel; by default the picture is about 900 pixels wide.
    """
    n, _, height, width = samples.shape
    columns = min(columns or render.square_columns(n, height, width), n)
    rows = n // columns
    scale = scale or render.fitting_scale(900, (columns + 1) * width, rows * height)
    drawn = render.cells(samples[: rows * columns], scale)
    beside = render.cells(nearest[columns - 1 : rows * columns : columns], scale)
    grid = np.concatenate([drawn.reshape(rows, columns, *drawn.shape[1:]), beside[:, None]], axis=1)
    captions = [""] * columns + ["nearest"]
    return render.arrange(grid.reshape(-1, *drawn.shape[1:]), columns + 1, captions=captions, breaks=[columns])


def nearest_images(
    samples: Float[Tensor, "n c h w"], training: UInt8[Tensor, "m c h w"] | Shards, chunk: int = 0
) -> Int64[Tensor, " n"]:
    """The index of the training image nearest to each sample, by Euclidean distance over pixels.

    Args:
        samples: Intensities in [0, 1].
        training: Intensities 0 to 255; packed ones are read through once.
        chunk: Training images at a time, which bounds the memory; 0 for as many as take 32 MB.
    """
    points = samples.detach().flatten(1).cpu().double()
    least = torch.full((len(points),), math.inf, dtype=torch.float64)
    index = torch.zeros(len(points), dtype=torch.int64)
    chunk = chunk or max(1, (32 << 20) // (8 * points.shape[1]))
    for start in range(0, len(training), chunk):
        others = training[start : start + chunk].flatten(1).cpu().double() / 255
        # |s - o|^2 less |s|^2, which is the same for all o.
        distance, at = (others.square().sum(1) - 2 * points @ others.T).min(dim=1)
        closer = distance < least
        least, index = torch.where(closer, distance, least), torch.where(closer, at + start, index)
    return index


def figure_latents(model: DRAW, n: int = 8, *, seed: int = 0, most: int = 6, scale: int | None = None) -> Image.Image:
    """What each latent decides: the same noise drawn with all latents, with one of them alone, and with none.

    The columns of one latent are of those that tell most. Latents left out are at the mean of the prior in every
    glimpse.

    Args:
        model: Any; its latents need not be few.
        n: Rows.
        seed: Of the noise; the first column is `model.sample(n, seed=seed)`.
        most: Columns of one latent, at most.
        scale: Screen pixels per image pixel; at least 2, by default; the picture is about 900 pixels wide or high.
    """
    alone = model.telling_latents(most, seed=seed)
    with torch.no_grad():
        eps = model.noise(n, seed, "sample")
        drawn = []
        for kept in (list(range(eps.shape[-1])), *([i] for i in alone), []):
            only = torch.zeros_like(eps)
            only[..., kept] = eps[..., kept]
            drawn.append(model.likelihood.mean(model(only).canvas))
    captions = ["all", *(f"latent {i}" for i in alone), "none"]
    fitting = render.fitting_scale(900, len(drawn) * model.config.width, n * model.config.height)
    scale = scale or max(2, fitting)  # at 1 there is no room for the captions
    stages = [render.cells(images, scale) for images in drawn]
    return render.arrange(render.by_row(stages), len(stages), captions=captions, breaks={1, len(stages) - 1})


def figure_3(image: Float[Tensor, "c h w"]) -> Image.Image:
    """How attention sees: a 3 x 3 grid of filters over an image, and three 12 x 12 patches extracted from it.

    On the left each filter is a dot with a circle of one sigma; the stride and the centre are marked. On the right are
    three windows, their borders as thick as sigma, each with the patch that it extracts: a small stride and a large
    sigma zoom into the middle and blur it; a large stride and a small sigma sample the whole image down; a large
    stride and a large sigma blur the whole.

    Args:
        image: Intensities in [0, 1].
    """
    image = image.detach().cpu().float()
    _, height, width = image.shape
    side = min(height, width)
    small = max(1, round(168 / side))
    gap, head, left = max(height // 2, 8), 44, 44
    stack = 3 * small * height + 2 * gap  # three cells in a column, as high as the large image on the left
    large = stack // height
    middle = left + large * width + 2 * gap
    right = middle + small * width + gap
    page = Image.new("RGB", (right + small * side + 110, head + stack + 44), render.GROUND)
    page.paste(Image.fromarray(render.cells(image[None], large)[0]), (left, head))
    lines = Image.new("RGBA", (FINE * page.width, FINE * page.height))
    draw = ImageDraw.Draw(lines)
    _draw_filters(draw, _window(image, stride=side / 5, sigma=side / 22), (left, head), (height, width), large)
    for row, (stride, sigma) in enumerate(((side / 30, side / 25), (side / 12, side / 90), (side / 13, side / 15))):
        window = _window(image, stride, sigma)
        top = head + row * (small * height + gap)
        (cell,) = render.cells(image[None], small)
        render.outline(cell, render.window_boxes(window, PATCH_N)[0], small, render.READ)
        page.paste(Image.fromarray(cell), (middle, top))
        patch = Image.fromarray(render.cells(extract(image[None], window, PATCH_N), 1)[0])
        patch = patch.resize((small * side, small * side), Image.Resampling.NEAREST)
        page.paste(patch, (right, top + small * (height - side) // 2))
        for symbol, value, lift in (("δ", stride, -13), ("\N{GREEK SMALL LETTER SIGMA}", sigma, 13)):
            place = right + small * side + 16, top + small * height / 2 + lift
            _text(draw, place, f"{symbol} = {value:.1f}", "lm", render.TEXT)
    for x, text in (
        (left + large * width / 2, "3 by 3 filters"),
        (middle + small * width / 2, "window"),
        (right + small * side / 2, f"N = {PATCH_N}"),
    ):
        _text(draw, (x, head - 20), text, "mm", render.TEXT)
    lines = lines.reduce(FINE)
    page.paste(lines, mask=lines)
    return page


def _window(image: Float[Tensor, "c h w"], stride: float, sigma: float) -> Window:
    # In the middle of the image.
    height, width = image.shape[1:]
    return Window(*(torch.tensor([v]) for v in ((width - 1) / 2, (height - 1) / 2, stride, sigma**2, 1.0)))


def _draw_filters(
    draw: ImageDraw.ImageDraw, window: Window, origin: tuple[int, int], size: tuple[int, int], scale: int
) -> None:
    # Figure 3, left: centres and spread of a 3 x 3 grid, its stride and its centre.
    left, top, right, bottom, sigma = render.window_boxes(window, 3)[0]
    xs = origin[0] + (np.linspace(left, right, 3) + 0.5) * scale
    ys = origin[1] + (np.linspace(top, bottom, 3) + 0.5) * scale
    floor, wall = origin[1] + size[0] * scale, origin[0]
    _line(draw, (xs[1], ys[1]), (xs[1], floor), dashes=True)
    _line(draw, (xs[1], ys[1]), (wall, ys[1]), dashes=True)
    for x, y in itertools.product(xs, ys):
        _circle(draw, (x, y), sigma * scale, filled=False)
        _circle(draw, (x, y), 5.0, filled=True)
    lift = ys[0] - sigma * scale - 14
    _line(draw, (xs[1] + 2, lift), (xs[2] - 2, lift))
    for x, way in ((xs[1], 1), (xs[2], -1)):
        tip = [(x, lift), (x + way * 10, lift - 5), (x + way * 10, lift + 5)]
        draw.polygon([(FINE * a, FINE * b) for a, b in tip], fill=LINE)
    _text(draw, ((xs[1] + xs[2]) / 2, lift - 14), "δ", "mm", LINE)
    _text(draw, (xs[1], floor + 20), "g_X", "mm", LINE)
    _text(draw, (wall - 22, ys[1]), "g_Y", "mm", LINE)


def _line(draw: ImageDraw.ImageDraw, start: Point, end: Point, dashes: bool = False) -> None:
    # Two pixels wide, with a dark edge to be seen on white.
    a, b = np.array(start), np.array(end)
    ends = np.linspace(0, 1, 2 * max(1, round(math.dist(a, b) / 12))) if dashes else np.array([0, 1])
    for colour, width in ((EDGE, 4), (LINE, 2)):
        for one, two in zip(ends[::2], ends[1::2], strict=True):
            xy = [tuple(FINE * (a + part * (b - a))) for part in (one, two)]
            draw.line(xy, fill=colour, width=FINE * width)


def _circle(draw: ImageDraw.ImageDraw, centre: Point, radius: float, filled: bool) -> None:
    for colour, more, width in ((EDGE, 1, 4), (LINE, 0, 2)):
        xy, r = [FINE * c for c in centre], FINE * (radius + more)
        box = (xy[0] - r, xy[1] - r, xy[0] + r, xy[1] + r)
        draw.ellipse(box, fill=colour if filled else None, outline=colour, width=FINE * width)


def _text(draw: ImageDraw.ImageDraw, at: Point, text: str, anchor: str, colour: render.Colour) -> None:
    # matplotlib's font, since Pillow's own has no Greek; what follows an underscore is a subscript.
    import matplotlib

    name = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    font, small = (ImageFont.truetype(name, FINE * size) for size in (17, 12))
    text, _, below = text.partition("_")
    x, y = FINE * at[0], FINE * at[1]
    edge = 2 * FINE
    draw.text((x, y), text, colour, font, anchor, stroke_width=edge, stroke_fill=EDGE)
    draw.text(
        (x + font.getlength(text) / 2, y + 2 * FINE), below, colour, small, "lt", stroke_width=edge, stroke_fill=EDGE
    )
