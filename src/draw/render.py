"""Pictures of arrays and Traces: contact sheets, animations, reconstructions.

Grey images are shown as the data are, ink white on black; pixels are scaled by repetition, never smoothed. An image
coordinate g, which counts from 0 at a pixel's centre, is (g + 1/2) * scale on the screen.
"""

import contextlib
import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from draw.errors import UserError
from draw.filterbank import rectangle
from draw.pictures import MADE_HERE
from draw.types import Trace, Window

Colour = tuple[int, int, int]
Cell = UInt8[np.ndarray, "y x 3"]  # one image on the screen
Cells = UInt8[np.ndarray, "n y x 3"]

GROUND: Colour = (36, 37, 42)  # between the images; an empty canvas is darker
TEXT: Colour = (172, 174, 182)
WRITE: Colour = (255, 66, 54)  # windows: red writes, green reads
READ: Colour = (52, 211, 96)

SUFFIXES = (".gif", ".webp", ".png")


def sheet(
    images: Float[Tensor, "n c h w"], columns: int | None = None, scale: int | None = None, gap: int | None = None
) -> Image.Image:
    """A contact sheet, row by row.

    Args:
        images: Intensities in [0, 1], grey or RGB; values beyond are clipped.
        columns: Images side by side; by default the sheet is about square.
        scale: Screen pixels per image pixel; by default the sheet is about 900 pixels wide.
        gap: Screen pixels between images.
    """
    n, _, height, width = images.shape
    columns = columns or square_columns(n, height, width)
    scale = scale or fitting_scale(900, columns * width, math.ceil(n / columns) * height)
    return arrange(cells(images, scale), columns, gap=gap)


def animation(
    trace: Trace,
    mean: Callable[[Tensor], Tensor],
    *,
    write_n: int | None,
    columns: int | None = None,
    scale: int | None = None,
    initial: Float[Tensor, "c h w"] | None = None,
) -> list[Image.Image]:
    """A grid of canvases being drawn, one frame per glimpse.

    Args:
        trace: The glimpses; without write windows there are no rectangles.
        mean: From canvases (logits) to expected images in [0, 1], such as `Likelihood.mean`.
        write_n: Filters N of the write window along each axis; None draws no rectangles.
        columns: Canvases side by side; by default the grid is about square.
        scale: Screen pixels per image pixel; by default frames are about 480 pixels wide.
        initial: The canvas c_0 (logits), for a first frame before any stroke.

    Returns:
        The optional frame of c_0; T frames, each canvas with the window it was just written through; and, if any
        rectangles were drawn, the finished canvases once more without them.
    """
    steps, n, _, height, width = trace.canvas.shape
    columns = columns or square_columns(n, height, width)
    scale = scale or fitting_scale(480, columns * width, math.ceil(n / columns) * height)
    frames = [] if initial is None else [cells(mean(initial.expand(n, -1, -1, -1)), scale)]
    frames += stages(trace, mean, range(steps), write_n, scale)
    if trace.write_window is not None and write_n is not None:
        frames.append(cells(mean(trace.canvas[-1]), scale))
    return [arrange(frame, columns) for frame in frames]


