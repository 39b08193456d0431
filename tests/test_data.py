"""Splits, binarisation, the order of batches, and users' own images from files of every kind."""

import itertools
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from draw import curves, data, pictures, render
from draw.config import DataConfig
from draw.data import DataSet, batch_indices, intensities, load_data, random_patches
from draw.errors import UserError
from draw.noise import seeded

# Batches.


@given(n=st.integers(1, 40), batch_size=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_each_image_comes_exactly_once_an_epoch(n, batch_size):
    row = torch.cat([batch_indices(n, batch_size, 7, step) for step in range(n)])  # batch_size whole epochs
    for epoch in row.view(batch_size, n):
        assert sorted(epoch.tolist()) == list(range(n))


@given(n=st.integers(1, 40), batch_size=st.integers(1, 60), step=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_every_batch_is_full(n, batch_size, step):
    assert batch_indices(n, batch_size, 0, step).shape == (batch_size,)


def test_a_batch_depends_on_its_step_alone():
    forwards = [batch_indices(10, 3, 0, step).tolist() for step in range(9)]
    backwards = [batch_indices(10, 3, 0, step).tolist() for step in reversed(range(9))]
    assert forwards == backwards[::-1]


def test_epochs_differ_in_order():
    assert batch_indices(100, 100, 0, 0).tolist() != batch_indices(100, 100, 0, 1).tolist()


def test_seeds_differ_in_order():
    assert batch_indices(100, 100, 0, 0).tolist() != batch_indices(100, 100, 1, 0).tolist()


def test_a_batch_is_the_callers_own():
    batch_indices(4, 4, 0, 0).zero_()
    assert sorted(batch_indices(4, 4, 0, 0).tolist()) == [0, 1, 2, 3]


# Intensities.

GREY = torch.arange(256, dtype=torch.uint8).repeat(1000).view(1000, 1, 16, 16)


@pytest.mark.parametrize("binarization", ["static", "none"])
def test_intensities_are_the_pixels_over_255(binarization):
    values = intensities(GREY, binarization)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, GREY / 255.0)


def test_stochastic_intensities_are_zeros_and_ones():
    assert set(intensities(GREY, "stochastic", seeded(0)).unique().tolist()) == {0.0, 1.0}


def test_a_pixel_is_drawn_with_its_grey_value_as_probability():
    n = 4000
    mean = sum(intensities(GREY, "stochastic", seeded(0, i)).mean(0) for i in range(n // 1000)).flatten() / (n // 1000)
    p = torch.arange(256) / 255
    assert ((mean - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt()).all()  # 4.5 sigma, 256 pixels: 0.2 % by chance


def test_black_and_white_are_never_drawn_otherwise():
    binary = (GREY > 127).to(torch.uint8) * 255
    torch.testing.assert_close(intensities(binary, "stochastic", seeded(0)), binary / 255.0, rtol=0, atol=0)


def test_black_stays_black_at_the_smallest_random_number(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert not intensities(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "stochastic", seeded(0)).any()


def test_the_noise_comes_from_the_generator_alone():
    first = intensities(GREY, "stochastic", seeded(3))
    torch.manual_seed(1)
    assert torch.equal(first, intensities(GREY, "stochastic", seeded(3)))
    assert not torch.equal(first, intensities(GREY, "stochastic", seeded(4)))


def test_the_noise_of_images_on_another_device_is_drawn_on_the_generators_own(monkeypatch):
    def rand(*size, generator, device, rand=torch.rand):
        assert torch.device(device).type == generator.device.type  # as CUDA insists, and meta does not
        return rand(*size, generator=generator, device=device)

    monkeypatch.setattr(torch, "rand", rand)
    assert intensities(GREY.to("meta"), "stochastic", seeded(3)).device.type == "meta"


def test_stochastic_intensities_need_a_generator():
    with pytest.raises(ValueError, match="needs a generator"):
        intensities(GREY, "stochastic")


def test_auto_is_no_binarization_of_intensities():
    with pytest.raises(ValueError, match="got 'auto'"):
        intensities(GREY, "auto")


# Binarisation of a set, and its splits.


@pytest.fixture
def save(tmp_path):
    """Saves arrays as images.npy or images.npz and returns the source."""

    def save(array=None, **arrays):
        path = tmp_path / ("images.npz" if array is None else "images.npy")
        if array is None:
            np.savez(path, **arrays)
        else:
            np.save(path, array)
        return str(path)

    return save


def load(source, **settings):
    return load_data(DataConfig(source=source, **settings))


def grey_images(n=20, *shape):
    return np.random.default_rng(0).integers(0, 256, (n, *(shape or (5, 4))), np.uint8)


@pytest.mark.parametrize(
    ("images", "asked", "resolved"),
    [
        (grey_images(), "auto", "stochastic"),
        (grey_images(), "none", "none"),
        (grey_images(), "stochastic", "stochastic"),
        (grey_images(), "static", "static"),
        (grey_images(20, 5, 4, 3), "auto", "none"),
        (grey_images(20, 5, 4, 3), "stochastic", "stochastic"),
        (grey_images() > 99, "auto", "static"),
        (grey_images() > 99, "stochastic", "static"),
        (grey_images() > 99, "none", "static"),
    ],
)
def test_binarization_is_resolved(save, images, asked, resolved):
    assert load(save(images), binarization=asked).binarization == resolved


def test_static_binarization_is_drawn_once_by_the_data_seed(save):
    grey = grey_images(400)
    source = save(train=grey, valid=grey, test=grey)
    first, again = load(source, binarization="static"), load(source, binarization="static")
    other = load(source, binarization="static", data_seed=1)
    for split in ("train", "valid", "test"):
        assert torch.equal(first.images[split], again.images[split])
        assert set(first.images[split].unique().tolist()) == {0, 255}
        assert not torch.equal(first.images[split], other.images[split])


def test_static_binarization_keeps_the_mean(save):
    source = save(np.full((1000, 8, 8), 51, np.uint8))
    assert load(source, binarization="static").mean_pixel == pytest.approx(0.2, abs=4 * 0.4 / 51_200**0.5)


def numbered(n):
    """Images that can be told apart by their first pixels."""
    images = np.zeros((n, 2, 2), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    return images


def numbers(images):
    return (images[:, 0, 0, 0].int() + 256 * images[:, 0, 0, 1].int()).tolist()


@pytest.mark.parametrize(("n", "held"), [(1000, 100), (29, 2), (10, 1), (3, 1)])
def test_without_splits_a_tenth_each_is_held_out(save, n, held):
    images = load(save(numbered(n))).images
    assert [len(images[split]) for split in ("train", "valid", "test")] == [n - 2 * held, held, held]
    assert sorted(itertools.chain.from_iterable(map(numbers, images.values()))) == list(range(n))


def test_held_out_images_depend_on_the_data_seed(save):
    source = save(numbered(1000))
    first = numbers(load(source).images["valid"])
    assert first == numbers(load(source).images["valid"])
    assert first != numbers(load(source, data_seed=1).images["valid"])


def test_held_out_images_take_their_labels_along(save):
    found = load(save(images=numbered(500), labels=np.arange(500)))
    for split in ("train", "valid", "test"):
        assert found.labels[split].tolist() == numbers(found.images[split])


def test_only_missing_splits_are_held_out(save):
    images = load(save(train=numbered(50), test=numbered(7))).images
    assert [len(images[split]) for split in ("train", "valid", "test")] == [45, 5, 7]


def test_held_out_splits_are_noted(save):
    assert load(save(train=numbered(50), test=numbered(7))).notes == (
        "valid: 5 of the 50 training images, held out by data_seed 0",
    )


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_images_for_three_splits_are_an_error(save, n):
    with pytest.raises(UserError, match=f"has {n} training images; 3 or more"):
        load(save(numbered(n)))


def test_a_set_knows_its_shape_and_mean(save):
    found = load(save(np.full((10, 5, 4, 3), 51, np.uint8)))
    assert found.shape == (3, 5, 4)
    assert found.mean_pixel == pytest.approx(0.2, abs=1e-12)


def test_a_set_moves_with_all_its_tensors(save):
    moved = load(save(images=numbered(10), labels=np.arange(10))).to("meta")
    assert {x.device.type for x in [*moved.images.values(), *moved.labels.values()]} == {"meta"}
    assert moved.images["train"].dtype == torch.uint8


# Patches.

PLACES = (10 * torch.arange(5)[:, None] + torch.arange(4)).to(torch.uint8).expand(300, 3, 5, 4)  # row and column


def test_a_patch_is_a_piece_of_its_image_and_any_may_come():
    patches = random_patches(PLACES, (2, 3), seeded("patches"), of=300)
    assert patches.shape == (300, 3, 2, 3)
    corners = patches[:, :, :1, :1]
    assert torch.equal(patches, corners + PLACES[:, :, :2, :3])
    assert set(corners.flatten().tolist()) == {0, 1, 10, 11, 20, 21, 30, 31}
    assert torch.equal(random_patches(PLACES, (5, 4), seeded("patches"), of=300), PLACES)


def test_the_channels_and_images_of_patches_stay_theirs():
    images = torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1).expand(2, 3, 5, 4)
    patches = random_patches(images, (2, 2), seeded("patches"), of=2)
    assert torch.equal(patches, images[:, :, :2, :2])


def test_a_part_of_a_batch_has_the_patches_of_the_whole_one():
    whole = random_patches(PLACES[:8], (2, 2), seeded("patches"), of=8)
    part = random_patches(PLACES[3:5], (2, 2), seeded("patches"), of=8, first=3)
    assert torch.equal(whole[3:5], part)
    assert not torch.equal(whole, random_patches(PLACES[:8], (2, 2), seeded("others"), of=8))


def test_what_is_measured_are_the_middle_patches(save):
    images = PLACES[:30, :1].clone()
    images[0] = 99  # so that whole images tell sets apart
    found = load(save(train=images.numpy(), valid=images[:3].numpy(), test=images[:2].numpy()), patch="3x2")
    assert found.shape == (1, 3, 2)
    for split, n in (("train", 30), ("valid", 3), ("test", 2)):
        assert torch.equal(found.images[split], images[:n, :, 1:4, 1:3])
    assert torch.equal(found.whole, images)
    moved = found.to("meta")
    assert (moved.whole.device.type, moved.shape) == ("meta", (1, 3, 2))


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("9", "cannot take patches of 9 x 9 pixels: the images have 5 x 4"),
        ("5x5", "cannot take patches of 5 x 5 pixels: the images have 5 x 4"),
        ("0", "patch must be SIDE or HEIGHTxWIDTH in pixels"),
        ("all", "patch must be SIDE or HEIGHTxWIDTH in pixels"),
    ],
)
def test_patches_that_cannot_be_taken_are_named(save, patch, message):
    with pytest.raises(UserError, match=message):
        load(save(images=grey_images()), patch=patch)


# NumPy files.


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 5, 4), (1, 5, 4)),
        ((10, 5, 4, 1), (1, 5, 4)),
        ((10, 5, 4, 3), (3, 5, 4)),
        ((10, 1, 5, 4), (1, 5, 4)),
        ((10, 3, 5, 4), (3, 5, 4)),
        ((10, 3, 5, 3), (3, 3, 5)),  # both fit: the last axis
        ((10, 3, 5, 1), (1, 3, 5)),
        ((10, 3, 4, 4), (3, 4, 4)),
    ],
)
def test_channels_are_found_by_the_stated_rule(save, shape, expected):
    assert load(save(grey_images(*shape))).shape == expected


