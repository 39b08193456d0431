"""Named data sets: downloads against a server on this machine, and the real files where they are."""

import errno
import gzip
import hashlib
import http.server
import io
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from draw import published, sources
from draw.errors import UserError
from draw.sources import File, Source

BODY = b"the published bytes " * 5000


class Server:
    """Files by path: bytes are sent; a number is an error; (bytes, length) claims another length."""

    def __init__(self):
        self.files, self.asked = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                answer = outer.files.get(self.path, 404)
                if isinstance(answer, int):
                    self.send_error(answer)
                    return
                if isinstance(answer, threading.Event):
                    answer.wait(10)
                    return
                body, length = answer if isinstance(answer, tuple) else (answer, len(answer))
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()  # polls, seconds

    def close(self):
        self.httpd.shutdown()
        self.httpd.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def toy(server, monkeypatch):
    """A set of one file on two mirrors, of which the second has it."""
    file = File("toy.bin", len(BODY), hashlib.sha256(BODY).hexdigest())
    mirrors = (f"{server.address}/one/", f"{server.address}/two/")
    source = Source("toy", "bytes", "none", folder="toys", files=(file,), mirrors=mirrors)
    monkeypatch.setitem(sources.SOURCES, "toy", source)
    server.files["/two/toy.bin"] = BODY
    return source


def failure(folder):
    """The line of a download that must fail, once it is sure that it left nothing behind."""
    with pytest.raises(UserError) as caught:
        sources.get("toy", folder)
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_downloaded(toy, tmp_path):
    folder = sources.get("toy", tmp_path)
    assert folder == tmp_path / "toys"
    assert (folder / "toy.bin").read_bytes() == BODY


def test_a_download_leaves_no_other_file(toy, tmp_path):
    sources.get("toy", tmp_path)
    assert [path.name for path in (tmp_path / "toys").iterdir()] == ["toy.bin"]


def test_progress_ends_at_the_whole_size(toy, tmp_path):
    calls = []
    sources.get("toy", tmp_path, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(BODY), len(BODY))


@pytest.mark.parametrize(
    "broken", [404, 500, b"x" * len(BODY), BODY[:-1], BODY + b"x", (BODY[:100], len(BODY)), b""], ids=repr
)
def test_the_next_mirror_is_tried_when_one_fails(toy, server, tmp_path, broken):
    server.files["/one/toy.bin"] = broken
    sources.get("toy", tmp_path)
    assert (tmp_path / "toys" / "toy.bin").read_bytes() == BODY
    assert server.asked == ["/one/toy.bin", "/two/toy.bin"]


