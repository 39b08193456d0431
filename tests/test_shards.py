"""Packed data sets: the same images, training and numbers as from the source, in flat memory, and whole or refused."""

import dataclasses
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from draw import cli, data, published, shards
from draw.config import DataConfig, EvalConfig
from draw.data import load_data
from draw.errors import UserError
from draw.evaluation import evaluate
from draw.packing import pack_data, write_shards
from draw.shards import Shards, read_manifest
from draw.training import Trainer
from small import data_set, small_config
from test_cli import SMALL

TINY = 0.0002  # megabytes: shards of 209 bytes
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    """Hundreds of tiny files are not worth being safe from a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def images(n=40, *shape):
    return np.random.default_rng(n).integers(0, 256, (n, *(shape or (5, 4))), np.uint8)


def settings_of(packed, **changes):
    return DataConfig(source=f"packed:{packed}", **changes)


def assert_same_set(packed, source):
    """Every pixel, label and fact."""
    for split in SPLITS:
        assert torch.equal(packed.images[split][:], source.images[split]), split
    assert {split: x.tolist() for split, x in packed.labels.items()} == {
        split: x.tolist() for split, x in source.labels.items()
    }
    for fact in ("shape", "mean_pixel", "images_sha256", "binarization", "notes"):
        assert getattr(packed, fact) == getattr(source, fact), fact


# Packing any source.


def picture_files(root, *, splits=False, bad=False):
    for i in range(20):
        # The last pictures alone are in colour, so that nothing is known before all are read.
        picture = Image.fromarray(images(20, 5, 4, 3)[i]) if i > 17 else Image.fromarray(images(20)[i])
        path = root / (("train", "val", "test")[i % 3] if splits else "all") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    if bad:
        (root / "all" / "05b.png").write_bytes(b"text")


def npz(path, **arrays):
    np.savez(path, **arrays)
    return {"source": str(path)}


def npy(path, array, **changes):
    np.save(path, array)
    return {"source": str(path), **changes}


def folder(path, size=None, skip_bad=False, **kind):
    picture_files(path, bad=skip_bad, **kind)
    return {"source": f"folder:{path}", "size": size, "skip_bad": skip_bad}


SOURCES = {
    "splits and labels": lambda at: npz(
        at / "a.npz", train=images(12), val=images(8), test=images(7), test_labels=np.arange(7)
    ),
    "labels but no splits": lambda at: npz(at / "a.npz", images=images(), labels=np.arange(40)),
    "one split missing": lambda at: npz(at / "a.npz", train=images(), test=images(9), train_labels=np.arange(40)),
    "grey": lambda at: npy(at / "a.npy", images()),
    "grey, kept grey": lambda at: npy(at / "a.npy", images(), binarization="none"),
    "drawn once": lambda at: npy(at / "a.npy", images(), binarization="static", data_seed=3),
    "drawn once in colour": lambda at: npy(at / "a.npy", images(40, 5, 4, 3), binarization="static"),
    "another seed": lambda at: npy(at / "a.npy", images(), data_seed=7),
    "floats": lambda at: npy(at / "a.npy", images(40, 5, 4, 3) / 255),
    "masks": lambda at: npy(at / "a.npy", images() > 128),
    "zeros and ones": lambda at: npy(at / "a.npy", images() // 128),
    "zeros": lambda at: npy(at / "a.npy", 0 * images()),
    "columns first": lambda at: npy(at / "a.npy", np.asfortranarray(images(40, 5, 4, 3))),
    "one channel last": lambda at: npy(at / "a.npy", images(40, 5, 4, 1)),
    "pictures": lambda at: folder(at / "p"),
    "pictures in splits": lambda at: folder(at / "p", splits=True),
    "resized pictures": lambda at: folder(at / "p", size="3x2"),
    "damaged pictures": lambda at: folder(at / "p", skip_bad=True),
    "glyphs": lambda at: {"source": "glyphs", "data_seed": 5},
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_pack_is_its_source(tmp_path, monkeypatch, source):
    monkeypatch.setattr(data.glyphs, "SIZES", {"train": 30, "valid": 10, "test": 20})
    monkeypatch.setattr(published, "PIECE", 100)  # a few images at a time
    config = DataConfig(**SOURCES[source](tmp_path))
    packed = pack_data(config, tmp_path / "packed", shard_mb=TINY)
    assert_same_set(packed, load_data(config))
    assert_same_set(load_data(settings_of(tmp_path / "packed")), load_data(config))
    assert len(read_manifest(tmp_path / "packed").splits["train"].shards) > 1


def test_patches_and_packs_do_not_go_together(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((30, 6, 6), np.uint8))
    with pytest.raises(UserError, match="a pack holds whole images, of which no patches are taken"):
        pack_data(DataConfig(str(tmp_path / "a.npy"), patch="4"), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
    pack_data(DataConfig(str(tmp_path / "a.npy")), tmp_path / "pack")
    with pytest.raises(UserError, match="patches are not taken of packed images: give the source of packed:"):
        load_data(DataConfig(f"packed:{tmp_path / 'pack'}", patch="4"))
    assert load_data(DataConfig(f"packed:{tmp_path / 'pack'}", patch="6")).shape == (1, 6, 6)  # they are the patches


def test_a_pack_can_be_packed_again(tmp_path):
    config = DataConfig(**npy(tmp_path / "a.npy", images(), binarization="none"))
    pack_data(config, tmp_path / "one", shard_mb=TINY)
    pack_data(settings_of(tmp_path / "one"), tmp_path / "two")
    assert_same_set(load_data(settings_of(tmp_path / "two")), load_data(config))
    static = dataclasses.replace(config, binarization="static")
    third = pack_data(settings_of(tmp_path / "one", binarization="static"), tmp_path / "three")
    assert third.binarization == "static"
    assert third.images["valid"][:].tolist() == load_data(static).images["valid"].tolist()


def test_packing_a_source_counts_files_and_images(tmp_path):
    calls = []
    config = DataConfig(**folder(tmp_path / "p"))
    pack_data(config, tmp_path / "packed", progress=lambda *call: calls.append(call))
    assert calls == [*((i, 20) for i in range(1, 21)), (20, 20)]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((10, 784), np.uint8), r"shape \(10, 784\); expected"),
        (np.zeros((0, 5, 4), np.uint8), "empty"),
        (np.array(5, np.uint8), "shape"),
        (np.full((10, 5, 4), 255.0), r"lie in \[0, 1\], got 255 to 255"),
        (np.full((10, 5, 4), np.nan), "some values are NaN"),
        (np.array([[[None]]]), "it holds Python objects"),
        (np.zeros((2, 5, 4), np.uint8), "has 2 training images; 3 or more"),
    ],
)
def test_arrays_that_are_no_images_are_named_in_one_line(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message) as caught:
        pack_data(DataConfig(str(tmp_path / "a.npy")), tmp_path / "packed")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mnits", "did you mean 'mnist'?"),
        ("nowhere.npy", "there is no file nowhere.npy"),
        ("packed:", "packed: needs a path"),
        ("packed:nowhere", "nowhere is no pack: it has no manifest.json; make one: draw data pack SOURCE --out DIR"),
    ],
)
def test_a_wrong_source_is_named(tmp_path, source, message):
    with pytest.raises(UserError, match=re.escape(message)):
        pack_data(DataConfig(source), tmp_path / "packed")


def test_an_array_is_packed_in_flat_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "PIECE", 1 << 18)
    np.save(tmp_path / "a.npy", np.broadcast_to(np.arange(256, dtype=np.uint8), (40_000, 2, 256)))
    tracemalloc.start()
    pack_data(DataConfig(str(tmp_path / "a.npy")), tmp_path / "packed")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6  # of 20e6 bytes


# A user's own stream.


def pieces(array, *lengths):
    return iter(np.split(array, np.cumsum(lengths)))


def of_splits(**arrays):
    return {split: [array[:, None]] for split, array in arrays.items()}


WHOLE = of_splits(train=images(30), valid=images(4), test=images(5))


def test_pieces_of_any_length_make_the_same_files(tmp_path):
    array = images(30)[:, None]
    for name, stream in (
        ("a", pieces(array)),
        ("b", pieces(array, 1, 0, 3, 20)),
        ("c", iter(torch.tensor(array)[None])),
    ):
        write_shards(tmp_path / name, WHOLE | {"train": stream}, shard_mb=TINY)
    files = [sorted((path.name, path.read_bytes()) for path in (tmp_path / name).iterdir()) for name in "abc"]
    assert files[0] == files[1] == files[2]


def test_a_stream_without_splits_is_held_out_by_the_rule_of_load_data(tmp_path):
    config = DataConfig(**npz(tmp_path / "a.npz", images=images(), labels=np.arange(40)))
    labels = []

    def stream():
        for i, image in enumerate(images()):
            labels.append(i)
            yield image[None, None]

    written = write_shards(tmp_path / "packed", {"train": stream()}, labels={"train": labels}, train_images=40)
    assert_same_set(written, load_data(config))


def test_shards_are_plain_arrays_of_bounded_size(tmp_path):
    write_shards(tmp_path / "packed", WHOLE, shard_mb=TINY)
    found = [np.load(path, allow_pickle=False) for path in sorted((tmp_path / "packed").glob("train-*.npy"))]
    assert [len(array) for array in found] == [10, 10, 10]
    np.testing.assert_array_equal(np.concatenate(found), images(30)[:, None])


def test_an_image_larger_than_a_shard_is_a_shard(tmp_path):
    write_shards(tmp_path / "packed", WHOLE, shard_mb=1e-9)
    assert {shard.images for shard in read_manifest(tmp_path / "packed").splits["train"].shards} == {1}


@pytest.mark.parametrize(
    ("images", "others", "message"),
    [
        ({"valid": []}, {}, "give images of train, and maybe valid and test; got images of valid, labels of none"),
        ({"train": [], "tset": []}, {}, "got images of train, tset"),
        (WHOLE, {"labels": {"tset": [1]}}, "labels of tset"),
        ({"train": []}, {}, "no images of valid and test: give them, or train_images to hold them out of train"),
        (of_splits(train=images(9)), {"train_images": 8}, "train_images is 8, but train has 9 or more images"),
        (of_splits(train=images(9)), {"train_images": 11}, "train_images is 11, but train has 9 images"),
        (of_splits(train=images(2)), {"train_images": 2}, "has 2 training images; 3 or more"),
        (WHOLE | {"valid": []}, {}, "valid has no images"),
        ({"train": [], "valid": [], "test": []}, {}, "train has no images"),
        (WHOLE | {"test": [images(3)]}, {}, "test: images must be uint8 arrays (b, c, h, w), c = 1 or 3, got uint8 (3"),
        (WHOLE | {"test": [images(3, 2, 5, 4)]}, {}, "test: images differ in shape, (2, 5, 4) after (1, 5, 4)"),
        ({"train": [images(3, 2, 5, 4)]} | {"train_images": 3}, {}, "give images of train"),
        ({"train": iter([images(9, 1, 5, 4) / 255])}, {"train_images": 9}, "must be uint8 arrays (b, c, h, w), c = 1"),
        ({"train": [images(9)[:, None] % 2]}, {"train_images": 9}, "no value of the images of stream is above 1"),
        (WHOLE, {"labels": {"test": [1, 2]}}, "labels of test must be 5 integers, got int64 (2,)"),
        (WHOLE, {"labels": {"test": np.full(5, 0.5)}}, "labels of test must be 5 integers, got float64 (5,)"),
        (of_splits(train=images(9)), {"train_images": 9, "labels": {"train": [1]}}, "labels of train must be 9"),
        (WHOLE, {"shard_mb": 0}, "shard_mb must be positive and at most 1,048,576, got 0"),
        (WHOLE, {"data_seed": -1}, "data_seed must be from 0"),
    ],
)  # fmt: skip
def test_a_wrong_stream_is_named_and_leaves_nothing(tmp_path, images, others, message):
    with pytest.raises(UserError, match=re.escape(message)):
        write_shards(tmp_path / "packed", images, **others)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_pack_that_is_not_finished_leaves_nothing(tmp_path, error):
    def stream():
        yield images()[:, None]
        assert (tmp_path / "packed.part").is_dir()
        raise error

    (tmp_path / "packed").mkdir()
    with pytest.raises(error):
        write_shards(tmp_path / "packed", WHOLE | {"test": stream()})
    assert [*tmp_path.rglob("*")] == [tmp_path / "packed"]
    write_shards(tmp_path / "packed", WHOLE)  # an empty folder is as good as none
    assert [*tmp_path.iterdir()] == [tmp_path / "packed"]


def test_a_folder_in_use_is_left_as_it_is(tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "thesis.tex").write_text("all of it")
    for out in ("packed", "packed/thesis.tex"):
        with pytest.raises(UserError, match="exists already and is not an empty folder: choose another"):
            write_shards(tmp_path / out, WHOLE)
    assert (tmp_path / "packed" / "thesis.tex").read_text() == "all of it"


def test_a_pack_that_was_killed_is_no_pack_and_is_named(tmp_path):
    (tmp_path / "packed.part").mkdir()
    (tmp_path / "packed.part" / "train-00000.npy").write_bytes(b"half")
    with pytest.raises(UserError, match=r"packed.part is no pack: it has no manifest.json"):
        load_data(settings_of(tmp_path / "packed.part"))
    with pytest.raises(UserError, match=r"packed.part exists: another pack is being made, or one was cut short"):
        write_shards(tmp_path / "packed", WHOLE)
    assert (tmp_path / "packed.part" / "train-00000.npy").read_bytes() == b"half"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*train-00000.npy: No space left on device"):
        write_shards(tmp_path / "packed", WHOLE, shard_mb=TINY)
    assert list(tmp_path.iterdir()) == []


# Reading.


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A pack in many shards; tests that damage it copy it."""
    place = tmp_path_factory.mktemp("pack") / "packed"
    labels = {"train": np.arange(30), "test": np.arange(5)}
    write_shards(place, WHOLE, labels=labels, shard_mb=TINY)
    return place


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def rows_of(packed):
    return Shards(packed, read_manifest(packed), "train"), torch.tensor(images(30)[:, None])


