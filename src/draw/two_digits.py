"""Two-digit MNIST (section 4.3, figure 8): pairs of digits at random places on a black background."""

import numpy as np
from numpy.typing import NDArray

from draw.noise import seeded_array
from draw.published import Arrays, Images, Labels

SIDE = 60  # pixels
_DIGIT = 28  # pixels of a digit's own image, which lies wholly inside


def compose(mnist: Arrays, seed: int) -> Arrays:
    """As many images of each split as MNIST has, each of two digits of that split, drawn with replacement.

    Args:
        mnist: Digits (n, 1, 28, 28) and their labels, by split.
        seed: With the split's name, the only source of randomness.

    Returns:
        Images (n, 1, 60, 60), overlapping strokes added and clipped at 255; labels (n,) of two figures, the smaller
        digit first: 0 to 99.
    """
    images, labels = {}, {}
    for split, digits in mnist.images.items():
        rng = seeded_array(seed, "two digits" + split)
        pairs = rng.integers(len(digits), size=(len(digits), 2))
        corners = rng.integers(SIDE - _DIGIT + 1, size=(len(digits), 2, 2))  # of each digit: row and column
        images[split] = _added(digits, pairs, corners)
        smaller, larger = np.sort(mnist.labels[split][pairs], axis=1).T
        labels[split] = 10 * smaller + larger
    return Arrays(images, labels, mnist.notes)


def _added(digits: Images, pairs: Labels, corners: NDArray[np.int64]) -> Images:
    pages = np.zeros((len(pairs), 1, SIDE, SIDE), np.uint8)
    for page, pair, places in zip(pages, pairs, corners.tolist(), strict=True):
        for digit, (top, left) in zip(digits[pair], places, strict=True):
            under = page[:, top : top + _DIGIT, left : left + _DIGIT]
            under += np.minimum(digit, 255 - under)
    return pages
