"""The embedded data set: digits set in the typeface that Pillow carries, each bent by its own affine map.

Nothing is downloaded. The same seed gives the same images with one version of Pillow and FreeType.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from draw.errors import UserError
from draw.noise import seeded_array

SIDE = 28  # pixels, as MNIST
SIZES = {"train": 20_000, "valid": 2_000, "test": 2_000}  # about 1.5 s on one core, most of it affine maps

_FINE = 2  # the affine map works on a canvas this many times finer, averaged down afterwards
_SHARP = 4  # letters are set this many times finer still, so that integer strokes are an eighth of a pixel
_FONT_SIZE = 212  # digits 18.5 pixels high once averaged down, 20 with the mean stroke: MNIST's height
_STROKES = 9  # widths added around the outline: 0 to 8 eighths of a pixel

# Half-widths of the uniform distributions. Chosen by eye on a sheet: varied, yet every digit stays legible.
_ROTATION = 0.25  # radians
_SHEAR = 0.3
_SCALE = 0.15  # each axis on its own, about 1
_SHIFT = 1.5  # pixels


def render(seed: int, split: str, n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """n digits of a split, classes in equal parts and random order.

    Args:
        seed: With the split's name, the only source of randomness.
        split: train, valid or test.   n: Images, at least 1.

    Returns:
        Images (n, 1, 28, 28), 0 is paper and 255 is ink; labels (n,) in 0 to 9.

    Raises:
        UserError: If Pillow was built without FreeType, which sets the digits.
    """
    rng = seeded_array(seed, split)
    labels = rng.permutation(np.arange(n) % 10)
    strokes = (rng.random(n) * _STROKES).astype(int)
    maps = _affine_maps(2 * rng.random((n, 6)) - 1)
    masters = _masters()
    images = np.empty((n, 1, SIDE, SIDE), np.uint8)
    side = (SIDE * _FINE, SIDE * _FINE)
    for i in range(n):
        master = masters[labels[i]][strokes[i]]
        bent = master.transform(side, Image.Transform.AFFINE, maps[i], Image.Resampling.BILINEAR)
        images[i, 0] = bent.reduce(_FINE)
    return images, labels


def _affine_maps(u: NDArray[np.float64]) -> list[tuple[float, ...]]:
    """From uniform numbers in [-1, 1], (n, 6), PIL's six coefficients each: where an output pixel comes from."""
    rotation, shear = _ROTATION * u[:, 0], _SHEAR * u[:, 1]
    scale = np.exp(_SCALE * u[:, 2:4])  # even in both directions: half the digits shrink
    cos, sin = np.cos(rotation), np.sin(rotation)
    # rotate @ shear @ scale, and its inverse, which is what PIL asks for.
    rows = [
        [cos * scale[:, 0], (cos * shear - sin) * scale[:, 1]],
        [sin * scale[:, 0], (sin * shear + cos) * scale[:, 1]],
    ]
    inverse = np.linalg.inv(np.array(rows).transpose(2, 0, 1))
    middle = SIDE * _FINE / 2
    offset = middle - np.einsum("nij,nj->ni", inverse, middle + _SHIFT * _FINE * u[:, 4:6])
    return [(*m[0], o[0], *m[1], o[1]) for m, o in zip(inverse.tolist(), offset.tolist(), strict=True)]


def _masters() -> list[list[Image.Image]]:
    """Each digit upright in the middle of the fine canvas, one picture per stroke width."""
    try:
        font = ImageFont.load_default(_FONT_SIZE)
    except (ImportError, OSError) as error:
        raise UserError("the data set 'glyphs' needs a Pillow with FreeType; its published wheels have it") from error
    side = SIDE * _FINE * _SHARP
    masters = []
    for digit in "0123456789":
        widths = []
        for stroke in range(_STROKES):
            image = Image.new("L", (side, side))
            page = ImageDraw.Draw(image)
            left, top, right, bottom = page.textbbox((0, 0), digit, font=font, stroke_width=stroke, anchor="ls")
            corner = ((side - left - right) / 2, (side - top - bottom) / 2)
            page.text(corner, digit, fill=255, font=font, stroke_width=stroke, anchor="ls")
            widths.append(image.reduce(_SHARP))
        masters.append(widths)
    return masters