@given(index=st.lists(st.integers(-30, 29), max_size=40))
@settings(max_examples=40, deadline=None)
def test_any_indices_give_what_a_tensor_would(packed, index):
    shards, tensor = rows_of(packed)
    assert torch.equal(shards[torch.tensor(index, dtype=torch.int64)], tensor[index])


@given(part=st.slices(30).filter(lambda part: part.step is None or part.step > 0))
@settings(max_examples=40, deadline=None)
def test_any_slice_gives_what_a_tensor_would(packed, part):
    shards, tensor = rows_of(packed)
    assert torch.equal(shards[part], tensor[part])


def test_a_number_gives_one_image(packed):
    shards, tensor = rows_of(packed)
    assert torch.equal(shards[-3], tensor[-3])


def test_the_interface_is_that_of_a_tensor_of_bytes(packed):
    shards, tensor = rows_of(packed)
    assert (len(shards), shards.shape, shards.device) == (30, tensor.shape, tensor.device)
    assert shards[:2].dtype == torch.uint8
    assert shards.to("meta") is shards


@pytest.mark.parametrize("index", [30, -31, torch.tensor([0, 30]), torch.tensor([-31])])
def test_an_index_outside_is_an_error(packed, index):
    with pytest.raises(IndexError, match=r"image (30|-31) of 30"):
        rows_of(packed)[0][index]


