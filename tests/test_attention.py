"""Reading and writing, eqs. 17-18 and 27-29: the laws that tie them together, and where public ports went wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import reference
from draw.attention import AttentiveRead, AttentiveWrite, FullRead, FullWrite, deposit, extract
from draw.filterbank import filterbank, window
from draw.noise import seeded

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 arithmetic with a few roundings

moderate = settings(derandomize=True, max_examples=40, deadline=None)
raws = st.tuples(*[st.floats(-3, 3)] * 2, *[st.floats(-4, 4)] * 3)
sizes = {"n": st.integers(1, 5), "height": st.integers(1, 8), "width": st.integers(1, 8)}


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, dtype=dtype, generator=seeded("uniform", seed))


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded("normal", seed))


def one_window(raw, n, height, width):
    return window(torch.tensor([raw], dtype=torch.float64), n, height, width)


def window_of_narrow_filters(n, height, width, gamma=1.0):
    """Each filter sees one pixel; the grid is one pixel apart about the middle."""
    w = one_window((0.0, 0.0, 0.0, 0.0, 0.0), n, height, width)
    one = torch.ones(1, dtype=torch.float64)
    return w._replace(delta=one, sigma2=1e-4 * one, gamma=gamma * one)


@moderate
@given(raw=raws, **sizes)
def test_apart_from_the_intensities_writing_is_the_adjoint_of_reading(raw, n, height, width):
    w = one_window(raw, n, height, width)
    x, p = normal(1, 3, height, width, seed=1), normal(1, 3, n, n, seed=2)
    read = (extract(x, w, n) / w.gamma * p).sum()
    written = (x * deposit(p, w, height, width) * w.gamma).sum()
    assert_allclose(read.item(), written.item(), rtol=1e-10, atol=1e-10)  # sums of up to 4,800 products of size 1


@moderate
@given(raw=raws, **sizes)
def test_images_between_zero_and_one_are_read_as_patches_between_zero_and_gamma(raw, n, height, width):
    w = one_window(raw, n, height, width)
    patch = extract(uniform(1, 2, height, width), w, n) / w.gamma
    # Each entry is an average: the weights sum to 1 within 1e-14.
    assert (patch >= 0).all()
    assert (patch <= 1 + 1e-12).all()


@moderate
@given(raw=raws, **sizes)
def test_an_image_of_one_intensity_is_read_as_gamma_times_that_intensity(raw, n, height, width):
    w = one_window(raw, n, height, width)
    patch = extract(torch.full((1, 1, height, width), 0.25, dtype=torch.float64), w, n)
    assert_allclose((patch / w.gamma).numpy(), 0.25, **EXACT)


@moderate
@given(raw=raws, **sizes)
def test_all_the_ink_of_a_patch_reaches_the_canvas_wherever_the_window_lies(raw, n, height, width):
    # trap: eps in the filter normaliser (rows vanish off the image)
    w = one_window(raw, n, height, width)
    p = uniform(1, 2, n, n)
    ink = deposit(p, w, height, width).sum(dim=(-2, -1)) * w.gamma
    assert_allclose(ink.numpy(), p.sum(dim=(-2, -1)).numpy(), rtol=1e-12)  # 25 roundings


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(6, 5), (4, 7)])
def test_a_patch_is_that_of_equation_27_pixel_by_pixel(n, height, width):
    raw, x = (0.2, -0.3, 0.4, -0.5, 0.6), uniform(1, 1, height, width)
    paper = reference.read_patch(x[0, 0].numpy(), reference.window(raw, n, width, height), n)
    assert_allclose(extract(x, one_window(raw, n, height, width), n)[0, 0].numpy(), paper, **EXACT)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(6, 5), (4, 7)])
def test_a_stroke_is_that_of_equation_29_pixel_by_pixel(n, height, width):
    raw, p = (0.2, -0.3, 0.4, -0.5, 0.6), uniform(1, 1, n, n)
    paper = reference.write_patch(p[0, 0].numpy(), reference.window(raw, n, width, height), width, height)
    stroke = deposit(p, one_window(raw, n, height, width), height, width)
    assert_allclose(stroke[0, 0].numpy(), paper, **EXACT)


def test_narrow_filters_read_the_pixels_under_them_the_right_way_up():
    x = torch.arange(5.0 * 7, dtype=torch.float64).reshape(1, 1, 5, 7)
    patch = extract(x, window_of_narrow_filters(3, 5, 7), 3)
    assert_allclose(patch.numpy(), x[:, :, 1:4, 2:5].numpy(), **EXACT)


def test_narrow_filters_write_on_the_pixels_under_them_the_right_way_up():
    p = torch.arange(1.0, 10, dtype=torch.float64).reshape(1, 1, 3, 3)
    stroke = deposit(p, window_of_narrow_filters(3, 5, 7), 5, 7)
    assert_allclose(stroke[:, :, 1:4, 2:5].numpy(), p.numpy(), **EXACT)
    assert_allclose(stroke.sum().item(), p.sum().item(), **EXACT)


def test_twice_the_intensity_reads_twice_as_bright():
    x = uniform(1, 1, 6, 5)
    dim, bright = (extract(x, window_of_narrow_filters(2, 6, 5, gamma), 2) for gamma in (1.0, 2.0))
    assert_allclose(bright.numpy(), 2 * dim.numpy(), **EXACT)


def test_twice_the_intensity_writes_half_as_bright():
    # trap: gamma not inverted on write
    p = uniform(1, 1, 2, 2)
    dim, bright = (deposit(p, window_of_narrow_filters(2, 6, 5, gamma), 6, 5) for gamma in (1.0, 2.0))
    assert_allclose(bright.numpy(), dim.numpy() / 2, **EXACT)


def test_one_window_serves_every_channel():
    w = one_window((0.2, -0.3, 0.4, -0.5, 0.6), 3, 6, 5)
    x, p = uniform(1, 3, 6, 5), uniform(1, 3, 3, 3)
    for c in range(3):
        assert_allclose(extract(x, w, 3)[:, c].numpy(), extract(x[:, c : c + 1], w, 3)[:, 0].numpy(), **EXACT)
        assert_allclose(deposit(p, w, 6, 5)[:, c].numpy(), deposit(p[:, c : c + 1], w, 6, 5)[:, 0].numpy(), **EXACT)


def test_each_image_has_its_own_window():
    raw = torch.tensor([[0.5, 0.2, 0.0, -1.0, 0.3], [-0.5, 0.1, 0.5, 0.0, -0.3]], dtype=torch.float64)
    x = uniform(2, 1, 6, 5)
    both = extract(x, window(raw, 3, 6, 5), 3)
    for b in range(2):
        alone = extract(x[b : b + 1], window(raw[b : b + 1], 3, 6, 5), 3)
        assert_allclose(both[b].numpy(), alone[0].numpy(), **EXACT)


def test_with_one_filter_a_patch_is_the_weighted_mean_of_the_image():
    # trap: N = 1
    w = one_window((0.3, -0.2, 1.0, 2.0, 0.5), 1, 6, 5)
    x = uniform(1, 1, 6, 5)
    F_X, F_Y = (F[0, 0].numpy() for F in filterbank(w, 1, 6, 5))
    expected = w.gamma.item() * np.average(x[0, 0].numpy(), weights=np.outer(F_Y, F_X))
    assert_allclose(extract(x, w, 1).item(), expected, **EXACT)


def test_reading_without_attention_gives_the_image_and_then_the_error_image():
    # trap: the error image dropped from the read
    x, x_hat = uniform(2, 3, 4, 5, seed=1), uniform(2, 3, 4, 5, seed=2)
    r, w = FullRead(3, 4, 5)(x, x_hat, torch.zeros(2, 7, dtype=torch.float64))
    assert w is None
    assert torch.equal(r, torch.cat([x.flatten(1), x_hat.flatten(1)], dim=1))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_reading_with_attention_gives_the_patch_of_the_image_and_then_that_of_the_error_image(n):
    # trap: the error image dropped from the read
    read = AttentiveRead(n, 7, 3, 4, 5).double()
    x, x_hat, h_dec = uniform(2, 3, 4, 5, seed=1), uniform(2, 3, 4, 5, seed=2), normal(2, 7)
    r, w = read(x, x_hat, h_dec)
    expected = torch.cat([extract(x, w, n).flatten(1), extract(x_hat, w, n).flatten(1)], dim=1)
    assert_allclose(r.detach().numpy(), expected.detach().numpy(), **EXACT)


@pytest.mark.parametrize("read", [FullRead(3, 4, 5), AttentiveRead(2, 7, 3, 4, 5)])
def test_the_read_features_are_as_many_as_it_says(read):
    r, _ = read(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5), torch.zeros(2, 7))
    assert r.shape == (2, read.features)


@pytest.mark.parametrize("read", [FullRead(1, 6, 5), AttentiveRead(2, 7, 1, 6, 5)])
def test_the_error_image_changes_what_is_read(read):
    # trap: the error image dropped from the read
    x, h_dec = torch.zeros(1, 1, 6, 5), torch.zeros(1, 7)
    assert not torch.equal(read(x, x, h_dec)[0], read(x, x + 1, h_dec)[0])


def test_writing_without_attention_is_a_linear_layer_laid_out_in_rows():
    write = FullWrite(7, 3, 4, 5).double()
    h_dec = normal(2, 7)
    stroke, w = write(h_dec)
    assert w is None
    paper = h_dec.numpy() @ write.to_stroke.weight.detach().numpy().T + write.to_stroke.bias.detach().numpy()
    assert_allclose(stroke.detach().numpy(), paper.reshape(2, 3, 4, 5), **EXACT)


def test_writing_with_attention_deposits_its_patch_through_its_window():
    write = AttentiveWrite(3, 7, 3, 4, 5).double()
    h_dec = normal(2, 7)
    stroke, w = write(h_dec)
    patch = write.to_patch(h_dec).reshape(2, 3, 3, 3)
    assert_allclose(stroke.detach().numpy(), deposit(patch, w, 4, 5).detach().numpy(), **EXACT)


@pytest.mark.parametrize("n", [2, 5])
def test_what_is_read_and_written_at_first_is_of_the_size_of_the_pixels(n):
    """Independent pixels read with about their own deviation; a patch of ones written as a stroke of about one."""
    x = torch.randn(400, 1, 28, 28, generator=seeded("pixels"))
    read, write = AttentiveRead(n, 8, 1, 28, 28), AttentiveWrite(n, 8, 1, 28, 28)
    nothing = torch.zeros(400, 8)
    r, _ = read(x, x, nothing)
    assert 0.5 < r.std() < 2
    with torch.no_grad():
        write.to_patch.weight.zero_()
        write.to_patch.bias.fill_(1.0)
    stroke, _ = write(nothing)
    assert 0.7 < stroke.mean() < 1.3
