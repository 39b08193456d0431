"""Measuring speed: what is timed, in which order, beside which floor, and what the reports say."""

import dataclasses
import gc
import itertools
import json
import os
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from draw import bench, cli, growth
from draw.bench import Call, First, Pair, Task
from draw.config import SpeedConfig
from draw.errors import UserError
from draw.presets import preset
from test_cli import refused  # noqa: F401  # a fixture
from tiny import config

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
CPU = torch.device("cpu")
TINY = ["--preset", "demo", "--height", "6", "--width", "5", "--steps", "3", "--enc-size", "7", "--dec-size", "6",
        "--batch-size", "4", "--repeats", "2", "--device", "cpu"]  # fmt: skip


def tiny_task(what="train", *, images=8, batch_size=8, **sizes):
    return Task(what, config(**sizes), images, batch_size, "cpu")


@pytest.fixture
def no_processes(monkeypatch):
    """Instead of fresh processes, what they would have told: 2 seconds, and bytes that grow with the task."""

    def first(task, speed):
        return First(2.0, 1_000_000 + 10 * task.images * task.model.steps)

    for module in (bench, growth):
        monkeypatch.setattr(module, "in_fresh_process", first)
    monkeypatch.setattr(bench, "whole_process", lambda task, repeats: Pair(3.0, 4.0))


# The floor


@pytest.mark.parametrize("sizes", [{}, {"read_n": None, "write_n": None}, {"read_n": None}])
def test_the_floor_of_a_glimpse_counts_every_linear_layer_once(sizes):
    model = tiny_task(**sizes).network()
    layers = {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    found = bench.products(model, 5)
    assert sorted(product.layer for product in found) == sorted(layers)
    for product in found:
        assert product.rows == 5
        assert torch.equal(product.weight, layers[product.layer])


def test_the_floor_of_drawing_leaves_out_what_looks_at_images():
    found = bench.products(tiny_task().network(), 5, generate=True)
    assert {product.layer for product in found} == {"decoder.to_gates", "write.to_window", "write.to_patch"}


@pytest.mark.parametrize(("what", "times"), [("train", 3), ("evaluate", 1), ("sample", 1)])
def test_the_floor_multiplies_as_often_as_the_network(monkeypatch, what, times):
    task = tiny_task(what)
    calls = bench.floor_calls(task, "float32")
    multiplications = 0

    def count(a, b, *, out):
        nonlocal multiplications
        multiplications += a.shape[0] * a.shape[1] * b.shape[1]
        assert out.shape == (a.shape[0], b.shape[1])

    monkeypatch.setattr(torch, "mm", count)
    for call in calls.values():
        call.run()
    network = task.network()
    running = (network.decoder, network.write) if what == "sample" else (network,)
    layers = [layer for part in running for layer in part.modules() if isinstance(layer, nn.Linear)]
    weights = sum(layer.weight.numel() for layer in layers)
    assert multiplications == times * task.model.steps * task.batch_size * weights


def test_the_floor_of_many_batches_is_that_of_one_times_their_number(monkeypatch, no_processes):
    monkeypatch.setattr(bench, "alternate", lambda calls, *_: dict.fromkeys(calls, Pair(1.0, 2.0)))
    task = tiny_task("evaluate", images=24, batch_size=8)
    report = bench.measure(task, "tiny", SpeedConfig())
    assert report.floor_s == Pair(3.0 * 7, 6.0 * 7)  # three batches of seven linear layers
    assert report.fast_over_floor == Pair(1 / 21, 2 / 42)


# Timing


def test_calls_are_timed_in_turn_and_warm_up_is_not_counted(monkeypatch):
    order, clock = [], itertools.count()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    calls = {name: Call(lambda name=name: order.append((name, gc.isenabled()))) for name in "ab"}
    seconds = bench.alternate(calls, CPU, 3)
    rounds = bench.warmup_rounds(CPU) + 3
    assert order == [("a", False), ("b", False)] * rounds
    assert seconds == {"a": Pair(1.0, 1.0), "b": Pair(1.0, 1.0)}
    assert gc.isenabled()


def test_of_the_repeats_the_least_and_the_median_are_kept(monkeypatch):
    ticks = itertools.chain.from_iterable((10.0 * i, 10.0 * i + d) for i, d in enumerate([99, 99, 5, 1, 2]))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(ticks))
    assert bench.alternate({"a": Call(lambda: None)}, CPU, 3) == {"a": Pair(1.0, 2.0)}


