"""The paper's figures: what stands where, and the search for nearest images."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from draw import figures, render
from draw.noise import seeded
from test_render import red, trace, windows
from tiny import random_model


def images(n, *, c=1, h=6, w=5, key="images"):
    return torch.randint(256, (n, c, h, w), generator=seeded(key), dtype=torch.uint8)


# Figures 1 and 7


def test_figure_1_has_a_row_per_image_and_a_column_per_glimpse_shown():
    picture = figures.figure_1(trace(steps=20, b=3, write=windows(20, 3)), torch.sigmoid, 3, columns=5, scale=8)
    assert picture.width == 5 * 88 + 4 * 3 + 2 * 6
    assert 3 * 72 < picture.height < 4 * 72


def test_figure_1_shows_the_window_in_every_cell():
    picture = figures.figure_1(trace(steps=20, b=3, write=windows(20, 3)), torch.sigmoid, 3, columns=5, scale=8)
    cells = [red(picture)[-6 - 72 :, 6 + i * 91 : 6 + i * 91 + 88] for i in range(5)]
    assert all(cell.any() for cell in cells)


def test_figure_1_shows_each_image_in_a_row_of_its_own():
    one = trace(steps=20, b=3)
    page = np.asarray(figures.figure_1(one, torch.sigmoid, None, columns=5, scale=8))
    for row, canvas in zip((-6 - 72 - 2 * 75, -6 - 72 - 75, -6 - 72), one.canvas[-1, :, 0].sigmoid(), strict=True):
        shown = page[row : row + 72 : 8, -6 - 88 : -6 : 8, 0]
        assert_array_equal(shown, (canvas * 255).round().to(torch.uint8).numpy())


def test_figure_7_has_no_windows():
    picture = figures.figure_7(trace(steps=20, write=windows(20, 2)), torch.sigmoid)
    assert not red(picture).any()


def test_figure_7_ends_with_the_finished_canvas():
    one = trace(steps=20, b=1)
    row = np.asarray(figures.figure_7(one, torch.sigmoid, columns=5, scale=8))[-6 - 72 : -6, -6 - 88 : -6, 0]
    assert_array_equal(row[::8, ::8], (one.canvas[-1, 0, 0].sigmoid() * 255).round().to(torch.uint8).numpy())


# The latents


def cell(picture, row, column, *, rows, columns, scale=4, height=6, width=5):
    """A cell of a figure of the latents, one value for each of the image's pixels."""
    left = 4 + column * (scale * width + 2) + 4 * ((column >= 1) + (column >= columns - 1))
    top = picture.height - 4 - (rows - row) * (scale * height + 2) + 2
    page = np.asarray(picture)[top : top + scale * height, left : left + scale * width, 0]
    assert page.shape == (scale * height, scale * width)
    return page[::scale, ::scale]


def with_kl(per_glimpse):
    """A model whose latents tell as much, nats, in every glimpse of every image."""
    model = random_model(z_size=len(per_glimpse), dtype=torch.float32)
    with torch.no_grad():
        for parameter in (*model.to_mu.parameters(), *model.to_log_sigma.parameters()):
            parameter.zero_()
        model.to_mu.bias.copy_((2 * torch.tensor(per_glimpse)).sqrt())
        model.decoder.to_gates.weight *= 4  # so that latents can be seen
    return model


def test_the_latents_that_tell_most_have_a_column_each_and_draw_alone():
    model = with_kl([0.001, 3.0, 0.5, 2.0])
    picture = figures.figure_latents(model, 2, seed=5, scale=4)
    eps = model.noise(2, 5, "sample")
    seen = set()
    for column, kept in enumerate([[0, 1, 2, 3], [1], [3], [2], []]):
        only = torch.stack([eps[..., i] if i in kept else 0 * eps[..., i] for i in range(4)], dim=-1)
        expected = (model(only).canvas.sigmoid()[:, 0] * 255).round().to(torch.uint8)
        for row in range(2):
            assert_array_equal(cell(picture, row, column, rows=2, columns=5), expected[row].numpy())
        seen.add(expected.numpy().tobytes())
    assert len(seen) == 5
    assert picture.width == 4 + 5 * 20 + 4 * 2 + 2 * 4 + 4