def test_what_was_read_is_the_callers_own(packed):
    shards, tensor = rows_of(packed)
    shards[:].zero_()
    assert torch.equal(shards[:], tensor)


def test_what_the_system_reads_in_parts_is_whole(packed, monkeypatch):
    class Slow(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:7])

    shards, tensor = rows_of(packed)
    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Slow(self))
    assert torch.equal(shards[3:25], tensor[3:25])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to see its memory")
def test_memory_does_not_grow_with_what_was_read(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    block = np.random.default_rng(0).integers(0, 256, (250, 1, 64, 64), np.uint8)  # a megabyte
    many = {"train": (block for _ in range(64)), "valid": [block], "test": [block]}
    rows = write_shards(tmp_path / "packed", many, shard_mb=8).images["train"]
    before, total = resident(), 0
    for first in range(0, len(rows), 250):
        total += len(rows[torch.arange(first, first + 250)]) + len(rows[first : first + 250])
    assert total == 2 * 16_000
    assert resident() - before < 8e6  # of 64e6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to see its memory")
def test_the_benchmark_of_memory_runs_and_cleans_up(tmp_path, monkeypatch, capsys):
    arguments = ["--gigabytes", "0.001", "--steps", "2", "--batch-size", "10", "--dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["packed_memory.py", *arguments])
    runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "packed_memory.py"), run_name="__main__")
    assert "| step | anonymous MB | total MB |" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# Training and measuring.