def save_animation(
    frames: Sequence[Image.Image], path: Path, milliseconds: int = 80, hold_milliseconds: int = 2_000
) -> None:
    """Write an endless animation in the format of the path's suffix: .gif, .webp (lossless) or .png (APNG).

    GIF has one palette for all frames, 64 colours for grey images and 256 for RGB. All formats merge equal
    neighbouring frames into one that is shown for as long.

    Args:
        frames: At least one, all of one size.
        path: The file; its folder is made if need be.
        milliseconds: Each frame's time; GIF rounds it to hundredths of a second.
        hold_milliseconds: The last frame's time.

    Raises:
        UserError: If the suffix is another one, or the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"cannot write an animation to {path}: the name must end in {', '.join(SUFFIXES)}")
    durations = [milliseconds] * (len(frames) - 1) + [hold_milliseconds]
    options: dict[str, Any] = {"save_all": True, "duration": durations, "loop": 0}
    if suffix == ".gif":
        palette = _palette(frames)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        options |= {"format": "GIF", "optimize": True, "disposal": 1}
    elif suffix == ".webp":
        options |= {"format": "WEBP", "lossless": True, "quality": 60, "method": 4}
    else:
        options |= {"format": "PNG", "pnginfo": _made_here()}
    write_whole(path, lambda file: frames[0].save(file, append_images=frames[1:], **options))


def reconstructions(
    x: Float[Tensor, "b c h w"],
    trace: Trace,
    mean: Callable[[Tensor], Tensor],
    *,
    read_n: int | None,
    write_n: int | None,
    columns: int = 8,
    scale: int | None = None,
) -> Image.Image:
    """How images are read and redrawn: a row per image.

    From left to right the input; with read attention the input dimmed, under read windows of four glimpses, the
    later the brighter; the canvas at evenly spaced glimpses, each with its write window; and the result.

    Args:
        x: The inputs, intensities in [0, 1].
        trace: The glimpses, from inference on x; windows that are None are not drawn.
        mean: From canvases (logits) to expected images in [0, 1].
        read_n: Filters N of the read window along each axis; None draws no read windows.
        write_n: The same of the write window.
        columns: Glimpses shown.
        scale: Screen pixels per image pixel; by default the picture is about 1,100 pixels wide.
    """
    shown = glimpses(trace, columns)
    scale = scale or fitting_scale(1_100, (len(shown) + 3) * x.shape[-1])
    strip, captions = [cells(x, scale)], ["input"]
    if trace.read_window is not None and read_n is not None:
        boxes = window_boxes(trace.read_window, read_n)
        dimmed = cells(0.5 * x, scale)
        few = glimpses(trace, 4)
        for age, t in enumerate(few, start=1):
            colour = _shade(READ, 0.4 + 0.6 * age / len(few))
            for cell, box in zip(dimmed, boxes[t], strict=True):
                outline(cell, box, scale, colour, thickest=1 / 16)
        strip.append(dimmed)
        captions.append("read")
    first = len(strip)
    strip += stages(trace, mean, shown, write_n, scale)
    captions += [f"t = {t + 1}" for t in shown]
    strip.append(cells(mean(trace.canvas[-1]), scale))
    captions.append("result")
    return arrange(by_row(strip), len(strip), captions=captions, breaks=(first, len(strip) - 1))


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all; its folder is made if need be.

    Raises:
        UserError: If the name is not a PNG's, or the file cannot be written.
    """
    require_png(path)
    write_whole(path, lambda file: image.save(file, format="PNG", optimize=True, pnginfo=_made_here()))


def _made_here() -> PngInfo:
    info = PngInfo()
    info.add_text(*MADE_HERE)
    return info