def test_no_more_latents_than_asked_have_a_column():
    model = with_kl([1.0, 4.0, 3.0, 2.0])
    three = figures.figure_latents(model, 2, most=1, scale=4)
    assert_array_equal(cell(three, 0, 1, rows=2, columns=3), cell(
        figures.figure_latents(model, 2, scale=4), 0, 1, rows=2, columns=6))  # fmt: skip
    assert three.width == 4 + 3 * 20 + 2 * 2 + 2 * 4 + 4


def test_the_latents_begin_with_the_samples_of_the_seed():
    model = with_kl([1.0, 2.0])
    picture = figures.figure_latents(model, 3, seed=2, scale=4)
    expected = (model.sample(3, seed=2)[:, 0] * 255).round().to(torch.uint8).numpy()
    for row in range(3):
        assert_array_equal(cell(picture, row, 0, rows=3, columns=4), expected[row])


def test_of_a_model_without_latents_in_use_all_and_none_are_drawn():
    picture = figures.figure_latents(with_kl([0.0, 0.0]), 2, scale=4)
    assert picture.width == 4 + 2 * 20 + 2 + 4 + 4


# Figure 3


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 20, 33), (1, 40, 12), (3, 100, 100), (1, 5, 5)])
def test_figure_3_can_be_made_of_any_image(shape):
    picture = figures.figure_3(torch.rand(shape))
    assert 400 < picture.width < 2_000
    assert 300 < picture.height < 2_000


def test_figure_3_of_a_digit_holds_the_image_unaltered_outside_the_filter_grid():
    image = torch.rand(1, 28, 28, generator=seeded("figure 3"))
    large = np.asarray(figures.figure_3(image))[44 : 44 + 28 * 19, 44 : 44 + 28 * 19, 0]
    expected = (image[0] * 255).round().to(torch.uint8).numpy().repeat(19, 0).repeat(19, 1)
    assert_array_equal(large[: 5 * 19], expected[: 5 * 19])


def test_figure_3_draws_its_windows_green():
    assert (np.asarray(figures.figure_3(torch.rand(1, 28, 28))) == render.READ).all(-1).any()


def test_figure_3_takes_images_of_double_precision():
    assert figures.figure_3(torch.rand(1, 28, 28, dtype=torch.float64)).mode == "RGB"


# Figure 6


def test_figure_6_puts_the_nearest_images_of_the_last_column_at_the_right():
    samples = torch.zeros(6, 1, 4, 4)
    nearest = torch.linspace(0, 1, 6).view(6, 1, 1, 1).expand(-1, -1, 4, 4)
    picture = np.asarray(figures.figure_6(samples, nearest, columns=3, scale=8))
    right = picture[-4 - 64 - 2 :, -4 - 32 : -4, 0]
    assert (right[5, 5], right[-10, 5]) == (round(255 * 2 / 5), 255)


def test_figure_6_leaves_out_a_row_that_is_not_full():
    short = figures.figure_6(torch.rand(7, 1, 4, 4), torch.rand(7, 1, 4, 4), columns=3, scale=4)
    full = figures.figure_6(torch.rand(6, 1, 4, 4), torch.rand(6, 1, 4, 4), columns=3, scale=4)
    assert short.size == full.size


@pytest.mark.parametrize("chunk", [1, 7, 1_000])
def test_nearest_images_are_those_of_an_exhaustive_search(chunk):
    samples, training = torch.rand(9, 3, 6, 5, generator=seeded("samples")), images(40, c=3)
    squares = (samples[:, None].double() - training[None].double() / 255).square().sum((2, 3, 4))
    assert_array_equal(figures.nearest_images(samples, training, chunk), squares.argmin(1))


def test_a_training_image_is_nearest_to_itself():
    training = images(50)
    assert_array_equal(figures.nearest_images(training[[3, 41, 17]] / 255, training, 16), [3, 41, 17])