def test_a_call_in_a_row_is_timed_as_one(monkeypatch):
    clock = itertools.count(step=8)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    assert bench.alternate({"a": Call(lambda: None, row=4)}, CPU, 1) == {"a": Pair(2.0, 2.0)}


def test_a_training_step_is_what_is_timed():
    task = tiny_task()
    call = task.prepare(task.data(), SpeedConfig())
    trainer = call.run.__closure__[0].cell_contents
    assert (trainer.step, trainer.config.train.batch_size) == (0, 8)
    call.run()
    assert trainer.step == 1


# Memory


def test_a_fresh_process_measures_its_own_memory_not_its_parents():
    canvas = 4 * 16 * 400 * 400  # bytes
    ballast = bytearray(os.urandom(1) * 400_000_000)
    first = bench.in_fresh_process(tiny_task("sample", images=16, height=400, width=400), SpeedConfig())
    assert 2 * canvas < first.peak_bytes < len(ballast)
    assert first.seconds > 0


# Reports


@pytest.mark.parametrize("what", ["train", "evaluate", "sample"])
def test_a_report_has_seconds_of_both_paths_their_ratios_and_its_circumstances(no_processes, what):
    report = bench.measure(tiny_task(what), "tiny", SpeedConfig(), against_plain=True, repeats=2)
    assert report.plain_over_fast == report.plain_s.over(report.fast_s)
    assert report.fast_over_floor == report.fast_s.over(report.floor_s)
    assert report.images_per_s == pytest.approx(8 / report.fast_s.median)
    assert 0 < report.floor_s.min < report.fast_s.min < 1
    assert (report.first_step_s, report.plain_first_step_s) == (2.0, 2.0)
    assert report.process_s == (Pair(3.0, 4.0) if what == "sample" else None)
    assert report.hardware.keys() == {"processor", "cores", "threads", "device"}
    assert report.hardware["threads"] == torch.get_num_threads()
    assert report.versions["torch"] == torch.__version__
    assert report.config["model"]["enc_size"] == 7
    json.dumps(dataclasses.asdict(report), allow_nan=False)


def test_another_precision_has_a_float32_floor_too(no_processes):
    report = bench.measure(tiny_task(), "tiny", SpeedConfig(precision="bfloat16"), repeats=1)
    assert report.floor_precision == "bfloat16"
    assert report.floor_float32_s.min > 0
    assert report.fast_over_floor == report.fast_s.over(report.floor_s)
    assert report.plain_s is report.plain_over_fast is report.plain_first_step_s is None


def test_the_whole_command_draws_from_a_checkpoint_made_for_it():
    assert 0.1 < bench.whole_process(tiny_task("sample", images=2, batch_size=2), 1).min < 60


def test_a_command_that_fails_is_an_error_line(monkeypatch):
    monkeypatch.setattr(bench.sys, "executable", "false")
    with pytest.raises(UserError, match="draw sample failed: no message"):
        bench.whole_process(tiny_task("sample"), 1)


# Growth


def test_a_power_law_is_found_again():
    law = growth.power_law([8, 16, 32, 64], [0.5 * size**1.7 for size in (8, 16, 32, 64)])
    assert (law.factor, law.exponent) == (pytest.approx(0.5), pytest.approx(1.7))


def test_a_power_law_passes_over_what_is_not_positive_and_needs_two_points():
    assert growth.power_law([1, 2, 4], [-1.0, 4.0, 16.0]).exponent == pytest.approx(2.0)
    assert growth.power_law([1, 2], [0.0, 4.0]) is None