def test_the_last_axis_becomes_the_channel_axis(save):
    array = grey_images(10, 5, 4, 3)
    whole = torch.cat([load(save(train=array, valid=array, test=array)).images["train"]])
    np.testing.assert_array_equal(whole.numpy(), array.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_scaled_to_255(save, dtype):
    array = grey_images(10)
    floats = (array / 255).astype(dtype)
    found = load(save(train=floats, valid=floats, test=floats)).images["train"]
    np.testing.assert_array_equal(found[:, 0].numpy(), array)


@pytest.mark.parametrize(
    "array", [np.eye(4) > 0, np.eye(4, dtype=np.uint8), np.eye(4), 255 * np.eye(4, dtype=np.uint8)]
)
def test_masks_of_any_type_become_black_and_white(save, array):
    array = np.stack([array] * 5)
    found = load(save(train=array, valid=array, test=array)).images["train"]
    np.testing.assert_array_equal(found[0, 0].numpy(), 255 * np.eye(4))


def test_ones_are_white_where_no_byte_is_above_one_whatever_the_type_of_other_splits(save):
    masks = np.stack([np.eye(4, dtype=np.uint8)] * 5)
    data = load(save(train=masks, valid=masks == 1, test=masks.astype(float)))
    assert all(images.max() == 255 for images in data.images.values())
    assert data.binarization == "static"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((10, 784), np.uint8), r"shape \(10, 784\); expected"),
        (np.zeros((10, 5, 4, 2), np.uint8), r"expected \(n, h, w\)"),
        (np.zeros((10, 5, 5, 4), np.uint8), r"4 channels.*drop the alpha"),
        (np.zeros((10, 4, 5, 5), np.uint8), r"4 channels.*drop the alpha"),
        (np.zeros((10, 5, 4), np.int64), "type int64; expected uint8"),
        (np.full((10, 5, 4), 255.0), r"lie in \[0, 1\], got 255 to 255"),
        (np.full((10, 5, 4), 1 + 1e-6), r"lie in \[0, 1\], got 1\.0000009\d* to 1\.0000009"),
        (np.full((10, 5, 4), -0.1), r"lie in \[0, 1\]"),
        (np.full((10, 5, 4), np.nan), r"some values are NaN"),
        (np.zeros((0, 5, 4), np.uint8), "empty"),
        (np.array(5, np.uint8), "shape"),
    ],
)
def test_other_arrays_are_named_in_one_line(save, array, message):
    with pytest.raises(UserError, match=message) as caught:
        load(save(array))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": grey_images(), "b": grey_images()}, "holds a, b; name the images"),
        ({"test": grey_images()}, "holds test but no 'train'"),
        ({"train": grey_images(9, 5, 4), "test": grey_images(9, 4, 5)}, "differ in shape"),
        ({"images": grey_images(9), "labels": np.arange(8)}, "labels of train must be 9 integers"),
        ({"images": grey_images(9), "labels": np.arange(9.0)}, "labels of train must be 9 integers, got float64"),
    ],
)
def test_other_archives_are_named_in_one_line(save, arrays, message):
    with pytest.raises(UserError, match=message) as caught:
        load(save(**arrays))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["images", "anything"])