@pytest.fixture(params=["static", "stochastic", "none"])
def both(request, tmp_path):
    """A small set in memory, and packed."""
    source = data_set(binarization=request.param, grey=request.param != "static")
    streams = {split: [x.numpy()] for split, x in source.images.items()}
    packed = write_shards(tmp_path / "packed", streams, binarization=request.param, shard_mb=TINY)
    return source, packed


def test_training_and_evaluation_are_those_of_the_source(both):
    trained = []
    for found in both:
        trainer = Trainer(small_config(), found)
        for _ in range(7):  # more than an epoch
            trainer.train_step(0.0)
        measured = dataclasses.replace(evaluate(trainer.ema, found), seconds=0.0)
        trained.append((trainer.state() | trainer.ema.state_dict(), measured))
    (one, bound), (other, other_bound) = trained
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    assert bound == other_bound


def test_an_epoch_from_a_pack_has_every_image_once(tmp_path):
    stream = {"train": [np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1).repeat(30, 3).reshape(40, 1, 6, 5)]}
    packed = write_shards(tmp_path / "packed", stream, train_images=40, binarization="none", shard_mb=TINY)
    trainer = Trainer(small_config(), packed)
    epoch = torch.cat([trainer.batch(step)[:, 0, 0, 0] * 255 for step in range(4)])
    assert sorted(epoch.round().int().tolist()) == packed.images["train"][:][:, 0, 0, 0].tolist()


