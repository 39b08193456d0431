"""A run's folder: logged, validated, stopped and gone on with as if there had been no stop."""

import dataclasses
import errno
import json
import shutil
import sys
from unittest.mock import MagicMock, Mock

import pytest
import torch

import draw
from draw import checkpoint, fast, run, training
from draw.data import DataSet
from draw.devices import choose_device
from draw.distributions import Bernoulli
from draw.errors import UserError
from draw.evaluation import evaluate
from draw.model import DRAW
from draw.run import Validation, train
from draw.training import Metrics, NonFiniteError
from small import data_set, small_config

CLOCK = ("seconds", "images_per_second")


def run_all(out, config=None, **options):
    return list(train(config or small_config(), out, data=data_set(), device="cpu", **options))


def stop_after(steps):
    """A `stop` that says yes after so many steps."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= steps


def without_clock(records):
    return [{k: v for k, v in r.items() if k not in CLOCK} for r in records if r["kind"] in ("train", "valid")]


def all_tensors(out):
    found = checkpoint.read(checkpoint.newest(out))
    return found.tensors() | {f"training {k}": v for k, v in found.tensors(checkpoint.TRAINING).items()}


def assert_same_run(one, other):
    assert checkpoint.newest(one).name == checkpoint.newest(other).name
    mine, theirs = all_tensors(one), all_tensors(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    assert without_clock(run.read_log(one)) == without_clock(run.read_log(other))
    assert checkpoint.find(one).step == checkpoint.find(other).step


@pytest.mark.parametrize("stops", [(5,), (4, 3), (1, 1, 1)])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path, stops):
    run_all(tmp_path / "whole")
    run_all(tmp_path / "parts", stop=stop_after(stops[0]))
    for steps in stops[1:]:
        run_all(tmp_path / "parts", resume=True, stop=stop_after(steps))
    assert checkpoint.read(checkpoint.newest(tmp_path / "parts")).step == sum(stops)
    run_all(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_crashed_between_checkpoints_goes_on_from_the_last_as_if_it_had_not(tmp_path, monkeypatch):
    run_all(tmp_path / "whole")
    step = training.Trainer.train_step

    def crashing(trainer, seconds):
        if trainer.step == 7:  # after the checkpoint of step 4 and the log line of step 6
            raise RuntimeError("power cut")
        step(trainer, seconds)

    monkeypatch.setattr(training.Trainer, "train_step", crashing)
    with pytest.raises(RuntimeError, match="power cut"):
        run_all(tmp_path / "parts")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # a line cut short
    monkeypatch.undo()
    run_all(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_first_line_of_the_log_is_the_run_itself(tmp_path):
    run_all(tmp_path / "r")
    first = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["kind"] == "run"
    assert first["config"] == json.loads((tmp_path / "r" / "config.json").read_text())
    assert first["environment"]["torch"] == torch.__version__
    assert first["images"] == {"train": 40, "valid": 11, "test": 13}
    assert {"commit", "device", "threads"} <= first["environment"].keys()


def test_records_come_at_their_steps(tmp_path):
    records = run_all(tmp_path / "r")
    assert [r.step for r in records if isinstance(r, Metrics)] == [2, 4, 6, 8, 10, 12]
    assert [r.step for r in records if isinstance(r, Validation)] == [4, 8, 12]
    assert all(r.images == 11 for r in records if isinstance(r, Validation))  # the validation split, all of it


def test_every_validation_leaves_pictures_of_samples_and_of_readings(tmp_path):
    run_all(tmp_path / "r")
    for kind in ("samples", "readings"):
        pictures = sorted(path.name for path in (tmp_path / "r" / kind).iterdir())
        assert pictures == ["step-00000004.png", "step-00000008.png", "step-00000012.png"]


def test_a_film_is_made_of_the_readings_of_a_run(tmp_path):
    run_all(tmp_path / "r", small_config(grow_from=1))
    frames = run.film(tmp_path / "r")
    assert len(frames) == 3
    assert len({frame.size for frame in frames}) == 1  # though at first there are fewer glimpses to show
    assert len({frame.tobytes() for frame in frames}) == 3
    assert [frame.tobytes() for frame in run.film(tmp_path / "r", most=1)] == [frames[-1].tobytes()]


def test_a_film_needs_readings(tmp_path):
    run_all(tmp_path / "r", small_config(validate_every=100), stop=stop_after(5))
    with pytest.raises(UserError, match="holds no readings to make a film of"):
        run.film(tmp_path / "r")


def test_a_damaged_reading_is_refused_by_its_name(tmp_path):
    run_all(tmp_path / "r")
    run.reading_of(tmp_path / "r", 8).write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"cannot read .*readings.step-00000008\.png"):
        run.film(tmp_path / "r")


def test_the_best_checkpoint_has_the_lowest_validation_bound(tmp_path):
    plain = data_set()
    dark, bright = torch.zeros_like(plain.images["train"]), torch.full_like(plain.images["valid"], 255)
    data = dataclasses.replace(plain, images=plain.images | {"train": dark, "valid": bright})
    records = list(train(small_config(iterations=60, learning_rate=0.02), tmp_path / "r", data=data, device="cpu"))
    validations = [r for r in records if isinstance(r, Validation)]
    lowest = min(validations, key=lambda r: r.bound_nats)
    assert lowest is not validations[-1]  # what is learned of dark images does not hold for bright ones
    assert [r.step for r in validations if r.best][-1] == lowest.step
    assert checkpoint.find(tmp_path / "r").step == lowest.step
    measured = draw.evaluate(draw.load(tmp_path / "r"), data, draw.EvalConfig(split="valid"))
    assert measured.bound_nats == pytest.approx(lowest.bound_nats)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path):
    run_all(tmp_path / "r", stop=stop_after(5))
    path = checkpoint.newest(tmp_path / "r")
    with pytest.raises(NonFiniteError, match=r"step \d+: .* is not finite"):
        run_all(tmp_path / "r", small_config(learning_rate=1e38), resume=True)
    assert checkpoint.newest(tmp_path / "r") == path
    assert all(t.isfinite().all() for t in all_tensors(tmp_path / "r").values())


def test_minutes_end_with_a_checkpoint_to_go_on_from(tmp_path):
    run_all(tmp_path / "r", small_config(iterations=10**9), minutes=0.01)
    found = checkpoint.read(checkpoint.newest(tmp_path / "r"))
    assert 0.6 <= found.seconds < 6
    assert found.step > 0


def test_a_schedule_in_minutes_ends_on_time_with_a_learning_rate_of_nearly_zero(tmp_path):
    config = small_config(schedule_minutes=0.05, validate_every=10**9)
    last = run_all(tmp_path / "r", config)[-1]
    assert isinstance(last, Validation)
    assert 3 <= last.seconds < 10
    log = [r for r in run.read_log(tmp_path / "r") if r["kind"] == "train"]
    assert log[-1]["learning_rate"] < 0.05 * config.train.learning_rate  # also where a step takes a third of a second


def test_a_finished_run_can_be_trained_longer(tmp_path):
    run_all(tmp_path / "r")
    assert run_all(tmp_path / "r", resume=True) == []
    assert run_all(tmp_path / "r", small_config(iterations=14), resume=True)[-1].step == 14


def test_log_lines_are_means_also_after_a_run_that_ended_between_two(tmp_path):
    run_all(tmp_path / "r", small_config(iterations=19, log_every=10))
    run_all(tmp_path / "r", small_config(iterations=20, log_every=10), resume=True)
    logged = [r for r in run.read_log(tmp_path / "r") if r["kind"] == "train"]
    assert [r["step"] for r in logged] == [10, 19, 20]
    # The last is of one step: divided by ten it would be a tenth.
    assert logged[2]["bound_nats"] == pytest.approx(logged[1]["bound_nats"], rel=0.4)


def refused(out, **options):
    with pytest.raises(UserError) as error:
        run_all(out, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert refused(tmp_path).endswith("exists already: choose another --out")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_took_no_step_can_be_begun_anew(tmp_path):
    run_all(tmp_path / "other", small_config(seed=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "train_step", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            run_all(tmp_path / "r")
    with (tmp_path / "r" / "metrics.jsonl").open() as log:
        first = log.readline()
    run_all(tmp_path / "r", small_config(seed=3))
    assert_same_run(tmp_path / "other", tmp_path / "r")
    # What is left where there was no room for the first checkpoint:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    (tmp_path / "full" / "metrics.jsonl").write_text(first)
    run_all(tmp_path / "full", small_config(seed=3))
    assert_same_run(tmp_path / "other", tmp_path / "full")


def test_a_run_that_took_steps_is_not_begun_anew_even_without_its_checkpoints(tmp_path):
    run_all(tmp_path / "r", stop=stop_after(2))
    assert refused(tmp_path / "r").endswith("exists already: go on with --resume, or choose another --out")
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    assert refused(tmp_path / "r").endswith("exists already: choose another --out")


def test_a_folder_that_another_process_began_to_train_in_since_is_not_begun_anew(tmp_path, monkeypatch):
    records = train(small_config(), tmp_path / "r", data=data_set(), device="cpu")
    digest = DataSet.images_sha256

    def meanwhile(data):  # while this run reads its images, another one is begun and ended
        monkeypatch.setattr(DataSet, "images_sha256", digest)
        run_all(tmp_path / "r", stop=stop_after(2))
        return digest.fget(data)

    monkeypatch.setattr(DataSet, "images_sha256", property(meanwhile))
    with pytest.raises(UserError, match="exists already"):
        next(records)
    assert checkpoint.read(checkpoint.newest(tmp_path / "r")).step == 2


def test_resuming_needs_a_checkpoint(tmp_path):
    assert "holds no checkpoint" in refused(tmp_path / "nothing", resume=True)


def test_a_run_can_be_resumed_from_its_first_moment(tmp_path):
    run_all(tmp_path / "whole")
    records = train(small_config(), tmp_path / "r", data=data_set(), device="cpu")
    next(records)
    records.close()  # before any checkpoint was due
    assert checkpoint.read(checkpoint.newest(tmp_path / "r")).step == 0
    run_all(tmp_path / "r", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "r")


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"batch_size": 4}, {"z_size": 5}, {"data_seed": 5}, {"clip_norm": 0.2}]
)
def test_what_is_trained_cannot_change_when_resuming(tmp_path, change):
    run_all(tmp_path / "r", stop=stop_after(1))
    before = (tmp_path / "r" / "config.json").read_bytes()
    assert f"with {next(iter(change))}" in refused(tmp_path / "r", config=small_config(**change), resume=True)
    assert (tmp_path / "r" / "config.json").read_bytes() == before


@pytest.mark.parametrize(("name", "value"), [("adam_power", 0.75), ("weight_decay", 0.0), ("learning_rate", 1e-4)])
def test_the_length_and_direction_of_steps_can_change_when_resuming(tmp_path, name, value):
    run_all(tmp_path / "r", stop=stop_after(1))
    run_all(tmp_path / "r", config=small_config(**{name: value}), resume=True)
    assert getattr(run.read_config(tmp_path / "r" / "config.json").train, name) == value
    assert [r["train"][name] for r in run.read_log(tmp_path / "r") if r["kind"] == "resume"] == [value]


def test_other_images_under_the_same_name_are_noticed_when_resuming(tmp_path):
    run_all(tmp_path / "r", stop=stop_after(1))
    with pytest.raises(UserError, match="are not those that it was begun with"):
        list(train(small_config(), tmp_path / "r", data=data_set(train=41), device="cpu", resume=True))


def test_other_validation_images_are_noticed_when_resuming(tmp_path):  # their bounds are not to be set side by side
    run_all(tmp_path / "r", stop=stop_after(1))
    with pytest.raises(UserError, match="the validation images are not those that it was begun with"):
        list(train(small_config(), tmp_path / "r", data=data_set(valid=12), device="cpu", resume=True))


def test_a_folder_that_is_moved_while_it_is_trained_is_not_begun_anew(tmp_path):
    records = train(small_config(), tmp_path / "r", data=data_set(), device="cpu")
    next(records)
    (tmp_path / "r").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="r is no longer there: moved, go on with --resume --out and its new name"):
        list(records)
    assert not (tmp_path / "r").exists()
    assert run_all(tmp_path / "moved", resume=True)[-1].step == 12


def test_where_files_cannot_be_locked_runs_are_trained_without(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented")))
    assert run_all(tmp_path / "r")[-1].step == 12
    assert run.is_training(tmp_path / "r")  # for all that can be told


def test_a_log_that_cannot_be_written_is_named_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    records = train(small_config(), tmp_path / "r", data=data_set(), device="cpu")
    next(records)
    (tmp_path / "r" / "metrics.jsonl").rename(tmp_path / "log")
    (tmp_path / "r" / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: Is a directory; the last checkpoint is kept"):
        list(records)
    (tmp_path / "r" / "metrics.jsonl").rmdir()
    assert run_all(tmp_path / "r", resume=True)[-1].step == 12


def test_a_run_for_whose_first_file_there_was_no_room_can_be_begun_anew(tmp_path, monkeypatch):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".DS_Store").write_text("of a file manager")
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        run_all(tmp_path / "r")
    monkeypatch.undo()
    assert run_all(tmp_path / "r")[-1].step == 12


def test_a_home_folder_is_meant_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run_all("~/r")
    assert draw.load("~/r").canvas0.shape == (1, 6, 5)
    assert (tmp_path / "r").is_dir()


def test_the_same_images_from_another_place_can_be_resumed(tmp_path):
    run_all(tmp_path / "whole")
    run_all(tmp_path / "r", stop=stop_after(5))
    run_all(tmp_path / "r", small_config(source="moved"), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "r")


def test_a_folder_is_trained_by_one_process_at_a_time(tmp_path):
    first = train(small_config(), tmp_path / "r", data=data_set(), device="cpu")
    next(first)
    with pytest.raises(UserError, match="being trained by another process"):
        run_all(tmp_path / "r", resume=True)
    first.close()
    assert run_all(tmp_path / "r", resume=True)[-1].step == 12


def test_a_validation_that_is_not_finite_names_its_step(tmp_path, monkeypatch):
    def diverged(*_, **settings):
        raise NonFiniteError("the bound on the valid split is not finite")

    monkeypatch.setattr(run, "evaluate", diverged)
    with pytest.raises(NonFiniteError, match="step 4: the bound on the valid split is not finite"):
        run_all(tmp_path / "r")


LOSSES = '"bound_nats": 1, "loss_x_nats": 1, "loss_z_nats": 1'


@pytest.mark.parametrize(
    "line",
    [
        "[1]", "{}", '{"kind": "train", "step": 3}', '{"kind": "walk"}', "\xff",
        f'{{"kind": "valid", "step": 2, "seconds": 1, {LOSSES}}}',
        f'{{"kind": "train", "step": "a", "seconds": 1, {LOSSES}}}',
        f'{{"kind": "train", "step": 3, "seconds": null, {LOSSES}}}',
    ],
)  # fmt: skip
def test_a_damaged_log_is_refused_by_its_line(tmp_path, line):
    run_all(tmp_path / "r", stop=stop_after(2))
    with (tmp_path / "r" / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3"):
        run.read_log(tmp_path / "r")


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match="no device 'cuda' on this machine; it has cpu"):
        choose_device("cuda")


def test_tensorboard_absent_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install 'draw[tensorboard]'" in refused(tmp_path / "r", tensorboard=True)


def test_a_run_that_failed_before_it_began_leaves_its_folder_free(tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch.utils.tensorboard", None)
        refused(tmp_path / "r", tensorboard=True)
    assert run_all(tmp_path / "r")[-1].step == 12


def test_a_validation_of_one_image_can_be_logged_to_tensorboard(tmp_path, monkeypatch):
    board = MagicMock()
    monkeypatch.setattr(run, "_tensorboard", lambda *_: board)
    run_all(tmp_path / "r", small_config(validation_images=1), tensorboard=True)
    written = {call.args[0]: call.args[1] for call in board.add_scalar.call_args_list}
    assert "valid/bound_nats" in written
    assert None not in written.values()


def test_the_configuration_takes_the_size_of_the_images():
    config = run.for_images(small_config(), data_set(height=9, width=4, channels=3, binarization="none"))
    assert config.model.image_shape == (3, 9, 4)
    assert config.data.binarization == "none"


def test_colour_without_attention_trains_too(tmp_path):
    config = small_config(read_n=None, write_n=None)
    records = list(train(config, tmp_path / "r", data=data_set(channels=3), device="cpu"))
    assert records[-1].step == 12


def test_a_run_begins_with_the_weights_of_a_model_whatever_its_number_of_glimpses(tmp_path):
    run_all(tmp_path / "short")
    config = small_config(steps=5, iterations=1, learning_rate=1e-9, warmup=0)
    run_all(tmp_path / "long", config, init=tmp_path / "short")
    short, long = (checkpoint.find(tmp_path / name) for name in ("short", "long"))
    for name, weight in long.tensors().items():
        torch.testing.assert_close(weight, short.tensors()[name], rtol=0, atol=1e-8)
    assert long.info["init"]["sha256"] == short.sha256[checkpoint.MODEL]
    assert run.read_log(tmp_path / "long")[0]["init"] == long.info["init"]
    run_all(tmp_path / "long", config.replace(iterations=2), resume=True)
    assert checkpoint.read(checkpoint.newest(tmp_path / "long")).info["init"] == long.info["init"]


class Squared(Bernoulli):
    """A piece of one's own without a weight."""

    def loss_x(self, x, canvas):
        return 50 * (x - self.mean(canvas)).square().flatten(1).sum(1)


