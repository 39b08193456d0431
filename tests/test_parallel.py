"""Many processes train and measure what one does: real ones, started by torchrun, talking through the loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import draw
from draw import checkpoint, cli, run
from draw.data import intensities
from draw.errors import UserError
from draw.noise import seeded
from draw.parallel import World
from ranks import MEASURED
from small import data_set

# 8 images a step are no multiple of 3 ranks; grey ones need noise for the binarization too.
TRAINED = ["demo", "--device", "cpu", "--steps", "3", "--enc-size", "12", "--dec-size", "12", "--z-size", "4",
           "--read-n", "2", "--write-n", "3", "--batch-size", "8", "--iterations", "20", "--log-every", "2",
           "--validate-every", "10", "--validation-images", "0"]  # fmt: skip
TOLERANCE = 1e-5  # sums in another order, carried on over 20 steps; seen: 3e-7


def start(ranks, *arguments):
    """torchrun with so many ranks, on a port of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *arguments]
    paths = [Path(draw.__file__).parents[1], Path(__file__).parent]
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(started):
    """Its exit code and what it wrote; torchrun ends its ranks when it is asked to end."""
    try:
        out, err = started.communicate(timeout=200)
    except BaseException:
        started.terminate()
        started.communicate(timeout=60)
        raise
    return started.returncode, out, err


def torchrun(ranks, *arguments):
    return finish(start(ranks, *arguments))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, a run of 20 steps by one process, and one that was stopped in step 7."""
    place = tmp_path_factory.mktemp("parallel")
    data = data_set(grey=True)
    np.savez(place / "small.npz", **{split: images.numpy() for split, images in data.images.items()})
    assert cli.main(["train", *TRAINED, "--data", f"{place}/small.npz", "--out", f"{place}/one"]) == 0
    asked = iter(range(1, 100))
    part = run.train(run.read_config(place / "one" / "config.json"), place / "part", stop=lambda: next(asked) >= 7)
    list(part)
    return place


@pytest.fixture(scope="module")
def three(place):
    """What three ranks saw that trained the same, went on with what was stopped, diverged, and measured."""
    code, _, err = torchrun(3, Path(__file__).with_name("ranks.py"), "together", place)
    assert code == 0, err
    return [json.loads((place / f"seen-{rank}.json").read_text()) for rank in range(3)]


def logged(out):
    """The numbers of a run's log, without those of the clock and of the machine."""
    records = [record for record in run.read_log(out) if record["kind"] in ("train", "valid")]
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def tensors(out):
    found = checkpoint.read(checkpoint.newest(out))
    return found.tensors() | {f"training {k}": v for k, v in found.tensors(checkpoint.TRAINING).items()}


