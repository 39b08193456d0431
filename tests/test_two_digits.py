"""Two-digit MNIST: what lies on a page, where, and under which label."""

import numpy as np
import pytest

from draw import two_digits
from draw.config import DataConfig
from draw.data import load_data
from draw.published import Arrays


def blocks(n, ink):
    """n digits of each split, digit i all of the grey value ink(i), with label i % 10."""
    greys = np.array([ink(i) for i in range(n)], np.uint8).reshape(n, 1, 1, 1)
    images = np.broadcast_to(greys, (n, 1, 28, 28))
    return Arrays(
        dict.fromkeys(("train", "valid", "test"), images), dict.fromkeys(("train", "valid", "test"), np.arange(n) % 10)
    )


@pytest.fixture(scope="module")
def pages():
    return two_digits.compose(blocks(1000, lambda i: 100), 0).images["train"][:, 0]


def test_there_are_as_many_pages_as_digits():
    made = two_digits.compose(blocks(30, lambda i: 100), 0)
    assert {split: (x.shape, x.dtype) for split, x in made.images.items()} == dict.fromkeys(
        ("train", "valid", "test"), ((30, 1, 60, 60), np.dtype(np.uint8))
    )
    assert {split: (y.shape, y.dtype) for split, y in made.labels.items()} == dict.fromkeys(
        ("train", "valid", "test"), ((30,), np.dtype(np.int64))
    )


def test_a_page_holds_two_whole_digits_whose_ink_adds_up(pages):
    assert set(np.unique(pages)) == {0, 100, 200}
    assert (pages.sum(axis=(1, 2), dtype=int) == 2 * 784 * 100).all()


def test_ink_is_clipped():
    pages = two_digits.compose(blocks(200, lambda i: 200), 0).images["train"]
    assert set(np.unique(pages)) == {0, 200, 255}


def test_places_are_uniform(pages):
    rows, columns = pages.any(axis=2), pages.any(axis=1)
    for ink in (rows, columns):
        first, last = ink.argmax(axis=1), 59 - ink[:, ::-1].argmax(axis=1)
        # The smaller of two uniform numbers from 0 to 32 has a mean of 10.5; of a thousand the standard error is 0.25.
        assert abs(first.mean() - 10.5) < 1
        assert abs((59 - last).mean() - 10.5) < 1
        assert first.min() == 0
        assert last.max() == 59


def test_the_two_digits_of_a_page_and_its_two_axes_are_placed_independently(pages):
    centre = np.stack([(pages * np.arange(60)[:, None]).sum((1, 2)), (pages * np.arange(60)).sum((1, 2))])
    assert abs(np.corrcoef(centre / pages.sum((1, 2)))[0, 1]) < 0.1
    covered = (pages > 0).sum(axis=(1, 2))
    assert (covered == 2 * 784).mean() > 0.02  # some digits are apart,
    assert (covered < 2 * 784).mean() > 0.5  # most overlap


def test_a_label_names_both_digits_the_smaller_first():
    made = two_digits.compose(blocks(10, lambda i: 2**i if i < 8 else 0), 0)
    drawn = [
        sorted({int(v).bit_length() - 1 for v in np.unique(page) if v and v & (v - 1) == 0})
        for page in made.images["train"]
    ]
    told = [sorted({label // 10, label % 10} - {8, 9}) for label in made.labels["train"].tolist()]
    pairs = [(d, t) for d, t in zip(drawn, told, strict=True) if len(t) == 2]
    assert len(pairs) >= 3
    assert all(d == t for d, t in pairs)
    assert all(label // 10 <= label % 10 for label in made.labels["train"].tolist())


def test_pages_are_made_of_digits_of_their_own_split():
    images = {
        split: np.full((50, 1, 28, 28), grey, np.uint8) for split, grey in (("train", 1), ("valid", 10), ("test", 100))
    }
    made = two_digits.compose(Arrays(images, dict.fromkeys(images, np.zeros(50, np.int64))), 0)
    assert {split: set(np.unique(x)) for split, x in made.images.items()} == {
        "train": {0, 1, 2},
        "valid": {0, 10, 20},
        "test": {0, 100, 200},
    }


def test_the_seed_and_the_split_decide():
    mnist = blocks(30, lambda i: 100)
    one, again, other = (two_digits.compose(mnist, seed).images for seed in (0, 0, 1))
    assert (one["train"] == again["train"]).all()
    assert (one["train"] != other["train"]).any(axis=(1, 2, 3)).all()
    assert (one["train"] != one["test"]).any(axis=(1, 2, 3)).all()


def test_the_real_digits_are_put_together(shared_data):
    data = load_data(DataConfig(source="two-digit-mnist"), shared_data)
    assert {split: len(x) for split, x in data.images.items()} == {"train": 50_000, "valid": 10_000, "test": 10_000}
    assert data.shape == (1, 60, 60)
    assert data.binarization == "stochastic"
    # Twice MNIST's mean pixel of 0.1306 on 784 of 3,600 pixels, less what is clipped.
    assert 0.054 < data.mean_pixel < 2 * 0.1306 * 784 / 3600
    assert data.labels["train"].unique().numel() == 55