def test_a_single_array_may_have_any_name(save, name):
    assert load(save(**{name: grey_images(), "labels": np.arange(20)})).labels["train"].shape == (16,)


def test_labels_of_splits_are_found(save):
    found = load(save(train=numbered(6), val=numbered(5), test=numbered(4), test_labels=np.arange(4)))
    assert list(found.labels) == ["test"]
    assert found.labels["test"].tolist() == [0, 1, 2, 3]
    assert len(found.images["valid"]) == 5


NOT_ARRAYS = r"is not a \.npy or \.npz file of plain arrays"


def test_names_of_splits_may_be_in_capitals_and_what_is_left_out_is_noted(save):
    x = grey_images()
    found = load(save(Train=x, Test=x[:2], train_labels=np.arange(20), names=np.arange(3)))
    assert {split: len(images) for split, images in found.images.items()} == {"train": 18, "valid": 2, "test": 2}
    assert len(found.labels["train"]) == 18
    assert "left out of images.npz: names" in found.notes


def test_two_arrays_of_one_split_are_refused(save):
    with pytest.raises(UserError, match="holds valid and val, both of them the split valid: leave one out"):
        load(save(train=grey_images(), valid=grey_images(), val=grey_images()))


@pytest.mark.parametrize(("arrays", "other"), [([], "readme.txt"), (["images"], "labels"), (["train"], "test")])
def test_what_is_no_array_in_a_npz_is_named(tmp_path, arrays, other):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in arrays:
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, grey_images())
        archive.writestr(other, "hello")
    with pytest.raises(UserError, match=r"what it holds for (train|test) is no array"):
        load(str(tmp_path / "a.npz"))


