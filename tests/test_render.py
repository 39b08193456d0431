"""Pictures: their sizes, where windows are drawn, what is written to disk."""

import math
import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from draw import render
from draw.errors import UserError
from draw.noise import seeded
from draw.types import Gaussian, Latent, Trace, Window


def windows(steps, b, *, g_X=3.0, g_Y=4.0, delta=1.0, sigma2=0.01):
    """The same window at every glimpse of every image."""
    return Window(*(torch.full((steps, b), value) for value in (g_X, g_Y, delta, sigma2, 1.0)))


def trace(*, steps=4, b=2, c=1, h=9, w=11, write=None, read=None):
    """A trace of noise that brightens from glimpse to glimpse."""
    noise = torch.rand(steps, b, c, h, w, generator=seeded("canvas"))
    canvas = noise + torch.linspace(-3, 1, steps).view(-1, 1, 1, 1, 1)
    z = torch.zeros(steps, b, 1)
    return Trace(
        canvas=canvas, x_hat=None, read_window=read, write_window=write, latent=Latent(z, None, Gaussian(z, z))
    )


def animated(n=3, *, scale=8, **window):
    """The first frame, an array, of one 9 x 11 canvas with a write window."""
    frames = render.animation(trace(b=1, write=windows(4, 1, **window)), torch.sigmoid, write_n=n, scale=scale)
    return np.asarray(frames[0])


def red(picture):
    """Where a picture has the colour of write windows."""
    return (np.asarray(picture) == render.WRITE).all(-1)


def cell(frame, *, h=9, w=11, scale=8):
    """The only cell of a picture, without its margin."""
    margin = (frame.shape[0] - h * scale) // 2
    return frame[margin : margin + h * scale, margin : margin + w * scale]


def span(mask):
    """First and last true index."""
    where = np.flatnonzero(mask)
    return int(where[0]), int(where[-1])


def frames_of(path):
    """All frames of a file as RGB arrays, and their durations."""
    with Image.open(path) as image:
        frames, durations = [], []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        return frames, durations


# Sheets


def test_a_sheet_of_64_small_images_is_8_by_8_and_700_to_1000_pixels_wide():
    width, height = render.sheet(torch.rand(64, 1, 28, 28)).size
    assert width == height
    assert 700 <= width <= 1_000


def test_a_sheet_has_the_size_its_scale_columns_and_gap_make():
    assert render.sheet(torch.rand(5, 1, 4, 7), columns=3, scale=2, gap=3).size == (3 * 14 + 6 * 3, 2 * 8 + 5 * 3)


def test_sheet_pixels_are_exact_squares_without_smoothing():
    image = torch.tensor([[[[0.0, 1.0, 0.2], [1.0, 0.6, 0.0]]]])
    picture = np.asarray(render.sheet(image, scale=5, gap=2))[4:-4, 4:-4]
    expected = np.array([[0, 255, 51], [255, 153, 0]]).repeat(5, 0).repeat(5, 1)
    assert_array_equal(picture, expected[..., None].repeat(3, -1))


def test_sheet_images_stand_in_reading_order():
    image = torch.linspace(0, 1, 4).view(4, 1, 1, 1)
    picture = np.asarray(render.sheet(image, columns=2, scale=1, gap=1))[2:-2, 2:-2]
    assert picture[::2, ::2, 0].tolist() == [[0, 85], [170, 255]]


def test_sheet_keeps_the_order_of_red_green_and_blue():
    image = torch.tensor([1.0, 0.4, 0.0]).view(1, 3, 1, 1)
    assert np.asarray(render.sheet(image, scale=1, gap=1))[2, 2].tolist() == [255, 102, 0]


def test_a_sheet_leaves_ground_where_the_last_row_has_no_image():
    picture = np.asarray(render.sheet(torch.ones(3, 1, 2, 2), columns=2, scale=1, gap=1))
    assert picture[-3, -3].tolist() == list(render.GROUND)


def test_intensities_beyond_0_and_1_and_nan_are_clipped():
    image = torch.tensor([-7.0, 3.0, math.nan]).view(1, 1, 1, 3)
    assert np.asarray(render.sheet(image, scale=1, gap=1))[2, 2:5, 0].tolist() == [0, 255, 0]