def test_a_mirror_that_stalls_is_given_up(toy, server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT", 0.2)
    server.files["/one/toy.bin"] = release = threading.Event()
    start = time.monotonic()
    sources.get("toy", tmp_path)
    release.set()
    assert time.monotonic() - start < 8  # the server itself hangs up after 10
    assert (tmp_path / "toys" / "toy.bin").read_bytes() == BODY


def test_an_endless_body_is_given_up_soon(toy, server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_CHUNK", len(BODY))
    server.files["/one/toy.bin"] = BODY * 50
    calls = []
    sources.get("toy", tmp_path, lambda done, total: calls.append(done))
    assert len(calls) <= 4  # two chunks of the endless body, then the good one


def test_a_wrong_checksum_names_the_file_both_sums_and_leaves_nothing(toy, server, tmp_path):
    wrong = b"x" * len(BODY)
    server.files["/one/toy.bin"] = server.files["/two/toy.bin"] = wrong
    message = failure(tmp_path)
    assert "toys/toy.bin" in message
    assert f"expected sha256 {toy.files[0].sha256}, got {hashlib.sha256(wrong).hexdigest()}" in message


def test_a_full_disk_is_no_fault_of_the_mirror(toy, server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    server.files["/one/toy.bin"] = BODY
    monkeypatch.setattr(sources.os, "fdopen", Full)
    assert failure(tmp_path) == (
        f"cannot write to {tmp_path / 'toys'} (No space left on device): choose another by --data-dir or DRAW_DATA"
    )
    assert server.asked == ["/one/toy.bin"]


def test_a_truncated_body_leaves_nothing(toy, server, tmp_path):
    server.files["/one/toy.bin"] = server.files["/two/toy.bin"] = (BODY[:100], len(BODY))
    assert "got 100" in failure(tmp_path)


def test_without_a_network_one_line_says_what_to_put_where(toy, server, tmp_path):
    server.close()
    message = failure(tmp_path)
    assert "cannot download toys/toy.bin" in message
    assert f"put it into {tmp_path / 'toys'}" in message
    assert "DRAW_DATA" in message
    assert "refused" in message


def test_an_interrupted_download_leaves_nothing(toy, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sources.get("toy", tmp_path, interrupt)
    assert list((tmp_path / "toys").iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_named(toy, tmp_path):
    (tmp_path / "toys").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write to .*toys.*--data-dir"):
        sources.get("toy", tmp_path)


def test_verified_files_are_not_downloaded_again(toy, server, tmp_path):
    sources.get("toy", tmp_path)
    server.asked.clear()
    sources.get("toy", tmp_path)
    assert server.asked == []


def test_a_damaged_file_is_downloaded_anew(toy, tmp_path):
    sources.get("toy", tmp_path)
    (tmp_path / "toys" / "toy.bin").write_bytes(b"x" * len(BODY))
    sources.get("toy", tmp_path)
    assert (tmp_path / "toys" / "toy.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("content", "state", "detail"),
    [(None, "missing", ""), (BODY, "ok", ""), (BODY[:-1], "damaged", "bytes"), (b"x" * len(BODY), "damaged", "sha256")],
)
def test_check_tells_the_state_of_each_file(toy, tmp_path, content, state, detail):
    path = tmp_path / "toys" / "toy.bin"
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    (checked,) = sources.check("toy", tmp_path)
    assert (checked.path, checked.state) == (path, state)
    assert detail in checked.detail


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'fashion-mnist'"):
        sources.find("fashion_mnist")


def test_available_tells_which_sets_need_no_download(toy, tmp_path):
    sources.get("toy", tmp_path)
    assert {name for name, here in sources.available(tmp_path).items() if here} == {"glyphs", "toy"}


def test_the_data_folder_is_argument_then_environment_then_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.delenv("DRAW_DATA", raising=False)
    assert sources.data_folder() == Path("/cache/draw")
    monkeypatch.setenv("DRAW_DATA", "/env")
    assert sources.data_folder() == Path("/env")
    assert sources.data_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("platform", "folder"),
    [("linux", "/me/.cache/draw"), ("darwin", "/me/Library/Caches/draw"), ("win32", "/me/L/draw")],
)
def test_the_cache_folder_is_the_platforms(monkeypatch, platform, folder):
    for name in ("DRAW_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/me")
    monkeypatch.setenv("LOCALAPPDATA", "/me/L")
    monkeypatch.setattr(sys, "platform", platform)
    assert sources.data_folder() == Path(folder)


@pytest.mark.parametrize("source", [s for s in sources.SOURCES.values() if s.files], ids=lambda s: s.name)
def test_every_published_set_has_two_addresses(source):
    assert len(source.mirrors) >= 2
    assert all(mirror.endswith("/") for mirror in source.mirrors)


# The real files.


@pytest.mark.parametrize("name", [name for name, source in sources.SOURCES.items() if source.files])
def test_real_files_have_the_pinned_checksums(shared_data, name):
    checked = sources.check(name, shared_data)
    assert checked
    assert {file.state for file in checked} == {"ok"}


@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1306), ("fashion-mnist", 0.2860)])
def test_mnist_like_sets_hold_out_the_last_10_000(shared_data, name, mean):
    arrays = published.read(name, shared_data)
    assert {split: x.shape for split, x in arrays.images.items()} == {
        "train": (50_000, 1, 28, 28),
        "valid": (10_000, 1, 28, 28),
        "test": (10_000, 1, 28, 28),
    }
    everything = np.concatenate([arrays.images["train"], arrays.images["valid"]])
    assert everything.mean() / 255 == pytest.approx(mean, abs=2e-3)  # 0.1307 and 0.2860 are widely quoted
    raw = gzip.decompress((shared_data / name.replace("-", "_") / "train-images-idx3-ubyte.gz").read_bytes())
    assert everything.tobytes() == raw[16:]


def test_mnist_labels_belong_to_their_images(shared_data):
    labels = published.read("mnist", shared_data).labels
    assert labels["train"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # the best known digits of all
    assert labels["test"][:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.fixture(scope="module")
def binarized(shared_data):
    return published.read("binarized-mnist", shared_data)


@pytest.mark.parametrize(
    ("split", "n", "mean"), [("train", 50, 0.130562), ("valid", 10, 0.131127), ("test", 10, 0.132512)]
)
def test_binarized_mnist_has_its_published_means(binarized, split, n, mean):
    images = binarized.images[split]
    assert images.shape == (n * 1000, 1, 28, 28)
    assert set(np.unique(images)) == {0, 255}
    assert images.mean() / 255 == pytest.approx(mean, abs=5e-7)


def test_binarized_mnist_tests_are_the_digits_of_mnist_sorted_by_class(binarized, shared_data):
    mnist = published.read("mnist", shared_data)
    grey = mnist.images["test"][np.argsort(mnist.labels["test"], kind="stable")]
    bits = binarized.images["test"]
    assert not bits[grey == 0].any()
    assert bits[grey == 255].all()
    np.testing.assert_array_equal(binarized.labels["test"], np.sort(mnist.labels["test"]))


def test_binarized_mnist_is_read_from_the_original_text_files(binarized, tmp_path):
    folder = tmp_path / "binarized_mnist"
    folder.mkdir()
    for split, images in binarized.images.items():
        text = np.full((len(images), 784, 2), ord(" "), np.uint8)
        text[..., 0] = ord("0") + images.reshape(-1, 784) // 255
        text[:, -1, 1] = ord("\n")
        text.tofile(folder / f"binarized_mnist_{split}.amat")
    assert {file.state for file in sources.check("binarized-mnist", tmp_path)} == {"ok"}  # these are the real files
    again = published.read("binarized-mnist", tmp_path)
    for split, images in binarized.images.items():
        np.testing.assert_array_equal(again.images[split], images)
    assert again.labels == {}


@pytest.mark.parametrize("mark", [b"2", b"/", b" "])
def test_a_foreign_character_in_a_text_file_is_noticed(tmp_path, monkeypatch, mark):
    text = bytearray(b"0 " * 783 + b"0\n")
    text[100:101] = mark
    with pytest.raises(ValueError, match="zeros and ones"):
        published._read_amat(np.frombuffer(bytes(text), np.uint8), 1)


@pytest.fixture(scope="module")
def cifar10(shared_data):
    return published.read("cifar10", shared_data)


def test_cifar10_batches_have_the_published_md5(cifar10):
    """Label byte and planes of each batch, as in the official data_batch_1.bin to data_batch_5.bin."""
    expected = [
        "5dd7e06a14cb22eb9f671a540d1b7c25",
        "5ea93a67294ea407fff1d09f752e9692",
        "942cd6a4bcdd0dd3c604fbe906cb4421",
        "ae636b3ba5c66a11e91e8cb52e771fcb",
        "53f37980c15c3d472c316c40844f3f0d",
    ]
    images = cifar10.images["train"].reshape(5, 10_000, 3072)
    labels = cifar10.labels["train"].reshape(5, 10_000, 1).astype(np.uint8)
    found = [hashlib.md5(np.concatenate([labels[i], images[i]], axis=1).tobytes()).hexdigest() for i in range(5)]
    assert found == expected


def test_a_part_of_the_cifar10_test_set_is_said_to_be_one(cifar10):
    assert cifar10.images["test"].shape == (1000, 3, 32, 32)
    assert cifar10.notes == ("test: the first 1,000 of 10,000",)


def test_the_published_cifar10_archive_is_read(tmp_path, monkeypatch):
    batches = {}
    path = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for i, name in enumerate(
            ["data_batch_2", "test_batch", "data_batch_1", *(f"data_batch_{i}" for i in (5, 4, 3))]
        ):
            records = np.zeros((10_000, 3073), np.uint8)
            records[:, 0], records[0, 1:] = i, np.arange(3072)
            batches[name] = records
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = records.nbytes
            archive.addfile(member, io.BytesIO(records.tobytes()))
    file = File(path.name, path.stat().st_size, "")
    monkeypatch.setitem(sources.SOURCES, "cifar10", Source("cifar10", "", "", folder="cifar10", files=(file,)))
    arrays = published.read("cifar10", tmp_path)
    assert arrays.images["train"].shape == (50_000, 3, 32, 32)
    assert arrays.labels["train"][::10_000].tolist() == [2, 0, 5, 4, 3]  # batch 1, 2, 3, 4, 5
    assert arrays.labels["test"].tolist() == [1] * 10_000
    np.testing.assert_array_equal(arrays.images["test"][0].ravel(), np.arange(3072).astype(np.uint8))
    assert arrays.notes == ()


def test_the_omniglot_derivation_is_the_exact_area_average(shared_data):
    small = published.read("omniglot", shared_data).images
    for file, split in (("images_background.npz", "train"), ("images_evaluation.npz", "test")):
        with np.load(shared_data / "omniglot" / file) as arrays:
            ink = ~arrays["images"][-100:].reshape(-1, 105, 105)
        np.testing.assert_array_equal(published.area_average(ink), small[split][-2000:])


def test_omniglot_labels_count_characters(shared_data):
    labels = published.read("omniglot", shared_data).labels
    assert len(set(labels["train"].tolist()) | set(labels["test"].tolist())) == 1623
    with np.load(shared_data / "omniglot" / "images_background.npz") as arrays:
        np.testing.assert_array_equal(labels["train"], arrays["labels"].ravel())


def omniglot_zip(path, first, characters, masks):
    """An archive like the published ones; alphabets are not in the order of the numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/", "")
        for character in range(characters):
            for drawer in range(20):
                name = f"images/{'ZA'[character % 2]}/c{character}/{first + character:04}_{drawer + 1:02}.png"
                stream = io.BytesIO()
                Image.fromarray(~masks[character * 20 + drawer]).save(stream, "png")
                archive.writestr(name, stream.getvalue())


def test_the_published_omniglot_archives_are_read_in_the_order_of_their_numbers(tmp_path):
    masks = np.random.default_rng(0).random((60, 105, 105)) < 0.3
    omniglot_zip(tmp_path / "a.zip", 1, 3, masks)
    images = published._read_drawings(tmp_path / "a.zip", 3)
    np.testing.assert_array_equal(images, published.area_average(masks))


def test_damaged_published_files_give_one_line(tmp_path, shared_data):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for file in sources.find("mnist").files:
        (folder / file.name).write_bytes((shared_data / "mnist" / file.name).read_bytes())
    path = folder / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    where = r"^mnist/t10k-images-idx3-ubyte.gz is damaged: [^\n]*; run `draw data check mnist`$"
    for damaged in (
        whole[:1000],
        b"",
        whole[:5000] + b"\0" * 100 + whole[5100:],
        gzip.compress(b"x").ljust(len(whole)),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=where):
            published.read("mnist", tmp_path)


def test_a_truncated_published_file_is_told_by_its_size(tmp_path, shared_data):
    path = tmp_path / "omniglot" / "omniglot_28x28.npz"
    path.parent.mkdir()
    path.write_bytes((shared_data / "omniglot" / path.name).read_bytes()[:1000])
    with pytest.raises(UserError, match=r"is damaged: it has 1,000 bytes instead of 4,041,889; run"):
        published.read("omniglot", tmp_path)


@pytest.mark.parametrize("name", ["binarized-mnist", "omniglot"])
def test_a_damaged_compact_file_gives_one_line(tmp_path, shared_data, name):
    source = sources.find(name)
    path = tmp_path / source.folder / source.compact[0].name
    path.parent.mkdir()
    content = bytearray((shared_data / source.folder / path.name).read_bytes())
    content[50_000:50_100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged: .*; run `draw data check {name}`"):
        published.read(name, tmp_path)
