"""A folder of runs read as they grow: what is appended, what is begun anew, what is damaged, what leads elsewhere."""

import contextlib
import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from draw import live, run
from draw.config import RunConfig, TrainConfig, to_dict
from draw.errors import UserError
from draw.live import POINTS, Curve, Runs, news, seconds_left
from draw.run import LOCK
from small import data_set, small_config

LOSSES = {"bound_nats": 90.0, "loss_x_nats": 60.0, "loss_z_nats": 30.0}


@pytest.fixture(autouse=True)
def at_every_look(monkeypatch):
    """Files are read whenever it is asked for, not at most once a second."""
    monkeypatch.setattr(live, "EVERY", 0.0)


def line(step, kind="train", /, **changes):
    best = {"best": True} if kind == "valid" else {}
    return json.dumps({"kind": kind, "step": step, "seconds": 0.5 * step} | LOSSES | best | changes) + "\n"


def make(folder, steps=range(0), *, iterations=100, **schedule):
    """A run's folder with log lines of these steps."""
    folder.mkdir()
    config = RunConfig(train=TrainConfig(iterations=iterations, **schedule))
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "metrics.jsonl").write_text('{"kind": "run", "config": {}}\n' + "".join(map(line, steps)))
    return folder


def append(folder, text):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)


def steps(found):
    return [point[0] for point in found.train]


def test_only_what_is_appended_is_read(tmp_path, monkeypatch):
    runs, folder = Runs(tmp_path), make(tmp_path / "a", (1, 2))
    assert steps(runs.look()["a"]) == [1, 2]
    read = []
    monkeypatch.setattr(live, "read_record", lambda text, where: read.append(where) or run.read_record(text, where))
    append(folder, line(3) + line(3, "valid", bound_nats=88.0, best=True))
    found = runs.look()["a"]
    assert steps(found) == [1, 2, 3]
    assert found.valid == ((3, 1.5, 88.0, 60.0, 30.0),)
    assert (found.best, found.begun, found.error) == (88.0, 1, "")
    assert read == ["metrics.jsonl, line 4,", "metrics.jsonl, line 5,"]


def test_what_has_not_changed_is_the_same_object(tmp_path):
    make(tmp_path / "a", (1,))
    runs = Runs(tmp_path)
    assert runs.look()["a"] is runs.look()["a"]


def test_half_a_line_is_read_when_it_is_whole(tmp_path):
    runs, folder = Runs(tmp_path), make(tmp_path / "a", (1,))
    append(folder, line(2)[:30])
    assert steps(runs.look()["a"]) == [1]
    assert runs.look()["a"].error == ""
    append(folder, line(2)[30:])
    assert steps(runs.look()["a"]) == [1, 2]


@pytest.mark.parametrize("after", [(1, 2), (1, 2, 9, 10, 11, 12)])  # shorter than it was, and longer
def test_a_log_written_anew_is_read_from_its_beginning(tmp_path, after):
    runs, folder = Runs(tmp_path), make(tmp_path / "a", (1, 2, 3, 4))
    begun = runs.look()["a"].begun
    (folder / "metrics.jsonl").write_text("".join(map(line, after)))
    found = runs.look()["a"]
    assert steps(found) == list(after)
    assert found.begun > begun


def test_a_resumed_run_has_its_new_schedule(tmp_path):
    runs, folder = Runs(tmp_path), make(tmp_path / "a", (50,))
    assert runs.look()["a"].fraction == 0.5
    (folder / "config.json").write_text(json.dumps(to_dict(RunConfig(train=TrainConfig(iterations=1000)))))
    append(folder, json.dumps({"kind": "resume", "step": 50}) + "\n" + line(100))
    assert runs.look()["a"].fraction == 0.1


@pytest.mark.parametrize(
    "damage",
    ["nonsense\n", "[1]\n", "{}\n", "\n", "\0\0\n", line(2, bound_nats="1"), line(2, bound_nats=1e999),
     line(2, step="2"), line(2, bound_nats=None), "[" * 100_000 + "\n", '{"kind": "train"}\n',
     line(2, bound_nats=10**400)],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_damaged_line_is_said_in_one_line_and_the_rest_is_shown(tmp_path, damage):
    runs, folder = Runs(tmp_path), make(tmp_path / "a", (1,))
    make(tmp_path / "b", (1, 2))
    append(folder, damage + line(3))
    found = runs.look()
    assert steps(found["a"]) == [1, 3]
    assert found["a"].error.startswith("metrics.jsonl, line 3,") or "recursion" in found["a"].error
    assert len(found["a"].error) <= 300
    assert "\n" not in found["a"].error
    assert str(tmp_path) not in found["a"].error
    assert steps(found["b"]) == [1, 2]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path):
    runs, folder = Runs(tmp_path), make(tmp_path / "a", (1,))
    append(folder, "x" * (2 * live.CHUNK + 5))
    assert steps(runs.look()["a"]) == [1]
    append(folder, "\n" + line(2))
    assert steps(runs.look()["a"]) == [1, 2]
    assert "not valid JSON" in runs.look()["a"].error