def test_a_sheet_of_no_images_is_an_error_line():
    with pytest.raises(UserError, match="no images"):
        render.sheet(torch.rand(0, 1, 4, 4))


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (7, 3), (10, 5), (12, 4), (16, 4), (32, 8), (100, 10)])
def test_default_columns_make_an_about_square_picture_with_full_rows_where_possible(n, columns):
    assert render.square_columns(n, 28, 28) == columns


def test_wide_images_stand_in_fewer_columns():
    assert render.square_columns(16, 10, 40) == 2


# Animations


def test_an_animation_has_a_frame_per_glimpse_and_a_last_one_without_windows():
    frames = render.animation(trace(steps=4, write=windows(4, 2)), torch.sigmoid, write_n=3)
    assert [bool(red(frame).any()) for frame in frames] == [True, True, True, True, False]


def test_an_animation_without_attention_has_a_frame_per_glimpse_and_no_window():
    frames = render.animation(trace(steps=4), torch.sigmoid, write_n=None)
    assert [bool(red(frame).any()) for frame in frames] == [False] * 4


def test_an_animation_can_begin_with_the_empty_canvas():
    frames = render.animation(trace(), torch.sigmoid, write_n=None, initial=torch.full((1, 9, 11), -20.0), scale=8)
    assert len(frames) == 5
    assert not cell(np.asarray(frames[0]))[:, : 11 * 8].any()


def test_all_frames_of_an_animation_are_of_one_size():
    frames = render.animation(trace(b=5, write=windows(4, 5)), torch.sigmoid, write_n=3, columns=3, scale=4)
    gap = 2
    assert {frame.size for frame in frames} == {(3 * 44 + 6 * gap, 2 * 36 + 5 * gap)}