def squared(config, **start):
    return DRAW(config, likelihood=Squared(), **start)


def test_a_network_with_pieces_of_its_own_is_trained_resumed_and_loaded(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    records = run_all(whole, build=squared)
    assert records[-1].bound_nats != run_all(tmp_path / "paper")[-1].bound_nats
    run_all(parts, build=squared, stop=stop_after(5))
    run_all(parts, build=squared, resume=True)
    assert_same_run(whole, parts)
    assert type(draw.load(whole, build=squared).likelihood) is Squared
    assert evaluate(draw.load(whole, build=squared), data_set()).above_entropy_nats is None


def test_a_network_with_pieces_of_its_own_is_not_taken_for_the_papers(tmp_path):
    run_all(tmp_path, build=squared, stop=stop_after(5))
    with pytest.raises(
        UserError, match=r"was trained with likelihood Squared, not with the paper's pieces; in Python "
    ):
        draw.load(tmp_path)
    with pytest.raises(UserError, match=r"with the paper's pieces: it was begun with likelihood Squared"):
        run_all(tmp_path, resume=True)
    with pytest.raises(UserError, match=r"trained with the paper's pieces, not with likelihood Squared"):
        draw.load("mnist", build=squared)


def test_a_run_remembers_the_name_of_images_given_in_python(tmp_path):
    run_all(tmp_path, small_config(source="glyphs"), stop=stop_after(1))
    assert checkpoint.find(tmp_path).config.data.source == "small"


def test_images_without_a_validation_split_are_refused_at_once(tmp_path):
    data = data_set()
    data = dataclasses.replace(data, images={"train": data.images["train"]})
    with pytest.raises(UserError, match="small has no split valid, only train"):
        next(train(small_config(), tmp_path / "run", data=data))
    assert not (tmp_path / "run").exists()


def test_weights_of_other_sizes_are_no_beginning(tmp_path):
    run_all(tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot begin with .*: model.*decoder"):
        run_all(tmp_path / "other", small_config(dec_size=13), init=tmp_path / "run")
    assert not (tmp_path / "other").exists()


def test_a_run_whose_glimpses_grow_can_be_resumed(tmp_path):
    config = small_config(grow_from=1)
    records = run_all(tmp_path / "whole", config)
    assert [record.glimpses for record in records if isinstance(record, Metrics)] == [
        1,
        2,
        2,
        3,
        3,
        3,
    ]  # of steps 2, 4, ... 12
    run_all(tmp_path / "parts", config, stop=stop_after(3))
    run_all(tmp_path / "parts", resume=True, config=config)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_while_glimpses_grow_the_model_has_those_that_it_was_trained_with(tmp_path):
    config = small_config(grow_from=1, grow_until=0.9, learning_rate=1e-9)
    whole = run_all(tmp_path / "whole", config)
    validations = [record for record in whole if isinstance(record, Validation)]
    assert [record.glimpses for record in validations] == [1, 2, 3]
    run_all(tmp_path / "part", config, stop=stop_after(4))
    model = draw.load(tmp_path / "part")
    assert model.config.steps == 1
    assert len(draw.evaluate(model, data_set(), draw.EvalConfig(split="valid")).kl_per_glimpse_nats) == 1
    assert checkpoint.read(checkpoint.newest(tmp_path / "part")).config.model.steps == 3  # what resuming goes on with


def test_the_best_is_among_the_validations_with_the_most_glimpses(tmp_path, monkeypatch):
    bounds = iter([50.0, 60.0, 55.0])  # of 1, 2 and 3 glimpses
    evaluate = run.evaluate

    def measured(*arguments, **settings):
        return dataclasses.replace(evaluate(*arguments, **settings), bound_nats=next(bounds))

    monkeypatch.setattr(run, "evaluate", measured)
    config = small_config(grow_from=1, grow_until=0.9)
    records = run_all(tmp_path / "r", config, stop=stop_after(5)) + run_all(tmp_path / "r", resume=True, config=config)
    assert [record.best for record in records if isinstance(record, Validation)] == [True, True, True]
    assert checkpoint.find(tmp_path / "r").config.model.steps == 3


def test_all_validations_share_one_way_to_compute_the_glimpses(tmp_path, monkeypatch):  # each may compile
    unroll_for = Mock(wraps=fast.unroll_for)
    monkeypatch.setattr(fast, "unroll_for", unroll_for)
    assert sum(isinstance(record, Validation) for record in run_all(tmp_path / "r")) == 3
    assert unroll_for.call_count == 2  # of the weights and of their averages


def test_a_longer_schedule_takes_no_glimpses_away(tmp_path):
    run_all(tmp_path / "r", small_config(grow_from=1))
    longer = run_all(tmp_path / "r", small_config(grow_from=1, iterations=120), resume=True, stop=stop_after(4))
    assert [record.glimpses for record in longer] == [3, 3, 3]  # of steps 14 and 16, and the validation there


def test_a_longer_schedule_takes_no_glimpses_away_at_a_second_stop_either(tmp_path):
    run_all(tmp_path / "r", small_config(grow_from=1))
    longer = small_config(grow_from=1, iterations=120)
    run_all(tmp_path / "r", longer, resume=True, stop=stop_after(1))
    assert [record.glimpses for record in run_all(tmp_path / "r", longer, resume=True, stop=stop_after(3))] == [3, 3, 3]


def test_resuming_does_not_go_back_over_what_another_process_has_trained(tmp_path, monkeypatch):
    config, restore = small_config(iterations=40, validate_every=100), run._restore
    run_all(tmp_path / "r", config, stop=stop_after(4))

    def and_meanwhile(*arguments):
        restored = restore(*arguments)
        monkeypatch.setattr(run, "_restore", restore)
        run_all(tmp_path / "r", config, resume=True, stop=stop_after(4))  # the other one, in the same moment
        return restored

    monkeypatch.setattr(run, "_restore", and_meanwhile)
    with pytest.raises(UserError, match="trained by another process in the meantime: resume it again"):
        run_all(tmp_path / "r", config, resume=True)
    assert checkpoint.newest(tmp_path / "r").name == "step-00000008"
    assert run_all(tmp_path / "r", config, resume=True)[-1].step == 40


def test_a_run_that_begins_with_a_model_leaves_its_latents_as_they_are(tmp_path):
    run_all(tmp_path / "first")
    config = small_config(awake=1, iterations=1, learning_rate=1e-12)
    run_all(tmp_path / "next", config, init=tmp_path / "first")
    assert run.read_config(tmp_path / "next" / "config.json").train.awake is None
    assert draw.load(tmp_path / "next").to_mu.weight[1:].any()


def tied(config, **start):
    model = DRAW(config, **start)
    model.to_log_sigma.bias = model.to_mu.bias
    return model


def test_weights_with_two_names_are_saved_and_resumed(tmp_path):
    run_all(tmp_path / "whole", build=tied)
    run_all(tmp_path / "parts", build=tied, stop=stop_after(5))
    run_all(tmp_path / "parts", build=tied, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


class Normed(torch.nn.Module):
    """A read without a window, over statistics of batches."""

    def __init__(self, config):
        super().__init__()
        self.features = 2 * config.channels * config.height * config.width
        self.norm = torch.nn.BatchNorm1d(self.features)

    def forward(self, x, x_hat, _h_dec):
        return self.norm(torch.cat([x, x_hat], 1).flatten(1)), None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_statistics_of_batches_are_those_of_the_averaged_network_too(precision):
    def build(config, **start):
        return DRAW(config, read=Normed(config), **start)

    trainer = training.Trainer(small_config(), data_set(), build=build, speed=draw.SpeedConfig(precision=precision))
    for _ in range(3):
        trainer.train_step(0.0)
    trained, averaged = trainer.model.read.norm, trainer.ema.read.norm
    assert trained.num_batches_tracked == 3 * trainer.model.config.steps
    assert torch.equal(trained.running_var, averaged.running_var)