def test_a_damaged_header_is_one_line(save):
    path = Path(save(grey_images()))
    path.write_bytes(path.read_bytes().replace(b"), }", b"x, }", 1))
    with pytest.raises(UserError, match=NOT_ARRAYS):
        load(str(path))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_nothing_is_unpickled(tmp_path, save):
    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Trap()))
    with zipfile.ZipFile(tmp_path / "trap.npz", "w") as archive:
        archive.write(tmp_path / "trap.npy", "images.npy")
    for name in ("trap.npy", "plain.npy", "trap.npz"):
        with pytest.raises(UserError, match=NOT_ARRAYS):
            load(str(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_files_that_are_not_arrays_are_named(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=NOT_ARRAYS):
        load(str(path))


def test_a_truncated_array_is_named(save, tmp_path):
    source = save(grey_images(100))
    whole = (tmp_path / "images.npy").read_bytes()
    (tmp_path / "images.npy").write_bytes(whole[:-500])
    with pytest.raises(UserError, match=NOT_ARRAYS):
        load(source)


# Names.


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mnits", r"unknown data set 'mnits' \(and no folder:PATH, .*\); did you mean 'mnist'\?"),
        ("/no/such/file.npy", "there is no file /no/such/file.npy"),
        ("folder:/no/such", "there is no folder /no/such"),
        ("", r"unknown data set '' .*; choose one of glyphs, mnist"),
    ],
)
def test_a_wrong_source_is_named_with_what_to_give(source, message):
    with pytest.raises(UserError, match=message):
        load(source)