def assert_same_run(one, other):
    """The same log and the same state at the end, up to the rounding of sums."""
    mine, theirs = logged(one), logged(other)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        assert a.pop("kind") == b.pop("kind")
        assert a == pytest.approx(b, rel=TOLERANCE)
    assert checkpoint.newest(one).name == checkpoint.newest(other).name
    mine, theirs = tensors(one), tensors(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        difference, size = (mine[name] - theirs[name]).norm(), mine[name].norm()
        assert difference <= TOLERANCE * size, name


# Without processes


@pytest.mark.parametrize(("n", "size"), [(8, 3), (100, 7), (3, 3), (5, 1)])
def test_shares_are_all_of_it_once_and_nearly_equal(n, size):
    shares = [list(range(n))[World(rank, size).share(n)] for rank in range(size)]
    assert [thing for share in shares for thing in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_part_of_a_batch_gets_its_part_of_the_noise():
    images = data_set(grey=True).images["train"]

    def drawn(part, **place):
        return intensities(part, "stochastic", seeded("noise"), **place)

    assert torch.equal(drawn(images[5:9], of=40, first=5), drawn(images)[5:9])


def test_a_job_knows_its_own_folder_again_and_no_other(tmp_path, monkeypatch):
    (tmp_path / ".lock").write_text("first")
    (tmp_path / "config.json").write_text("half writ")  # it was killed before there was a checkpoint
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    assert run.to_go_on_from(tmp_path, resume=False) is None
    for other in ("second", "none"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", other)
        with pytest.raises(UserError, match="exists already"):
            run.to_go_on_from(tmp_path, resume=False)


def test_a_job_that_was_killed_before_its_first_checkpoint_begins_anew(place, tmp_path, monkeypatch):
    config = run.read_config(place / "one" / "config.json")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    with monkeypatch.context() as killed:
        killed.setattr(run, "_save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(run.train(config, tmp_path / "r"))
    list(run.train(config, tmp_path / "r"))
    assert_same_run(place / "one", tmp_path / "r")


# With processes


@pytest.mark.slow
def test_three_ranks_train_what_one_does(place, three):
    assert_same_run(place / "one", place / "three")


@pytest.mark.slow
def test_a_run_can_be_resumed_with_another_number_of_processes(place, three):
    assert_same_run(place / "one", place / "part")


@pytest.mark.slow
def test_every_rank_gets_the_same_records(three):
    assert three[0]["whole"] == three[1]["whole"] == three[2]["whole"]
    assert [record["step"] for record in three[0]["rest"] if record["kind"] == "valid"] == [10, 20]


@pytest.mark.slow
def test_the_folder_is_written_once(place, three):
    one, many = ({path.relative_to(place / name) for path in (place / name).rglob("*")} for name in ("one", "three"))
    assert one == many


@pytest.mark.slow
def test_three_ranks_measure_exactly_what_one_does(place, three):
    data = draw.load_data(draw.DataConfig(f"{place}/small.npz"))
    alone = draw.evaluate(draw.load(place / "one"), data, MEASURED)
    for seen in three:
        for name, value in seen["measured"].items():
            assert value == getattr(alone, name) or name == "seconds", name


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_found_by_every_rank_in_the_same_step(place, three):
    assert all("is not finite" in seen["diverged"] for seen in three)
    assert len({seen["diverged"].split(":")[0] for seen in three}) == 1
    assert checkpoint.read(checkpoint.newest(place / "diverged")).step == 0


@pytest.mark.slow
def test_a_job_that_loses_a_process_goes_on_by_itself_as_if_it_had_not(place):
    train = ["train", *TRAINED, "--data", place / "small.npz", "--out", place / "killed", "--json"]
    code, out, err = torchrun(2, "--max-restarts=3", Path(__file__).with_name("ranks.py"), "killed", *train)
    assert code == 0, err
    assert_same_run(place / "one", place / "killed")
    assert [record["step"] for record in run.read_log(place / "killed") if record["kind"] == "resume"] == [10]
    assert json.loads(out)["finished"]  # printed by one rank
    assert err.count("step 20: bound") == 1
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_mistake_is_one_line_of_one_rank_and_ends_all(place):
    before = {path: path.read_bytes() for path in (place / "one").rglob("*") if path.is_file()}
    train = ["-m", "draw", "train", *TRAINED, "--data", place / "small.npz", "--out", place / "one"]
    _, out, err = torchrun(2, *train)
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("draw:")] == [
        f"draw: {place / 'one'} exists already: go on with --resume, or choose another --out"
    ]
    assert err.count("exitcode  : 2 ") == 2  # in torchrun's summary: rank 0 and rank 1
    assert {path: path.read_bytes() for path in (place / "one").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_signal_to_torchrun_leaves_a_checkpoint_to_go_on_from(place):
    arguments = ["train", *TRAINED, "--data", place / "small.npz", "--out", place / "stopped"]
    started = start(2, "-m", "draw", *arguments, "--iterations", "1000000")
    log = place / "stopped" / "metrics.jsonl"
    until = time.monotonic() + 100
    while not (log.exists() and '"kind": "valid"' in log.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, _, err = finish(started)
    step = checkpoint.read(checkpoint.newest(place / "stopped")).step
    assert step > 10  # not that of the last validation alone
    assert err.count("draw: stopping after this step, saving") == 1
    assert f"to go on: draw train --resume --out {place / 'stopped'}" in err
    assert cli.main(["train", "--resume", "--out", f"{place / 'stopped'}", "--iterations", f"{step + 2}"]) == 0