@pytest.mark.parametrize("text", [None, "{", '{"unknown": 1}', pytest.param("[" * 200_000, id="deep")])
def test_a_configuration_that_cannot_be_read_is_said_and_the_curve_is_shown(tmp_path, text):
    folder = make(tmp_path / "a", (1, 2))
    (folder / "config.json").unlink()
    if text:
        (folder / "config.json").write_text(text)
    found = Runs(tmp_path).look()["a"]
    assert steps(found) == [1, 2]
    assert found.error
    assert str(tmp_path) not in found.error


def test_runs_come_and_go(tmp_path):
    runs = Runs(tmp_path)
    assert runs.look() == {}
    make(tmp_path / "b", (1,))
    make(tmp_path / "a", (1,))
    (tmp_path / "notes").mkdir()
    assert list(runs.look()) == ["a", "b"]
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    assert list(runs.look()) == ["b"]
    (tmp_path / "b").rename(tmp_path / "c")
    assert list(runs.look()) == ["c"]


def test_links_that_lead_out_are_not_followed(tmp_path):
    folder, elsewhere = tmp_path / "runs", make(tmp_path / "elsewhere", (1,))
    folder.mkdir()
    (folder / "linked").symlink_to(elsewhere)
    whole = make(folder / "whole", (1,))
    (folder / "within").symlink_to(whole)
    for name in ("metrics.jsonl", "config.json"):
        part = make(folder / name.split(".")[0], (1,))
        (part / name).unlink()
        (part / name).symlink_to(elsewhere / name)
    found = Runs(folder).look()
    assert list(found) == ["config", "whole", "within"]
    assert found["config"].error == "config.json is missing"


def test_a_link_that_is_put_in_the_place_of_a_log_is_not_followed(tmp_path):
    folder, elsewhere = tmp_path / "runs", make(tmp_path / "elsewhere", range(1, 9))
    folder.mkdir()
    log = make(folder / "a", (1,)) / "metrics.jsonl"
    runs = Runs(folder)
    runs.look()
    log.unlink()
    log.symlink_to(elsewhere / "metrics.jsonl")
    assert runs.look() == {}


def test_sheets_are_had_by_names_and_steps_that_were_found(tmp_path):
    folder = make(tmp_path / "a", (1,))
    (folder / "samples").mkdir()
    sheet = folder / "samples/step-00000002.png"
    sheet.write_bytes(b"png")
    append(folder, line(2, "valid"))
    runs = Runs(tmp_path)
    assert runs.look()["a"].sheet == 2
    assert runs.sheet("a", "2") == sheet
    for name, step in (
        ("a", "1"),
        ("a", "02"),
        ("a", "2.0"),
        ("b", "2"),
        ("../" + tmp_path.name + "/a", "2"),
        ("", ""),
    ):
        assert runs.sheet(name, step) is None
    sheet.unlink()
    sheet.symlink_to(__file__)
    assert runs.sheet("a", "2") is None