def test_the_sizes_of_the_mnist_preset_are_swept():
    run = preset("mnist")
    task = Task("train", run.model, 100, run.train.batch_size, "cpu")
    found = {
        axis: dict(growth.scaled(task, axis, factor) for factor in growth.FACTORS[axis]) for axis in growth.FACTORS
    }
    assert {axis: list(sizes) for axis, sizes in found.items()} == {
        "steps": [8, 16, 32, 64], "batch": [25, 50, 100, 200], "side": [14, 28, 56, 112], "hidden": [64, 128, 256, 512],
    }  # fmt: skip
    assert found["side"][112].model.image_shape == (1, 112, 112)
    assert found["hidden"][64].model.enc_size == found["hidden"][64].model.dec_size == 64
    assert found["batch"][25].images == found["batch"][25].batch_size == 25


def test_memory_grows_by_what_is_above_one_glimpse_of_one_image(no_processes):
    sweep = growth.grow(tiny_task(steps=8), "tiny", SpeedConfig(), axes=("steps",), repeats=1)
    points = sweep.axes["steps"].points
    assert [point.peak_memory_bytes - point.fixed_memory_bytes for point in points] == [
        10 * (8 * steps - 1) for steps in (1, 2, 4, 8)
    ]
    assert sweep.axes["steps"].memory.exponent == pytest.approx(1, abs=0.1)


# The command


def bench_command(capsys, *arguments):
    assert cli.main(["bench", *[str(argument) for argument in arguments]]) == 0
    return capsys.readouterr().out


def test_all_reports_are_one_json_object_and_a_file_each(no_processes, capsys, tmp_path):
    result = json.loads(bench_command(capsys, "all", *TINY, "--images", 6, "--json", "--out", tmp_path / "new"))
    assert list(result) == ["train", "evaluate", "sample"]
    assert {what: report["images"] for what, report in result.items()} == {"train": 4, "evaluate": 6, "sample": 64}
    for what, report in result.items():
        assert json.loads((tmp_path / "new" / f"{what}.json").read_text()) == report


def test_the_table_begins_with_the_hardware_and_has_every_number(no_processes, capsys):
    text = bench_command(capsys, "train", *TINY, "--against", "plain", "--precision", "bfloat16")
    assert text.startswith("hardware  ")
    for name in ("plain, float32", "fast, bfloat16", "floor, bfloat16", "floor, float32", "plain / fast",
                 "fast / floor", "images per second", "first call            2.00 s", "peak memory"):  # fmt: skip
        assert f"\n{name}" in text


def test_growth_is_a_table_a_json_file_and_a_plot_for_each_axis(no_processes, capsys, tmp_path):
    text = bench_command(capsys, "--grow", *TINY, "--out", tmp_path)
    assert text.count("time ~ ") == 4
    result = json.loads((tmp_path / "grow.json").read_text())
    assert result["what"] == "grow"
    assert [point["size"] for point in result["axes"]["hidden"]["points"]] == [2, 4, 7, 14]
    for axis in result["axes"]:
        with Image.open(tmp_path / f"grow-{axis}.png") as image:
            assert image.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown what 'trian'; did you mean 'train'?"),
        (["--preset", "mnits"], "unknown --preset 'mnits'; did you mean 'mnist'?"),
        (["--against", "plane"], "unknown --against 'plane'; did you mean 'plain'?"),
        (["--repeats", "0"], "expected a whole number from 1 to 1,000,000, got '0'"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--images", "5"], "--images is for evaluate"),
        (["evaluate", "--grow"], "--grow is of training steps: leave out 'evaluate'"),
        (["--grow", "--against", "plain"], "--grow sweeps one path"),
        (["--grow"], "--grow needs a folder for its plots: --out DIR"),
        (["--out", "/proc/x"], "/proc/x"),
    ],
)
def test_a_mistake_is_one_line(refused, arguments, message):  # noqa: F811
    assert message in refused("bench", *arguments)


# The script for CUDA machines


def test_the_script_for_cuda_machines_asks_for_timings_that_the_command_knows():
    script = runpy.run_path(str(GPU))
    commands = script["bench_commands"](script["parsed"](["--out", "x"]))
    assert len(commands) == 3 * 3 + 2
    parser = cli.build_parser()
    for arguments in commands.values():
        assert parser.parse_known_args(arguments)[1] == []
