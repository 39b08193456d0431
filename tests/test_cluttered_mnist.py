"""The classifier of cluttered MNIST: what lies on a page, and that it learns, measures and goes on."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from draw import kernels
from draw.data import DataSet
from draw.errors import NonFiniteError, UserError
from draw.noise import seeded

SCRIPT = Path(__file__).parents[1] / "examples" / "cluttered_mnist.py"
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("cluttered_mnist", SCRIPT)
    module = sys.modules["cluttered_mnist"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stripes(n=40):
    """Digits that are told apart by where their ink is: bright rows, as many from the top as the label says."""
    labels = torch.arange(n) % 10
    images = (torch.arange(28)[:, None] < 2 * labels[:, None, None] + 8).expand(n, 28, 28) * 255
    return images.to(torch.uint8)[:, None], labels


@pytest.fixture(scope="module")
def data():
    images, labels = stripes()
    return DataSet("stripes", dict.fromkeys(SPLITS, images), dict.fromkeys(SPLITS, labels), "none")


def small(example, **changes):
    sizes = {"glimpses": 2, "read_n": 3, "size": 16, "batch_size": 10, "iterations": 8}
    return example.Settings(**(sizes | changes))


def test_a_page_holds_its_digit_whole(example):
    digits = torch.randint(1, 256, (5, 1, 28, 28), generator=seeded("digits"), dtype=torch.uint8)
    for digit, page in enumerate(example.clutter(digits, torch.arange(5), seeded("pages"))):
        places = (page[0].unfold(0, 28, 1).unfold(1, 28, 1) >= digits[digit] / 255 - 1e-6).flatten(2).all(-1)
        assert places.any()


def test_the_ink_of_a_page_is_that_of_a_digit_and_eight_crops_where_none_of_it_is_clipped(example):
    pages = example.clutter(torch.full((3, 1, 28, 28), 10, dtype=torch.uint8), torch.arange(3), seeded("ink"))
    assert pages.shape == (3, 1, 100, 100)
    assert_close(pages.sum((1, 2, 3)), torch.full((3,), (784 + 8 * 64) * 10 / 255))


def test_the_ink_of_a_page_is_clipped(example):
    digits = torch.full((1, 1, 28, 28), 200, dtype=torch.uint8)
    pages = example.clutter(digits, torch.zeros(50, dtype=torch.int64), seeded("clip"))
    assert_close(pages.unique(), torch.tensor([0, 200 / 255, 1]))


def test_digits_and_crops_lie_anywhere_on_a_page(example):
    digits = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    digits[0] = 255  # the second is empty: what a page of it shows is crops of the first
    n = 4000
    of_digits = example.clutter(digits[:1], torch.zeros(n, dtype=torch.int64), seeded("digits"))
    of_crops = example.clutter(digits, torch.ones(n, dtype=torch.int64), seeded("crops"))
    for pages in (of_digits, of_crops):
        ink = pages.mean((0, 1))
        assert_close(ink, ink.flip(0), atol=0.06, rtol=0)  # 4,000 pages: a standard error of at most 0.008
        assert_close(ink, ink.T, atol=0.06, rtol=0)
        assert all((edge > 0).any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
    assert_close(of_crops.mean(), torch.tensor(4 * 64 / 1e4), atol=1e-3, rtol=0)  # half of eight, a few clipped


def test_crops_are_of_all_places_of_a_digit(example):
    digits = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    digits[0] = torch.arange(28, dtype=torch.uint8)[:, None]  # the grey value is the row
    pages = example.clutter(digits, torch.ones(400, dtype=torch.int64), seeded("crops"))
    assert {0, 1, 14, 26, 27} <= set((255 * pages).round().int().unique().tolist())


def test_pages_are_fresh_and_a_function_of_the_generator(example, data):
    digits, index = data.images["train"], torch.arange(4)
    one, again, other = (example.clutter(digits, index, seeded(key)) for key in (1, 1, 2))
    assert_close(one, again, atol=0, rtol=0)
    assert (one != other).flatten(1).any(1).all()


def test_the_first_window_lies_over_the_whole_page(example):
    classifier = example.Classifier(example.Settings(glimpses=1))
    _, windows = classifier(torch.zeros(1, 1, 100, 100))
    ends = [windows.g_X.item() + side * 5.5 * windows.delta.item() for side in (-1, 1)]
    assert_close(torch.tensor(ends), torch.tensor([49.5 - 5.5 * 100 / 12, 49.5 + 5.5 * 100 / 12]))


def test_every_weight_has_a_part_in_the_answer(example, data):
    classifier = example.Classifier(small(example))
    logits, _ = classifier(example.clutter(data.images["train"], torch.arange(10), seeded("x")))
    logits[-1].square().sum().backward()
    assert all((p.grad != 0).any() for p in classifier.parameters())


def test_it_learns(example, data, tmp_path):
    run = example.Run(small(example, iterations=400, read_n=12, size=64, learning_rate=1e-2), data, tmp_path)
    losses = [run.train_step()[0] for _ in range(400)]
    assert sum(losses[:20]) / 20 > 2.2  # nearly log 10, as who guesses
    assert sum(losses[-20:]) / 20 < 1.9
    assert run.measure(1)["error_percent"] < 75


def test_without_a_compiler_the_fast_way_is_one_line(example, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kernels, "find_compiler", lambda: None)
    monkeypatch.setattr(sys, "argv", ["cluttered_mnist.py", "--out", str(tmp_path / "out"), "--fast"])
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert "--fast needs a C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(kernels.find_compiler() is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_the_fast_way_has_the_gradients_of_the_plain_one():
    script = Path(__file__).with_name("compiled_classifier.py")
    run = subprocess.run([sys.executable, script, SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(example, data, tmp_path):
    settings = small(example)
    whole = example.Run(settings, data, tmp_path / "whole")
    example.train(whole, 1e9)
    stopped = example.Run(settings, data, tmp_path / "stopped")
    for _ in range(3):
        stopped.train_step()
    stopped.save()
    resumed = example.Run(settings, data, tmp_path / "stopped")
    assert resumed.step == 3
    example.train(resumed, 1e9)
    for name, tensor in whole.tensors().items():
        assert_close(resumed.tensors()[name], tensor, atol=0, rtol=0, msg=name)


def test_a_folder_of_another_run_is_left_alone(example, data, tmp_path):
    example.Run(small(example), data, tmp_path).save()
    before = (tmp_path / example.STATE).read_bytes()
    with pytest.raises(UserError, match=r"was begun with .*\"glimpses\": 2.*another --out"):
        example.Run(small(example, glimpses=3), data, tmp_path)
    assert (tmp_path / example.STATE).read_bytes() == before


def test_a_gradient_that_is_not_finite_changes_nothing(example, data, tmp_path):
    run = example.Run(small(example), data, tmp_path)
    with torch.no_grad():
        run.model.to_logits.bias[0] = float("inf")
    before = {name: tensor.clone() for name, tensor in run.tensors().items()}
    with pytest.raises(NonFiniteError, match="step 0: the gradient is not finite"):
        run.train_step()
    for name, tensor in before.items():
        assert_close(run.tensors()[name], tensor, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"junk"), "cannot be read"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), "was begun with other settings"),
        (lambda path: save_file({"a": torch.zeros(1)}, path, metadata_of(path)), "is damaged: a is"),
    ],
)
def test_a_spoilt_state_is_refused_in_one_line(example, data, tmp_path, spoil, message):
    example.Run(small(example), data, tmp_path).save()
    spoil(tmp_path / example.STATE)
    with pytest.raises(UserError, match=message):
        example.Run(small(example), data, tmp_path)


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_measured_error_counts_every_test_digit_once_a_draw(example, data, tmp_path):
    run = example.Run(small(example), data, tmp_path)
    with torch.no_grad():
        run.ema.to_logits.weight.zero_()
        run.ema.to_logits.bias.copy_(torch.eye(10)[3])  # always says 3, of which there are 4 in 40
    measured = run.measure(2)
    assert measured["error_percent"] == pytest.approx(90)
    assert measured["error_percent_se"] == pytest.approx(100 * (0.9 * 0.1 * 40 / 39 / 40) ** 0.5)
    assert (measured["digits"], measured["pages_of_each"]) == (40, 2)


def test_the_command_trains_measures_and_draws_on_real_digits(example, shared_data, tmp_path):
    sizes = [f"--{name}={value}" for name, value in (("glimpses", 2), ("size", 8), ("iterations", 3))]
    command = [sys.executable, SCRIPT, "--out", tmp_path, "--data-dir", shared_data, "--draws", "1", *sizes]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(ran.stdout.splitlines()[-1])
    assert measured == json.loads((tmp_path / "measured.json").read_text())
    assert measured["step"] == 3
    assert measured["digits"] == 10_000
    assert 80 < measured["error_percent"] < 97
    assert (tmp_path / "glimpses.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--measure",), "holds no state.safetensors to measure"),
        (("--glimpses", "0"), "glimpses must be at least 1, got 0"),
        (("--batch-size", "0"), "batch_size must be at least 1, got 0"),
        (("--draws", "0"), "draws must be at least 1, got 0"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(example, shared_data, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(
        sys, "argv", ["cluttered_mnist.py", "--out", str(tmp_path), "--data-dir", str(shared_data), *flags]
    )
    with pytest.raises(SystemExit) as stopped:
        example.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
