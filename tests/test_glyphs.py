"""The embedded data set: laws of its images, not their bits, which belong to Pillow and FreeType."""

import numpy as np
import pytest
from PIL import ImageFont

from draw import glyphs
from draw.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return glyphs.render(0, "train", 1000)


def test_images_are_28_pixels_a_side_with_one_channel(digits):
    images, labels = digits
    assert images.shape == (1000, 1, 28, 28)
    assert images.dtype == np.uint8
    assert labels.shape == (1000,)
    assert labels.dtype == np.int64


def test_the_same_seed_gives_the_same_images(digits):
    again, labels = glyphs.render(0, "train", 1000)
    np.testing.assert_array_equal(again, digits[0])
    np.testing.assert_array_equal(labels, digits[1])


@pytest.mark.parametrize(("seed", "split"), [(1, "train"), (0, "test"), (-1, "train")])
def test_another_seed_or_split_gives_other_images(digits, seed, split):
    other, _ = glyphs.render(seed, split, 1000)
    assert (other != digits[0]).any(axis=(1, 2, 3)).mean() > 0.99


def test_classes_come_in_equal_parts(digits):
    np.testing.assert_array_equal(np.bincount(digits[1]), [100] * 10)


def test_classes_are_shuffled(digits):
    assert (digits[1][:-1] == digits[1][1:]).mean() < 0.2  # 0.1 by chance, 1 if sorted
    assert (digits[1] == np.arange(1000) % 10).mean() < 0.2


def test_digits_are_as_high_as_those_of_mnist(digits):
    rows = digits[0][:, 0].max(axis=2) > 64
    heights = 28 - rows.argmax(axis=1) - rows[:, ::-1].argmax(axis=1)
    assert 19 < heights.mean() < 22  # MNIST: 20


def test_digits_stay_inside_the_frame(digits):
    frame = np.ones((28, 28), bool)
    frame[1:-1, 1:-1] = False
    assert (digits[0][:, 0, frame].max(axis=1) > 64).mean() < 0.02


def test_edges_are_smooth(digits):
    grey = (digits[0] > 20) & (digits[0] < 235)
    assert 0.2 < grey.sum() / (digits[0] > 20).sum() < 0.7


def test_strokes_differ_in_width(digits):
    images, labels = digits
    ink = images[labels == 1].mean(axis=(1, 2, 3))
    assert ink.max() > 1.8 * ink.min()


def test_labels_belong_to_their_digits(digits):
    images, labels = digits
    means = np.stack([images[labels == d].astype(float).mean(axis=0).ravel() for d in range(10)])
    other, truth = glyphs.render(1, "test", 500)
    distance = ((other.reshape(500, 1, -1).astype(float) - means) ** 2).sum(axis=2)
    assert (distance.argmin(axis=1) == truth).mean() > 0.7


def test_pillow_without_freetype_is_named_in_one_line(monkeypatch):
    def no_freetype(size):
        raise ImportError("The _imagingft C module is not installed")

    monkeypatch.setattr(ImageFont, "load_default", no_freetype)
    with pytest.raises(UserError, match="Pillow with FreeType"):
        glyphs.render(0, "train", 1)