def test_evaluation_reads_a_pass_at_a_time(both, monkeypatch):
    asked = []
    read = Shards._read
    monkeypatch.setattr(Shards, "_read", lambda self, rows: asked.append(len(rows)) or read(self, rows))
    evaluate(Trainer(small_config(), both[1]).ema, both[1], EvalConfig(batch_size=4))
    assert asked == [4, 4, 4, 1]


# Damage.


def damage_missing(folder):
    (folder / "train-00001.npy").unlink()


def damage_truncated(folder):
    os.truncate(folder / "train-00001.npy", 300)


def damage_pickled(folder):
    path = folder / "train-00001.npy"
    size = path.stat().st_size
    np.save(path, np.array([{}]), allow_pickle=True)
    os.truncate(path, size)


def damage_shape(folder):
    np.save(folder / "train-00001.npy", images(10, 1, 4, 5))


def damage_labels(folder):
    np.save(folder / "test-labels.npy", np.arange(5.0))


def damage_lost_labels(folder):
    (folder / "test-labels.npy").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, r"train-00001.npy is missing; pack the set again"),
        (damage_truncated, r"train-00001.npy is damaged: expected 328 bytes, got 300; pack the set again"),
        (damage_pickled, r"train-00001.npy is damaged: it is not the .npy file that manifest.json describes"),
        (damage_shape, r"train-00001.npy is damaged: it is not the .npy file"),
        (damage_labels, r"test-labels.npy is damaged: it is not the .npy file"),
        (damage_lost_labels, r"test-labels.npy is missing"),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_trained(copy, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        load_data(settings_of(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"), [(damage_missing, "cannot be read: No such file"), (damage_truncated, "has become shorter")]
)
def test_a_file_damaged_later_is_named_when_it_is_read(copy, damage, message):
    rows = load_data(settings_of(copy)).images["train"]
    damage(copy)
    assert len(rows[:10]) == 10
    with pytest.raises(UserError, match=rf"train-00001.npy .*{message}"):
        rows[torch.tensor([3, 19])]


def changed(values, path, value):
    """A copy of JSON values with one changed, or left out for None."""
    values = json.loads(json.dumps(values))
    *above, last = path
    inner = values
    for key in above:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 2, "is no manifest of format 1"),
        (["format"], None, "is no manifest of format 1"),
        (["shape"], None, "is damaged: .*'shape'"),
        (["shape"], [1, 5], "is damaged: shape is"),
        (["shape"], [2, 5, 4], "is damaged: shape is"),
        (["shape"], 5, "is damaged: shape: expected"),
        (["shape", 1], "5", r"is damaged: shape\[1\]: expected int, got '5'"),
        (["binarization"], "auto", "is damaged: binarization is 'auto'"),
        (["extra"], 1, "is damaged: unknown setting 'extra'"),
        (["splits", "valid"], None, "is damaged: splits are train, test"),
        (["splits", "train", "shards"], [], "is damaged: a split has no shards"),
        (["splits", "train", "mean_pixel"], 2.0, "is damaged: a mean pixel is 2.0"),
        (["splits", "train", "sha256"], "", "is damaged: a SHA-256 is ''"),
        (["splits", "train", "shards", 0, "images"], 0, "is damaged: train-00000.npy has 0 images"),
        (["splits", "train", "shards", 0, "images"], 10**30, "is damaged: expected"),
        (["splits", "train", "shards", 0, "sha256"], "x", "is damaged: the SHA-256 of train-00000.npy is 'x'"),
        (["splits", "train", "shards", 0, "file"], "../secret.npy", "'../secret.npy' is no name of a shard"),
        (["splits", "train", "shards", 0, "file"], "/secret.npy", "is damaged: '/secret.npy' is no name of a shard"),
        (["splits", "train", "shards", 0], "train-00000.npy", "is damaged: .*expected an object"),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_one_line(copy, path, value, message):
    manifest = copy / "manifest.json"
    manifest.write_text(json.dumps(changed(json.loads(manifest.read_text()), path, value)))
    with pytest.raises(UserError, match=message) as caught:
        load_data(settings_of(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": NaN}', '{"format": 1, "format": 1}', "\xff"])
def test_a_manifest_that_is_no_json_is_one_line(copy, text):
    (copy / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest.json (is|cannot be read)"):
        load_data(settings_of(copy))


def test_check_finds_a_pixel_that_has_changed(copy):
    path = copy / "train-00002.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    load_data(settings_of(copy))  # which does not read it all
    states = {one.path.name: one.state for one in shards.check(copy)}
    assert states.pop("train-00002.npy") == "damaged"
    assert set(states.values()) == {"ok"}
    assert {"train-labels.npy", "valid-00000.npy", "test-labels.npy"} <= states.keys()


# What can be asked of a pack, and its facts.


def test_the_images_checksum_is_that_of_the_pixels(packed):
    assert load_data(settings_of(packed)).images_sha256 == hashlib.sha256(images(30)).hexdigest()


@pytest.mark.parametrize("asked", ["none", "stochastic"])
def test_grey_pixels_can_be_read_either_way(packed, asked):
    assert load_data(settings_of(packed, binarization=asked)).binarization == asked


def test_two_valued_pixels_are_static_whatever_is_asked(tmp_path):
    bits = of_splits(**{split: images(9) // 128 * 255 for split in SPLITS})
    write_shards(tmp_path / "packed", bits, binarization="none")
    assert load_data(settings_of(tmp_path / "packed", binarization="none")).binarization == "static"


def test_static_pixels_are_drawn_when_packing_and_not_later(packed):
    with pytest.raises(UserError, match=r"has binarization stochastic: .* pack it with --binarization static"):
        load_data(settings_of(packed, binarization="static"))


@pytest.mark.parametrize("changes", [{"size": "32"}, {"grey": True}])
def test_settings_of_folders_are_refused(packed, changes):
    with pytest.raises(UserError, match="are for folder:PATH, not for packed:"):
        load_data(settings_of(packed, **changes))


def test_a_bare_folder_is_told_to_be_a_pack(packed):
    with pytest.raises(UserError, match=f"is a folder: write packed:{packed}"):
        load_data(DataConfig(str(packed)))


# The command line.


@pytest.fixture
def draw(capsys):
    """Runs a command line; gives its exit code, stdout and stderr."""

    def call(*arguments):
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a set in a file and packed."""
    place = tmp_path_factory.mktemp("cli")
    small = data_set(height=8, width=6)
    np.savez(place / "small.npz", **{split: x.numpy() for split, x in small.images.items()})
    assert cli.main(["data", "pack", f"{place}/small.npz", "--out", f"{place}/packed", "--shard-mb", "0.001"]) == 0
    return place


def test_pack_says_what_it_made(draw, place, tmp_path):
    code, out, _ = draw("data", "pack", place / "small.npz", "--out", tmp_path / "p", "--grey", "--json")
    assert code == 2
    assert out == ""
    code, out, _ = draw("data", "pack", place / "small.npz", "--out", tmp_path / "p", "--json")
    assert (code, json.loads(out)) == (0, {"pack": str(tmp_path / "p")})
    code, out, _ = draw("data", "pack", place / "small.npz", "--out", tmp_path / "q")
    assert code == 0
    assert "1 x 8 x 6 (channels, height, width); train 40, valid 11, test 13; binarization static" in out


def test_a_second_pack_is_refused_in_one_line(draw, place):
    before = {path: path.read_bytes() for path in (place / "packed").iterdir()}
    code, out, err = draw("data", "pack", place / "small.npz", "--out", place / "packed")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert {path: path.read_bytes() for path in (place / "packed").iterdir()} == before


def test_check_tells_good_from_bad(draw, place, tmp_path):
    copy = shutil.copytree(place / "packed", tmp_path / "copy")
    code, out, _ = draw("data", "check", f"packed:{copy}")
    assert (code, out.count("ok ")) == (0, len([*copy.glob("*.npy")]))
    damage_truncated(copy)
    code, out, err = draw("data", "check", f"packed:{copy}", "--json")
    assert code == 2
    assert json.loads(out)[str(copy / "train-00001.npy")] == "damaged"
    assert err.count("\n") == 1
    assert "files are missing or damaged; pack the set again" in err


def test_every_command_does_the_same_with_a_pack(draw, place, tmp_path, monkeypatch):
    results = []
    monkeypatch.chdir(place)  # the run remembers where the pack is
    for name, source in (("file", "small.npz"), ("pack", "packed:packed")):
        run = tmp_path / name
        steps = ("--iterations", 6, "--device", "cpu", *SMALL)
        assert draw("train", "demo", "--data", source, "--out", run, *steps)[0] == 0
        monkeypatch.chdir(tmp_path)
        code, out, _ = draw("evaluate", run, "--json", "--importance-samples", 2)
        assert code == 0
        pictures = [
            ("data", "preview", json.loads((run / "config.json").read_text())["data"]["source"], "-n", 9),
            ("reconstruct", run),
            ("figure", "3", run),
            ("figure", "6", run, "-n", 2),
        ]
        drawn = []
        for command in pictures:
            assert draw(*command, "--out", tmp_path / "p.png")[0] == 0
            drawn.append((tmp_path / "p.png").read_bytes())
        results.append((json.loads(out) | {"seconds": 0}, drawn))
        monkeypatch.chdir(place)
    assert results[0] == results[1]


def test_a_run_goes_on_from_the_pack_of_its_images(draw, place, tmp_path):
    steps = ("--out", tmp_path / "r", "--device", "cpu")
    assert draw("train", "demo", "--data", place / "small.npz", "--iterations", 2, *steps, *SMALL)[0] == 0
    arguments = ("train", "--resume", *steps, "--data", f"packed:{place / 'packed'}", "--iterations", 4, "--json")
    code, out, err = draw(*arguments)
    assert code == 0, err
    assert json.loads(out)["step"] == 4


def test_other_images_do_not_go_on(draw, place, packed, tmp_path):
    steps = ("--out", tmp_path / "r", "--device", "cpu")
    assert draw("train", "demo", "--data", place / "small.npz", "--iterations", 2, *steps, *SMALL)[0] == 0
    other = write_shards(tmp_path / "o", of_splits(**{split: images(30, 8, 6) // 128 * 255 for split in SPLITS}))
    code, _, err = draw("train", "--resume", *steps, "--data", other.name, "--iterations", 4)
    assert (code, err.count("\n")) == (2, 1)
    assert "the images are not those that it was begun with" in err
