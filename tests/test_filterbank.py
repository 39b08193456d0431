"""The filterbank, eqs. 19-26: laws that hold for any parameters, and the places where public ports went wrong."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import reference
from draw.filterbank import axis_filters, filterbank, initial_raw, rectangle, window
from draw.types import Window

DTYPES = [torch.float32, torch.float64]
SIZES = [(28, 28), (6, 5), (5, 9)]  # height, width
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 arithmetic with a few roundings

moderate = settings(derandomize=True, max_examples=60, deadline=None)
raws = st.tuples(*[st.floats(-3, 3)] * 2, *[st.floats(-30, 30)] * 3)


def head(*values, dtype=torch.float64):
    return torch.tensor([values], dtype=dtype)


def banks(raw, n, height, width):
    """F_X and F_Y of one window, as arrays."""
    return [F[0].numpy() for F in filterbank(window(raw, n, height, width), n, height, width)]


@pytest.mark.parametrize("dtype", DTYPES)
@moderate
@given(raw=raws, n=st.integers(1, 6), height=st.integers(1, 12), width=st.integers(1, 12))
def test_every_row_is_a_weighting_that_sums_to_one_for_any_parameters(dtype, raw, n, height, width):
    # trap: eps in the filter normaliser (rows vanish off the image)
    for F in banks(head(*raw, dtype=dtype), n, height, width):
        assert (F >= 0).all()
        # A row of at most 12 weights: 12 roundings.
        assert_allclose(F.sum(axis=1), 1, rtol=0, atol=12 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_forty_pixels_outside_still_weighs_the_nearest_pixel_fully(dtype):
    # trap: eps in the filter normaliser (rows vanish off the image)
    one = torch.ones(1, dtype=dtype)
    F = axis_filters(center=68 * one, delta=one, sigma2=one, n=3, size=28)[0]
    # The next pixel is exp(-39.5) times lighter, or less.
    assert_allclose(F[:, -1].numpy(), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("log_delta", [-2.0, 0.0, 1.0])
def test_the_neutral_window_is_mirror_symmetric_about_the_image_centre(height, width, n, log_delta):
    # trap: 1-based grid formula with 0-based indices (window shifted by one stride)
    for F in banks(head(0.0, 0.0, 0.5, log_delta, 0.0), n, height, width):
        assert_allclose(F, F[::-1, ::-1], **EXACT)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_neutral_centre_is_the_middle_of_the_pixels_counted_from_zero(height, width):
    # trap: 1-based grid formula with 0-based indices (window shifted by one stride)
    w = window(torch.zeros(1, 5), 3, height, width)
    assert (w.g_X.item(), w.g_Y.item()) == ((width - 1) / 2, (height - 1) / 2)


def test_raw_centres_of_plus_and_minus_one_lie_one_pixel_outside_the_image():
    w = window(torch.tensor([[-1.0, 1.0, 0, 0, 0], [1.0, -1.0, 0, 0, 0]]), 3, 6, 9)
    assert w.g_X.tolist() == [-1, 9]
    assert w.g_Y.tolist() == [6, -1]


def test_neutral_filters_span_the_longer_side_from_first_to_last_pixel():
    w = window(torch.zeros(1, 5), 4, 6, 10)
    F_X = axis_filters(w.g_X, w.delta, 1e-4 * w.sigma2, 4, 10)[0]
    assert F_X.argmax(dim=1).tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("shift", [-3, 1, 2])
def test_moving_the_centre_by_whole_pixels_moves_the_filters_by_as_many(shift):
    one = torch.ones(1, dtype=torch.float64)
    narrow = {"delta": 1.5 * one, "sigma2": 0.3 * one, "n": 3, "size": 41}
    here = axis_filters(center=20 * one, **narrow)[0].numpy()
    there = axis_filters(center=(20 + shift) * one, **narrow)[0].numpy()
    # The filters end far inside the image, so that rolling brings nothing round the edge.
    assert_allclose(np.roll(here, shift, axis=1), there, **EXACT)


def test_filters_stand_one_stride_apart():
    one = torch.ones(1, dtype=torch.float64)
    F = axis_filters(center=20 * one, delta=2.5 * one, sigma2=one, n=5, size=41)[0].numpy()
    # Wide of the edges, a sampled Gaussian of variance 1 has its mean within exp(-2 pi^2) of the filter's place.
    assert_allclose(F @ np.arange(41), 20 + 2.5 * np.arange(-2, 3), rtol=0, atol=1e-7)


@pytest.mark.parametrize("sigma2", [1.0, 4.0, 9.0])
def test_a_filter_has_the_variance_asked_for(sigma2):
    # trap: the whole exponent squared (sigma^4)
    one = torch.ones(1, dtype=torch.float64)
    F = axis_filters(center=50 * one, delta=one, sigma2=sigma2 * one, n=1, size=101)[0, 0].numpy()
    a = np.arange(101)
    mean = F @ a
    # A sampled Gaussian's moments differ from the continuous one's by terms in exp(-2 pi^2 sigma2).
    assert_allclose(F @ (a - mean) ** 2, sigma2, rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_filters_are_the_normalised_gaussians_of_equations_25_and_26(height, width, n):
    raw = (0.3, -0.4, 0.2, -0.7, 0.1)
    paper = reference.filterbank(reference.window(raw, n, width, height), n, width, height)
    for ours, theirs in zip(banks(head(*raw), n, height, width), paper, strict=True):
        assert_allclose(ours, theirs, **EXACT)


def test_the_window_is_that_of_equations_21_to_24_with_centres_counted_from_zero():
    raw = (0.3, -0.4, 0.2, -0.7, 0.1)
    ours = window(head(*raw), 3, 6, 9)
    theirs = reference.window(raw, 3, 9, 6)
    assert_allclose(ours.g_X.item(), theirs["g_X"] - 1, **EXACT)
    assert_allclose(ours.g_Y.item(), theirs["g_Y"] - 1, **EXACT)
    for name in ("delta", "sigma2", "gamma"):
        assert_allclose(getattr(ours, name).item(), theirs[name], **EXACT)


def test_the_vertical_centre_moves_only_the_rows():
    # trap: vertical centre ignored
    F_X, F_Y = banks(head(0.0, 0.0, 0.0, -1.0, 0.0), 3, 8, 8)
    moved_X, moved_Y = banks(head(0.0, 0.5, 0.0, -1.0, 0.0), 3, 8, 8)
    assert_allclose(moved_X, F_X, **EXACT)
    # (B + 1)/2 * 0.5 = 2.25 pixels downwards; the middle filter's mean follows, short of the edge.
    assert moved_Y[1] @ np.arange(8) > F_Y[1] @ np.arange(8) + 1.5


def test_the_horizontal_centre_moves_only_the_columns():
    F_X, F_Y = banks(head(0.0, 0.0, 0.0, -1.0, 0.0), 3, 8, 8)
    moved_X, moved_Y = banks(head(0.5, 0.0, 0.0, -1.0, 0.0), 3, 8, 8)
    assert_allclose(moved_Y, F_Y, **EXACT)
    assert moved_X[1] @ np.arange(8) > F_X[1] @ np.arange(8) + 1.5


def test_f_x_weighs_columns_and_f_y_weighs_rows_of_an_image_that_is_not_square():
    F_X, F_Y = filterbank(window(torch.zeros(2, 5), 3, 6, 9), 3, 6, 9)
    assert F_X.shape == (2, 3, 9)
    assert F_Y.shape == (2, 3, 6)


def test_with_one_filter_the_stride_plays_no_part():
    # trap: N = 1
    near, far = (banks(head(0.1, -0.2, 0.3, log_delta, 0.0), 1, 6, 9) for log_delta in (-5.0, 5.0))
    for a, b in zip(near, far, strict=True):
        assert_allclose(a, b, **EXACT)


def test_one_filter_stands_at_the_window_centre():
    # trap: N = 1
    F_X, F_Y = banks(head(0.0, 0.0, math.log(1e-3), 0.0, 0.0), 1, 5, 9)
    assert F_X.argmax(axis=1).tolist() == [4]
    assert F_Y.argmax(axis=1).tolist() == [2]


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 48)])
def test_the_initial_window_is_measured_in_strides(n, height, width):
    w = window(torch.tensor([initial_raw(n, height, width, sigma=0.25, gamma=-2)]), n, height, width)
    stride = max(height, width) / n  # for one filter, the whole side
    assert w.sigma2.sqrt().item() / stride == pytest.approx(0.25)
    assert w.gamma.item() == pytest.approx(stride**-2)
    assert n == 1 or w.delta.item() == pytest.approx(stride)


@pytest.mark.parametrize("sigma", [0.25, 0.5])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 48)])
def test_the_initial_window_sees_every_pixel(sigma, n, height, width):
    raw = initial_raw(n, height, width, sigma=sigma, gamma=1)
    for F, size in zip(banks(head(*raw), n, height, width), (width, height), strict=True):
        # Evenly would be n/size. The corner four-pixel window of zero bias gives most pixels less than 1e-6 of that.
        assert F.sum(axis=0).min() > 0.2 * n / size


def test_a_rectangle_has_the_window_centre_and_a_side_of_n_minus_one_strides():
    w = Window(*torch.tensor([[10.0], [4.0], [2.5], [9.0], [1.0]]))
    r = rectangle(w, 5)
    assert [side.item() for side in r[:4]] == [5, -1, 15, 9]


def test_a_rectangle_border_is_as_thick_as_sigma():
    assert rectangle(Window(*torch.tensor([[10.0], [4.0], [2.5], [9.0], [1.0]])), 5).sigma.item() == 3


def test_a_rectangle_keeps_the_trace_shape():
    w = Window(*torch.zeros(5, 3, 2))
    assert rectangle(w, 2).left.shape == (3, 2)