def test_a_frame_shows_the_expected_image_of_its_canvas():
    one = trace(b=1)
    frame = render.animation(one, torch.sigmoid, write_n=None, scale=8)[2]
    expected = (one.canvas[2, 0, 0].sigmoid() * 255).round().to(torch.uint8).numpy()
    assert_array_equal(cell(np.asarray(frame))[::8, ::8, 0], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_windows_are_drawn_on_grey_and_colour_canvases(channels):
    frames = render.animation(trace(c=channels, write=windows(4, 2)), torch.sigmoid, write_n=3)
    assert red(frames[0]).any()


def test_a_canvas_that_requires_gradients_can_be_animated():
    one = trace()
    one.canvas.requires_grad_()
    assert len(render.animation(one, torch.sigmoid, write_n=None)) == 4


# Windows


def test_a_windows_border_is_centred_on_its_scaled_coordinates():
    # n 3, stride 2 about (5, 4): from (3, 2) to (7, 6); pixel i spans [i, i + 1), so edges lie at (g + 1/2) * 8.
    mask = red(cell(animated(n=3, g_X=5.0, g_Y=4.0, delta=2.0, sigma2=0.25)))
    assert span(mask.any(0)) == ((3.5 * 8) - 2, (7.5 * 8) + 1)
    assert span(mask.any(1)) == ((2.5 * 8) - 2, (6.5 * 8) + 1)


def test_a_windows_inside_is_left_open():
    mask = red(cell(animated(n=3, g_X=5.0, g_Y=4.0, delta=2.0, sigma2=0.25)))
    assert not mask[22:50, 30:58].any()


@pytest.mark.parametrize(("n", "delta"), [(2, 3.0), (3, 1.5), (5, 1.25)])
def test_a_windows_side_is_n_less_one_strides(n, delta):
    mask = red(cell(animated(n=n, g_X=5.0, g_Y=4.0, delta=delta, sigma2=1e-6)))
    first, last = span(mask.any(0))
    assert last - first == (n - 1) * delta * 8


def test_a_windows_centre_moves_by_less_than_an_image_pixel():
    starts = [span(red(cell(animated(g_X=g, sigma2=1e-6))).any(0))[0] for g in (3.0, 3.25, 3.5)]
    assert np.diff(starts).tolist() == [2, 2]


@pytest.mark.parametrize(("sigma", "thickness"), [(0.01, 1), (0.25, 2), (0.5, 4), (1.0, 8), (1e6, 9)])
def test_a_borders_thickness_is_sigma_within_bounds(sigma, thickness):
    # At most an eighth of 9 * 8 screen pixels.
    mask = red(cell(animated(n=3, g_X=5.0, g_Y=4.0, delta=3.0, sigma2=sigma**2)))
    assert mask[36].sum() == 2 * thickness


def test_the_four_sides_of_a_border_are_equally_thick_at_any_position():
    for shift in np.linspace(0, 0.25, 7).tolist():
        mask = red(cell(animated(n=3, g_X=5.0 + shift, g_Y=4.0 + shift, delta=1.9, sigma2=0.4**2)))
        assert (mask[36].sum(), mask[:, 44].sum()) == (6, 6)


def test_a_window_with_one_filter_is_a_dot_as_wide_as_sigma():
    mask = red(cell(animated(n=1, g_X=5.0, g_Y=4.0, delta=7.0, sigma2=0.25)))
    assert (span(mask.any(0)), span(mask.any(1)), int(mask.sum())) == ((42, 45), (34, 37), 16)


def test_a_window_beyond_its_image_is_clipped_to_its_own_cell():
    window = windows(4, 4, g_X=10.0, g_Y=0.0, delta=4.0, sigma2=1.0)
    frame = np.asarray(render.animation(trace(b=4, write=window), torch.sigmoid, write_n=3, columns=2, scale=8)[0])
    empty = np.asarray(render.animation(trace(b=4), torch.sigmoid, write_n=None, columns=2, scale=8)[0])
    between = (empty == render.GROUND).all(-1)
    assert_array_equal(frame[between], empty[between])


def test_the_visible_part_of_a_window_beyond_the_top_left_corner_is_drawn_where_it_belongs():
    # From (-2, -2) to (2, 2): the right and the lower side are seen, about (2.5 * 8).
    mask = red(cell(animated(n=3, g_X=0.0, g_Y=0.0, delta=2.0, sigma2=0.25)))
    expected = np.zeros_like(mask)
    expected[:22, :22] = True
    expected[:18, :18] = False
    assert_array_equal(mask, expected)


def test_a_window_wholly_outside_its_image_is_not_seen():
    assert not red(animated(g_X=40.0)).any()


@pytest.mark.parametrize("extreme", [{"delta": math.inf}, {"g_X": 1e30}, {"g_X": math.nan}, {"sigma2": math.inf}])
def test_windows_of_a_diverged_model_can_be_drawn(extreme):
    assert animated(**extreme).shape == animated().shape


# Animation files


@pytest.fixture
def frames():
    return render.animation(trace(write=windows(4, 2)), torch.sigmoid, write_n=3, scale=4)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_file_has_every_frame_for_its_time(suffix, frames, tmp_path):
    render.save_animation(frames, tmp_path / f"a{suffix}", milliseconds=70, hold_milliseconds=900)
    assert frames_of(tmp_path / f"a{suffix}")[1] == [70, 70, 70, 70, 900]


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_lossless_animations_give_back_every_pixel(suffix, frames, tmp_path):
    render.save_animation(frames, tmp_path / f"a{suffix}")
    for read, written in zip(frames_of(tmp_path / f"a{suffix}")[0], frames, strict=True):
        assert_array_equal(read, np.asarray(written))


def test_a_gif_keeps_grey_levels_to_about_one_step_of_its_palette(frames, tmp_path):
    render.save_animation(frames, tmp_path / "a.gif")
    for read, written in zip(frames_of(tmp_path / "a.gif")[0], frames, strict=True):
        # 59 levels stand 4.4 apart, and Pillow's search for the nearest is approximate.
        shown = ~red(written) & (np.asarray(written) != render.GROUND).any(-1)
        assert abs(read.astype(int) - np.asarray(written))[shown].max() <= 5


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_keeps_the_windows_colour_exactly(channels, tmp_path):
    frames = render.animation(trace(c=channels, write=windows(4, 2)), torch.sigmoid, write_n=3, scale=4)
    render.save_animation(frames, tmp_path / "a.gif")
    for read, written in zip(frames_of(tmp_path / "a.gif")[0], frames, strict=True):
        assert_array_equal(red(read), red(written))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_repeats_for_ever(suffix, frames, tmp_path):
    render.save_animation(frames, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.info["loop"] == 0


def test_a_gif_of_16_digits_and_64_glimpses_stays_below_1_5_megabytes(tmp_path):
    # Noise that moves everywhere at every glimpse: harder than any digit.
    steps, b = 64, 16
    smooth = torch.nn.functional.avg_pool2d(torch.randn(steps * b, 1, 32, 32, generator=seeded("gif")), 5, 1)
    change = 4 * smooth.view(steps, b, 1, 28, 28)
    ink = torch.zeros(28, 28)
    ink[8:20, 8:20] = 1
    hard = trace(steps=steps, b=b, h=28, w=28, write=windows(steps, b, delta=3.0))
    hard = hard._replace(canvas=-6 + (ink * change).cumsum(0))
    render.save_animation(render.animation(hard, torch.sigmoid, write_n=5, scale=4), tmp_path / "a.gif")
    assert (tmp_path / "a.gif").stat().st_size < 1.5e6


def test_an_animation_with_another_suffix_is_refused_with_the_valid_ones(frames, tmp_path):
    with pytest.raises(UserError, match=re.escape("must end in .gif, .webp, .png")):
        render.save_animation(frames, tmp_path / "a.mp4")


def test_a_suffix_in_capitals_is_understood(frames, tmp_path):
    render.save_animation(frames, tmp_path / "a.GIF")
    assert len(frames_of(tmp_path / "a.GIF")[0]) == 5


# Reconstructions


def test_reconstructions_show_input_reads_eight_glimpses_and_result():
    both = trace(steps=20, write=windows(20, 2), read=windows(20, 2))
    picture = render.reconstructions(torch.rand(2, 1, 9, 11), both, torch.sigmoid, read_n=2, write_n=3, scale=8)
    gap = 3
    assert picture.width == 11 * 88 + 10 * gap + 2 * 2 * gap + 2 * 2 * gap


def test_reconstructions_without_read_attention_have_one_column_less():
    both = trace(steps=20, write=windows(20, 2), read=windows(20, 2))
    x = torch.rand(2, 1, 9, 11)
    with_reads = render.reconstructions(x, both, torch.sigmoid, read_n=2, write_n=3, scale=8)
    without = render.reconstructions(x, both._replace(read_window=None), torch.sigmoid, read_n=None, write_n=3, scale=8)
    assert with_reads.width - without.width == 11 * 8 + 3


def test_reconstructions_draw_read_windows_in_their_own_colour():
    both = trace(steps=3, write=windows(3, 2), read=windows(3, 2))
    picture = render.reconstructions(torch.rand(2, 1, 9, 11), both, torch.sigmoid, read_n=2, write_n=3)
    assert (np.asarray(picture) == render.READ).all(-1).any()


def test_reconstructions_without_attention_draw_no_windows():
    picture = render.reconstructions(torch.rand(2, 3, 9, 11), trace(c=3), torch.sigmoid, read_n=None, write_n=None)
    assert not red(picture).any()


def test_a_row_of_reconstructions_begins_with_the_input_and_ends_with_the_last_canvas():
    x, one = torch.rand(1, 1, 9, 11), trace(b=1)
    picture = render.reconstructions(x, one, torch.sigmoid, read_n=None, write_n=None, scale=8)
    row = np.asarray(picture)[-6 - 72 : -6, :, 0]
    for pixels, image in (
        (row[::8, 6 : 6 + 88 : 8], x[0, 0]),
        (row[::8, -6 - 88 : -6 : 8], one.canvas[-1, 0, 0].sigmoid()),
    ):
        assert_array_equal(pixels, (image * 255).round().to(torch.uint8).numpy())


@pytest.mark.parametrize(("steps", "count", "expected"), [(64, 4, [0, 21, 42, 63]), (3, 8, [0, 1, 2]), (9, 1, [8])])
def test_glimpses_are_evenly_spaced_and_include_the_last(steps, count, expected):
    assert render.glimpses(trace(steps=steps), count) == expected


# Files


def test_a_png_is_read_back_as_it_was_written_into_a_new_folder(tmp_path):
    picture = render.sheet(torch.rand(4, 3, 5, 6))
    render.save_png(picture, tmp_path / "new" / "folder" / "a.png")
    with Image.open(tmp_path / "new" / "folder" / "a.png") as read:
        assert_array_equal(np.asarray(read), np.asarray(picture))


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")

    class Broken(Image.Image):
        def save(self, *args, **kwargs):
            args[0].write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        render.save_png(Broken(), tmp_path / "a.png")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"old")]


def test_an_unwritable_path_is_one_error_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*a\.png: ") as error:
        render.save_png(render.sheet(torch.rand(1, 1, 2, 2)), tmp_path / "file" / "a.png")
    assert "\n" not in str(error.value)


def test_a_folder_cannot_be_overwritten_by_a_picture(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        render.save_png(render.sheet(torch.rand(1, 1, 2, 2)), tmp_path / "a.png")