def test_a_bare_folder_is_told_to_be_one(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is a folder: write folder:{tmp_path}"):
        load(str(tmp_path))


@pytest.mark.parametrize("settings", [{"size": "32"}, {"grey": True}])
def test_settings_of_folders_are_refused_elsewhere(settings):
    with pytest.raises(UserError, match="are for folder:PATH, not for glyphs"):
        load("glyphs", **settings)


def test_glyphs_follow_the_data_seed(monkeypatch):
    monkeypatch.setattr(data.glyphs, "SIZES", {"train": 30, "valid": 10, "test": 20})
    found, other = load("glyphs"), load("glyphs", data_seed=1)
    assert [len(x) for x in found.images.values()] == [30, 10, 20]
    assert found.binarization == "stochastic"
    assert not torch.equal(found.images["train"], other.images["train"])


def test_real_sets_come_with_a_seeded_validation_split(shared_data):
    found = load_data(DataConfig(source="omniglot"), shared_data)
    assert [len(found.images[split]) for split in ("train", "valid", "test")] == [17_352, 1_928, 13_180]


# Folders.


@pytest.fixture
def folder(tmp_path):
    """Saves pictures below a folder: numbers are sizes of grey ones, else what is given."""

    def folder(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif isinstance(content, Image.Image):
                content.save(path)
            else:
                Image.new("L", content, 100).save(path)
        return tmp_path

    return folder


def colour(r, g, b, size=(4, 4)):
    return Image.new("RGB", size, (r, g, b))


def test_pictures_are_found_at_any_depth_in_the_order_of_their_paths(folder):
    grey = [Image.new("L", (4, 4), v) for v in (1, 2, 3)]
    root = folder({"b/x.png": grey[1], "c.bmp": grey[2], "a/deep/er/x.PNG": grey[0]})
    assert pictures.read_folder(root).images["train"][:, 0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif"])
def test_every_promised_format_is_read(folder, suffix):
    images = pictures.read_folder(folder({f"x.{suffix}": colour(200, 100, 50)}), grey=True).images["train"]
    assert images[0, 0] == pytest.approx(124, abs=3)  # luma 0.299 R + 0.587 G + 0.114 B; some formats are lossy


def test_a_gif_gives_its_first_frame(tmp_path):
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    assert (pictures.read_folder(tmp_path, grey=True).images["train"] == 10).all()


def test_hidden_and_foreign_files_are_left_out(folder):
    root = folder({"x.png": (4, 4), "._x.png": b"x", "__MACOSX/y.png": b"x", ".h/z.png": b"x", "t.txt": b"x"})
    assert len(pictures.read_folder(root).images["train"]) == 1


def test_a_link_to_nothing_is_an_unreadable_file(folder):
    root = folder({"x.png": (4, 4)})
    (root / "y.png").symlink_to(root / "gone.png")
    with pytest.raises(UserError, match=r"1 of 2 files .*\n  y.png: No such file"):
        pictures.read_folder(root)


def test_a_file_is_read_by_what_is_in_it_and_only_as_one_of_the_promised_formats(folder):
    root = folder({"x.png": (4, 4)})
    Image.new("F", (4, 4)).save(root / "y.png", format="TIFF")
    with pytest.raises(UserError, match=r"1 of 2 files .*\n  y.png: not an image, or none of PNG"):
        pictures.read_folder(root)


def test_files_of_other_kinds_are_noted(folder, tmp_path):
    found = pictures.read_folder(folder({"x.png": (4, 4), "y.TIF": b"x", "a/z.tif": b"x", "NOTES": b"x"}))
    assert found.notes == ("left out 3 files of other kinds (.tif, NOTES)",)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.svg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no images .*, only 1 file of other kinds \(\.svg\)$"):
        pictures.read_folder(tmp_path / "only")


@pytest.mark.parametrize("name", ["valid", "val", "validation", "Valid"])
def test_folders_named_as_splits_are_the_splits(folder, name):
    files = {"train/a/1.png": (4, 4), "train/b/2.png": (4, 4), f"{name}/1.png": (4, 4)}
    images = pictures.read_folder(folder({**files, "test/1.png": (4, 4), "test/2.png": (4, 4)})).images
    assert {split: len(x) for split, x in images.items()} == {"train": 2, "valid": 1, "test": 2}


def test_pictures_outside_the_splits_are_noted(folder):
    found = pictures.read_folder(folder({"train/x.png": (4, 4), "other/x.png": (4, 4), "x.png": (4, 4)}))
    assert len(found.images["train"]) == 1
    assert found.notes == ("left out 2 images outside the folders train",)


def test_without_a_train_folder_all_pictures_are_one_split(folder):
    images = pictures.read_folder(folder({"a/x.png": (4, 4), "b/x.png": (4, 4), "x.png": (4, 4)})).images
    assert {split: len(x) for split, x in images.items()} == {"train": 3}


@pytest.mark.parametrize("name", ["test", "Test", "VAL"])
def test_a_split_without_a_train_folder_is_not_trained_on(folder, name):
    with pytest.raises(UserError, match=f"has a folder {name} and none named train: name the folders"):
        pictures.read_folder(folder({f"{name}/x.png": (4, 4), "x.png": (4, 4)}))


def test_linked_folders_are_read_once_and_a_link_back_is_not_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("L", (4, 4), 7).save(elsewhere / "far.png")
    root = folder({"near/x.png": (4, 4)})
    (root / "more").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(root, target_is_directory=True)
    assert len(pictures.read_folder(root).images["train"]) == 2


def test_a_folder_is_grey_if_all_its_pictures_are(folder):
    sixteen = Image.fromarray(np.full((4, 4), 0xFFFF, np.uint16))
    found = pictures.read_folder(folder({"a.png": (4, 4), "b.png": Image.new("1", (4, 4), 1), "c.png": sixteen}))
    assert found.images["train"].shape == (3, 1, 4, 4)
    assert found.images["train"][:, 0, 0, 0].tolist() == [100, 255, 255]


def test_one_colour_picture_makes_a_folder_colour(folder):
    images = pictures.read_folder(folder({"a.png": (4, 4), "b.png": colour(1, 2, 3)})).images["train"]
    assert images[:, :, 0, 0].tolist() == [[100, 100, 100], [1, 2, 3]]


def test_transparent_pictures_are_put_on_black(folder):
    half = Image.new("RGBA", (4, 4), (200, 100, 50, 128))
    images = pictures.read_folder(folder({"a.png": half})).images["train"]
    np.testing.assert_allclose(images[0, :, 0, 0], [100, 50, 25], atol=1)


def test_grey_pictures_with_transparency_stay_grey(folder):
    images = pictures.read_folder(folder({"a.png": Image.new("LA", (4, 4), (200, 0))})).images["train"]
    assert images.shape == (1, 1, 4, 4)
    assert not images.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_value_that_stands_for_nothing_is_black(folder, dtype):
    white = np.iinfo(dtype).max
    picture = Image.fromarray(np.array([[white, white // 2]], dtype))
    picture.save(folder({}) / "a.png", transparency=white)
    images = pictures.read_folder(folder({})).images["train"]
    assert images.tolist() == [[[[0, 127]]]]


def png(kind, depth, rows, *more):
    """A PNG of which each row is given as bytes: grey (0) or grey with alpha (4), as Pillow does not write it."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = 8 * len(rows[0]) // (depth * {0: 1, 4: 2}[kind])
    lines = b"".join(b"\0" + row for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)), *more]
    parts += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_sixteen_bits_of_grey_with_transparency_stay_grey(folder):
    rows = [bytes([100, 0, 255, 255, 200, 0, 0, 0])]  # 100 as it is, 200 transparent
    assert pictures.read_folder(folder({"a.png": png(4, 16, rows)})).images["train"].tolist() == [[[[100, 0]]]]


@pytest.mark.parametrize(("depth", "row"), [(2, 0b11100100), (4, 0xFA)])
def test_a_grey_value_of_few_bits_that_stands_for_nothing_is_black(folder, depth, row):
    white = (b"tRNS", struct.pack(">H", 2**depth - 1))
    images = pictures.read_folder(folder({"a.png": png(0, depth, [bytes([row])], white)})).images["train"]
    assert images.tolist() == {2: [[[[0, 170, 85, 0]]]], 4: [[[[0, 170]]]]}[depth]


def test_a_damaged_tag_leaves_the_pixels_readable(folder):
    odd = Image.new("L", (4, 4), 9)
    odd.save(folder({}) / "a.webp", lossless=True, exif=b"garbage")
    assert (pictures.read_folder(folder({})).images["train"] == 9).all()


def test_what_draw_drew_is_not_trained_on(folder):
    root = folder({"a.png": (4, 4), "b.png": (4, 4)})
    before = pictures.read_folder(root)
    render.save_png(Image.new("L", (9, 9)), root / "runs" / "demo" / "samples" / "step-00000500.png")
    render.save_animation([Image.new("L", (9, 9), grey) for grey in (0, 99)], root / "drawing.png")
    logged = {"bound_nats": 3.0, "loss_x_nats": 2.0, "loss_z_nats": 1.0}
    curves.curve([{"kind": "train", "step": 1, "seconds": 1.0, **logged}], root / "curve.png", title="a run")
    after = pictures.read_folder(root)
    assert np.array_equal(before.images["train"], after.images["train"])
    assert after.notes == ("left out 3 pictures that draw made",)


@pytest.mark.parametrize("new", [colour(1, 2, 3), (9, 8)], ids=["colour", "size"])
def test_a_picture_that_changes_while_it_is_packed_is_named(folder, new):
    root = folder({"a.png": (4, 4), "b.png": (4, 4)})
    stream = pictures.stream_folder(root)
    folder({"b.png": new})
    with pytest.raises(UserError, match=r"b\.png has changed while the folder was read"):
        list(stream.images["train"])


def test_pictures_are_turned_as_their_exif_tag_says(tmp_path):
    image = Image.new("L", (6, 4))
    image.paste(255, (0, 0, 3, 4))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show
    image.save(tmp_path / "x.png", exif=exif)
    shown = pictures.read_folder(tmp_path).images["train"][0, 0]
    assert shown.shape == (6, 4)
    assert shown[:3].min() == 255
    assert shown[3:].max() == 0


def test_size_crops_to_the_shape_about_the_middle_and_resizes(folder):
    image = colour(255, 0, 0, (60, 20))
    image.paste((0, 255, 0), (20, 0, 40, 20))  # the middle square
    images = pictures.read_folder(folder({"a.png": image}), size=(8, 8)).images["train"]
    assert images.shape == (1, 3, 8, 8)
    assert images[0, 1].min() > 220  # Lanczos looks a little over the edge
    assert images[0, 1, :, 2:-2].min() > 250


def test_size_is_height_by_width(folder):
    found = load(f"folder:{folder({'a.png': (40, 30), 'b.png': (9, 50), 'c.png': (7, 7)})}", size="6x9")
    assert found.shape == (1, 6, 9)


def test_mixed_sizes_are_listed_with_the_flag_to_give(folder):
    root = folder({"a.png": (4, 5), "b.png": (6, 7), "c.png": (6, 7), "d.png": (6, 7)})
    with pytest.raises(UserError, match=r"height x width: 7x6 \(3\), 5x4 \(1\); give --size 32"):
        pictures.read_folder(root)


def test_pictures_larger_than_4096_need_a_size(folder):
    root = folder({"a.png": (4097, 2)})
    with pytest.raises(UserError, match=r"are 2x4097 pixels, more than 4096 on a side; give --size 32"):
        pictures.read_folder(root)
    assert pictures.read_folder(root, size=(2, 2)).images["train"].shape == (1, 1, 2, 2)


def test_pictures_of_too_many_pixels_are_unreadable(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (11, 20):  # Pillow warns above the limit and stops above twice the limit
        with pytest.raises(UserError, match=r"x\.png: more than 100 pixels"):
            pictures.read_folder(folder({"x.png": (side, side)}))


def test_a_folder_too_large_for_memory_is_named(folder, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_FOLDER", 20)
    with pytest.raises(UserError, match="take more than 0 GiB; give --size 32"):
        pictures.read_folder(folder({"a.png": (4, 4), "b.png": (4, 4)}))


def test_one_colour_picture_makes_a_folder_three_times_as_large(folder, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_FOLDER", 95)
    root = folder({"a.png": (4, 4), "b.png": (4, 4)})
    pictures.read_folder(root)
    with pytest.raises(UserError, match="take more than 0 GiB; give --size 32"):
        pictures.read_folder(folder({"c.png": colour(1, 2, 3)}))


@pytest.fixture
def damaged(folder):
    """13 files of which 12 cannot be read."""
    root = folder({"good.png": (64, 64)})
    whole = (root / "good.png").read_bytes()
    return folder({f"bad{i:02}.png": (b"text", b"", whole[:60])[i % 3] for i in range(12)})


def test_unreadable_files_are_reported_at_once(damaged):
    with pytest.raises(UserError) as caught:
        pictures.read_folder(damaged)
    first, *rest = str(caught.value).splitlines()
    assert first == f"12 of 13 files in {damaged} cannot be read; give --skip-bad to leave them out"
    assert rest[0] == "  bad00.png: not an image, or none of PNG, JPEG, WebP, BMP and GIF"
    assert rest[2].startswith("  bad02.png: ")
    assert len(rest) == 11
    assert rest[-1] == "  and 2 more"


def test_unreadable_files_are_left_out_and_listed_if_asked(damaged):
    found = pictures.read_folder(damaged, skip_bad=True)
    assert len(found.images["train"]) == 1
    assert found.notes[0] == "left out 12 of 13 files that cannot be read"
    assert found.notes[1] == "  bad00.png: not an image, or none of PNG, JPEG, WebP, BMP and GIF"


def test_a_folder_without_readable_pictures_is_an_error_even_then(folder):
    with pytest.raises(UserError, match=r"no file of .* can be read"):
        pictures.read_folder(folder({"x.png": b"text"}), skip_bad=True)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        pictures.read_folder(tmp_path)


def test_an_empty_training_folder_is_named(folder):
    root = folder({"test/x.png": (4, 4)})
    (root / "train").mkdir()
    with pytest.raises(UserError, match="train holds no images"):
        pictures.read_folder(root)


def test_a_file_is_no_folder(folder):
    with pytest.raises(UserError, match="is not a folder"):
        pictures.read_folder(folder({"x.png": (4, 4)}) / "x.png")


def test_progress_counts_files(folder):
    calls = []
    pictures.read_folder(
        folder({"a.png": (4, 4), "b.png": (4, 4)}), progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 2), (2, 2)]


def test_a_folder_becomes_a_data_set(folder):
    files = {f"class{i % 2}/{i}.png": colour(i, 0, 0) for i in range(10)}
    found = load(f"folder:{folder(files)}")
    assert found.shape == (3, 4, 4)
    assert found.binarization == "none"
    assert [len(x) for x in found.images.values()] == [8, 1, 1]


@pytest.mark.parametrize(
    ("images", "binarization", "message"),
    [
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), "static", r"must be a uint8 tensor .* \(0, 1, 4, 4\)"),
        (torch.ones(3, 1, 4, 4, dtype=torch.uint8), "static", "no value of the images of mine is above 1"),
        (
            torch.full((3, 1, 4, 4), 7, dtype=torch.uint8),
            "static",
            "images of mine are grey, and static ones are 0",
        ),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "auto", "binarization must be static, stochastic or none"),
    ],
)
def test_a_set_made_by_hand_is_checked(images, binarization, message):
    with pytest.raises(UserError, match=message):
        DataSet("mine", {"train": images}, {}, binarization)


def test_the_splits_of_a_set_have_one_size():
    images = {"train": torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "test": torch.zeros(3, 1, 4, 5, dtype=torch.uint8)}
    with pytest.raises(UserError, match=r"the test images of mine are \(1, 4, 5\), others \(1, 4, 4\)"):
        DataSet("mine", images, {}, "static")


def test_a_split_that_is_not_there_is_named():
    with pytest.raises(UserError, match="mine has no split valid, only train"):
        DataSet("mine", {"train": torch.zeros(3, 1, 4, 4, dtype=torch.uint8)}, {}, "static").split("valid")