def require_png(path: Path) -> None:
    """Check that a picture's name says what it is, so that no other file is overwritten by mistake.

    Raises:
        UserError: If it does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"cannot write a picture to {path}: the name must end in .png")


def read_png(path: Path) -> Image.Image:
    """A picture that `save_png` wrote.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def captioned(pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[Image.Image]:
    """Each picture under a line of text, all on a ground as large as the largest."""
    font = ImageFont.load_default(16)
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    frames = []
    for picture, caption in zip(pictures, captions, strict=True):
        frame = Image.new("RGB", (width, height + 32), GROUND)
        frame.paste(picture, (0, 32))
        ImageDraw.Draw(frame).text((8, 8), caption, fill=TEXT, font=font)
        frames.append(frame)
    return frames


# The parts, shared with figures.py


def cells(images: Float[Tensor, "n c h w"], scale: int) -> Cells:
    """Images in [0, 1] as they stand on the screen: RGB bytes, every pixel a square of scale x scale."""
    levels = images.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    pixels = levels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def window_boxes(window: Window, n: int) -> Float[np.ndarray, "*b 5"]:
    """The windows' left, top, right, bottom and sigma in image coordinates."""
    return torch.stack([field.detach().cpu().double() for field in rectangle(window, n)], dim=-1).numpy()


def outline(cell: Cell, box: Float[np.ndarray, "5"], scale: int, colour: Colour, thickest: float = 1 / 8) -> None:
    """Draw a window into its cell, in place, and not beyond it.

    The border is centred on the rectangle and as thick as sigma, but at least a screen pixel and at most `thickest` of
    the cell's shorter side, so that a blunt window does not hide the picture.
    """
    if np.isnan(box).any():
        return
    limit = max(1, thickest * min(cell.shape[:2]))
    left, top, right, bottom = np.clip((box[:4] + 0.5) * scale, -1e6, 1e6)
    thick = round(min(max(box[4] * scale, 1), limit))
    x0, y0 = round(left - thick / 2), round(top - thick / 2)
    x1, y1 = max(round(right - thick / 2), x0), max(round(bottom - thick / 2), y0)
    for ya, yb, xa, xb in (
        (y0, y0 + thick, x0, x1 + thick),
        (y1, y1 + thick, x0, x1 + thick),
        (y0, y1 + thick, x0, x0 + thick),
        (y0, y1 + thick, x1, x1 + thick),
    ):
        cell[max(ya, 0) : max(yb, 0), max(xa, 0) : max(xb, 0)] = colour


def arrange(
    cells: Cells,
    columns: int,
    *,
    gap: int | None = None,
    captions: Sequence[str] = (),
    breaks: Collection[int] = (),
) -> Image.Image:
    """Cells row by row on the dark ground.

    Args:
        cells: All of one size.
        columns: Cells side by side; the last row may be shorter.
        gap: Screen pixels between cells, by default a thirtieth of a cell; the margin is twice that.
        captions: A word over each column.
        breaks: Columns that stand a little apart from the column before.
    """
    n, height, width, _ = cells.shape
    if n == 0:
        raise UserError("there are no images to show")
    columns = min(columns, n)
    gap = max(2, round(max(height, width) / 30)) if gap is None else gap
    margin = 2 * gap
    font = _caption_font(captions, width)
    head = margin if font is None else margin + gap + round(font.getbbox("t")[3])
    lefts = [margin + i * (width + gap) + 2 * gap * sum(b <= i for b in breaks) for i in range(columns)]
    tops = [head + j * (height + gap) for j in range(math.ceil(n / columns))]
    page = np.empty((tops[-1] + height + margin, lefts[-1] + width + margin, 3), np.uint8)
    page[:] = GROUND
    for i, cell in enumerate(cells):
        top, left = tops[i // columns], lefts[i % columns]
        page[top : top + height, left : left + width] = cell
    picture = Image.fromarray(page)
    draw = ImageDraw.Draw(picture)
    for left, caption in zip(lefts, captions, strict=False):
        draw.text((left + width / 2, head - gap), caption, fill=TEXT, font=font, anchor="md")
    return picture


def glimpses(trace: Trace, count: int) -> list[int]:
    """Evenly spaced glimpses, counted from 0, the first and the last among them; all if there are not that many."""
    return evenly(len(trace.canvas), count)


def evenly(total: int, count: int) -> list[int]:
    """Evenly spaced indices of a sequence, the first and the last among them; all if there are not that many."""
    last = total - 1
    return sorted({round(i) for i in np.linspace(last if count == 1 else 0, last, count).tolist()})


def fitting_scale(target: int, width: int, height: int = 0) -> int:
    """The scale, 1 to 12, at which a picture of the given image pixels is about `target` screen pixels wide or high."""
    return min(max(round(target / max(width, height)), 1), 12)


def stages(
    trace: Trace, mean: Callable[[Tensor], Tensor], shown: Sequence[int], write_n: int | None, scale: int
) -> list[Cells]:
    """The canvases after each of some glimpses, with the windows they were just written through."""
    stages = [cells(mean(trace.canvas[t]), scale) for t in shown]
    if trace.write_window is not None and write_n is not None:
        boxes = window_boxes(trace.write_window, write_n)
        for t, stage in zip(shown, stages, strict=True):
            for cell, box in zip(stage, boxes[t], strict=True):
                outline(cell, box, scale, WRITE)
    return stages


def by_row(stages: Sequence[Cells]) -> UInt8[np.ndarray, "m y x 3"]:
    """Stages as `arrange` wants them: all stages of the first image, then of the second, and so on."""
    return np.stack(stages, axis=1).reshape(-1, *stages[0].shape[1:])


def square_columns(n: int, height: int, width: int) -> int:
    """How many columns make n images an about square picture, or a wider one if that fills every row."""
    least = max(1, math.ceil(math.sqrt(n * height / width)))
    return next((k for k in range(least, min(2 * least, n + 1)) if n % k == 0), least)


def _shade(colour: Colour, light: float) -> Colour:
    red, green, blue = (round(light * part) for part in colour)
    return red, green, blue


def _caption_font(captions: Sequence[str], width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    # The largest, 8 to 13, in which every caption stays over its column; None without captions.
    font = None
    for size in range(13, 7, -1) if captions else ():
        font = ImageFont.load_default(size)
        if all(font.getlength(caption) <= width for caption in captions):
            break
    return font


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    # One palette for all frames, with the theme's colours in it exactly. Few colours make small files.
    some = np.concatenate([np.asarray(frame)[::2, ::2].reshape(-1, 3) for frame in frames[:: max(1, len(frames) // 8)]])
    theme = np.array([GROUND, TEXT, WRITE, READ], np.uint8)
    some = some[(some[:, None] != theme).any(-1).all(-1)]
    if (some.max(-1) == some.min(-1)).all():
        colours = np.linspace(0, 255, 59).round().astype(np.uint8)[:, None].repeat(3, axis=1)
    else:
        adapted = Image.fromarray(some[None]).quantize(251, method=Image.Quantize.MEDIANCUT).getpalette()
        colours = np.array(adapted, np.uint8).reshape(-1, 3)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([theme, colours]).tobytes())
    return palette


def write_whole(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """Have `save` write a file that appears under its name only when it is complete; its folder is made if need be.

    Raises:
        UserError: If the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            save(file)
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