def test_a_run_is_training_while_its_folder_is_locked(tmp_path):
    folder = make(tmp_path / "a", (10,))
    runs = Runs(tmp_path)
    assert runs.look()["a"].state == "stopped"
    code = f"""
from pathlib import Path
from draw import run
with run._locked(Path({str(folder)!r})):
    print("locked", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    assert runs.look()["a"].state == "training"
    holder.communicate("\n")
    assert runs.look()["a"].state == "stopped"
    append(folder, line(100))
    assert runs.look()["a"].state == "finished"


def test_looking_does_not_keep_a_run_from_being_trained(tmp_path):
    (tmp_path / LOCK).touch()
    with contextlib.ExitStack() as looking:
        file = looking.enter_context((tmp_path / LOCK).open())
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.15, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        with run._locked(tmp_path):
            assert run.is_training(tmp_path)


def test_a_real_run_is_read_to_its_end(tmp_path):
    logged = list(run.train(small_config(), tmp_path / "a", data=data_set(), device="cpu"))
    found = Runs(tmp_path).look()["a"]
    assert steps(found) == [record.step for record in logged if record.kind == "train"]
    assert [point[2] for point in found.valid] == pytest.approx(
        [record.bound_nats for record in logged if record.kind == "valid"], abs=1e-3
    )
    assert (found.state, found.sheet, found.fraction, found.seconds_left) == ("finished", 12, 1.0, 0.0)


def test_a_run_is_finished_at_the_end_of_its_minutes_and_no_sooner(tmp_path):
    folder = make(tmp_path / "a", schedule_minutes=0.2)
    append(folder, line(1620, seconds=11.9625))  # 12.0 in a curve
    found = Runs(tmp_path).look()["a"]
    assert (found.state, found.train[0][1]) == ("stopped", 12.0)
    assert found.fraction == pytest.approx(11.9625 / 12)
    append(folder, line(1623, seconds=12.0004))
    assert Runs(tmp_path).look()["a"].state == "finished"


def test_long_curves_are_thinned_to_means():
    curve, count = Curve(), 8 * POINTS + 3
    changed = [curve.add((step, float(step), 2.0 * step, 0.0, 1.0)) for step in range(1, count + 1)]
    assert sum(changed) == 4
    assert POINTS // 2 <= len(curve.points) < POINTS
    first = curve.points[0]
    assert first == (16, 16.0, 2 * 8.5, 0.0, 1.0)  # of steps 1 to 16
    assert curve.points[-1][0] == count - count % 16


def test_few_points_of_a_long_log_are_told(tmp_path):
    make(tmp_path / "a", range(1, 5000), iterations=10_000)
    found = Runs(tmp_path).look()["a"]
    assert len(found.train) < POINTS
    assert found.step == 4999


def test_time_left_is_at_the_pace_of_late():
    minutes = TrainConfig(schedule_minutes=10.0)
    assert seconds_left(minutes, (0, 0.0), (5, 60.0)) == pytest.approx(540.0)
    assert seconds_left(TrainConfig(iterations=100), (50, 9.0), (50, 9.0)) is None


def test_the_pace_is_of_the_last_ten_minutes(tmp_path):
    slow = "".join(line(step, seconds=60.0 * step) for step in range(1, 30))
    fast = "".join(line(29 + step, seconds=60.0 * 29 + 30 * step) for step in range(1, 31))
    append(make(tmp_path / "a"), slow + fast)
    assert Runs(tmp_path).look()["a"].seconds_left == pytest.approx(41 * 30)


def test_news_are_what_was_not_told_yet(tmp_path):
    folder, runs = make(tmp_path / "a", (1, 2)), Runs(tmp_path)
    told = {}
    (first,) = news(runs.look(), told)
    assert first["anew"]
    assert [point[0] for point in first["train"]] == [1, 2]
    assert list(news(runs.look(), told)) == []
    append(folder, line(3))
    runs.look()
    append(folder, line(4))  # who was away meanwhile gets both
    (second,) = news(runs.look(), told)
    assert not second["anew"]
    assert [point[0] for point in second["train"]] == [3, 4]
    (folder / "metrics.jsonl").write_text(line(1))
    (third,) = news(runs.look(), told)
    assert third["anew"]
    assert [point[0] for point in third["train"]] == [1]
    assert json.loads(json.dumps(third, allow_nan=False))["name"] == "a"
    (folder / "metrics.jsonl").unlink()
    assert list(news(runs.look(), told)) == []
    assert told == {}


def test_at_most_so_many_runs_are_shown_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "RUNS", 2)
    for age, name in enumerate("abc"):
        os.utime(make(tmp_path / name, (1,)) / "metrics.jsonl", (1000 - age, 1000 - age))
    assert list(Runs(tmp_path).look()) == ["a", "b"]


def test_a_folder_that_will_not_do_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        Runs(tmp_path / "none")
    with pytest.raises(UserError, match="is a run itself"):
        Runs(make(tmp_path / "a", (1,)))


def test_the_folder_may_vanish(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    make(folder / "a", (1,))
    runs = Runs(folder)
    assert list(runs.look()) == ["a"]
    folder.rename(tmp_path / "away")
    assert runs.look() == {}


def test_a_run_is_never_changed():
    assert dataclasses.is_dataclass(live.Run)
    with pytest.raises(dataclasses.FrozenInstanceError):
        live.Run("a").state = "finished"
