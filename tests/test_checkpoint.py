"""Checkpoints: complete or absent, exact, and refused by name when they do not fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import draw
from draw import checkpoint
from draw.attention import AttentiveWrite
from draw.errors import UserError
from draw.model import DRAW
from small import small_config


@pytest.fixture
def saved(tmp_path):
    """A run's folder with one checkpoint, and the model that is in it."""
    config = small_config()
    model = DRAW(config.model, seed=5)
    path = tmp_path / "run" / "checkpoints" / "step-00000007"
    training = {"moments": torch.arange(3.0)}
    checkpoint.save(path, config, step=7, seconds=1.5, model=model.state_dict(), training=training, info={"a": 1})
    return path, model


def test_what_is_saved_is_what_is_read(saved):
    path, model = saved
    found = checkpoint.read(path)
    assert (found.config, found.step, found.seconds, found.info) == (small_config(), 7, 1.5, {"a": 1})
    for name, weight in found.model().state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    assert torch.equal(found.tensors(checkpoint.TRAINING)["moments"], torch.arange(3.0))


def test_a_model_is_loaded_whatever_type_new_tensors_have(saved):
    path, model = saved
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(checkpoint.read(path).model().to_mu.weight, model.to_mu.weight)
    finally:
        torch.set_default_dtype(torch.float32)


def test_loading_a_network_of_pieces_draws_nothing_from_the_global_generator(saved):
    def build(config):
        return DRAW(config, write=AttentiveWrite(config.write_n, config.dec_size, *config.image_shape))

    before = torch.get_rng_state()
    checkpoint.read(saved[0]).model(build=build)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_folder_means_its_best_checkpoint_and_else_its_newest(saved):
    path, model = saved
    run = path.parents[1]
    assert checkpoint.find(run).path == path
    best = path.parent / "best-00000003"
    checkpoint.save(best, small_config(), step=3, seconds=1.0, model=model.state_dict())
    assert checkpoint.find(run).path == best
    assert draw.load(run).canvas0.shape == (1, 6, 5)


def test_older_checkpoints_of_the_same_kind_and_unfinished_ones_are_removed(saved):
    path, model = saved
    (path.parent / ".step-00000006.123").mkdir()
    best = path.parent / "best-00000003"
    checkpoint.save(best, small_config(), step=3, seconds=1.0, model=model.state_dict())
    newer = path.parent / "step-00000008"
    checkpoint.save(newer, small_config(), step=8, seconds=1.0, model=model.state_dict())
    assert sorted(p.name for p in path.parent.iterdir()) == ["best-00000003", "step-00000008"]


def test_a_complete_checkpoint_is_never_written_again(saved):
    path, model = saved
    before = (path / checkpoint.DESCRIPTION).read_bytes()
    checkpoint.save(path, small_config(), step=7, seconds=99.0, model=model.state_dict())
    assert (path / checkpoint.DESCRIPTION).read_bytes() == before


def refused(path, what="model"):
    with pytest.raises(UserError) as error:
        getattr(checkpoint.find(path), what)()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_damaged_weight_file_is_refused(saved):
    path, _ = saved
    weights = path / checkpoint.MODEL
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors is damaged" in refused(path)


def test_a_missing_weight_file_is_refused(saved):
    path, _ = saved
    (path / checkpoint.MODEL).unlink()
    assert "cannot be read" in refused(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 2}'])
def test_a_damaged_description_is_refused(saved, text):
    path, _ = saved
    (path / checkpoint.DESCRIPTION).write_text(text)
    assert "checkpoint.json" in refused(path)


@pytest.mark.parametrize(
    "change", [{"step": "x"}, {"step": -5}, {"seconds": None}, {"info": None}, {"sha256": []}, {"more": 1}]
)
def test_a_description_with_a_wrong_value_is_refused(saved, change):
    path, _ = saved
    description = json.loads((path / checkpoint.DESCRIPTION).read_text()) | change
    (path / checkpoint.DESCRIPTION).write_text(json.dumps(description))
    assert "is damaged" in refused(path)


def test_newest_is_by_number_and_not_by_text(tmp_path):
    for step in (99_999_999, 100_000_000):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step-{step:08d}" / checkpoint.DESCRIPTION).touch()
    assert checkpoint.newest(tmp_path).name == "step-100000000"


def test_a_checkpoint_that_cannot_be_written_leaves_no_rubbish(saved, monkeypatch):
    path, model = saved

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device; the checkpoint before it is kept"):
        checkpoint.save(path.with_name("step-00000008"), small_config(), step=8, seconds=1.0, model=model.state_dict())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_weights_of_another_size_are_refused_by_name(tmp_path):
    model = DRAW(small_config(z_size=3).model)
    path = tmp_path / "best-00000001"
    checkpoint.save(path, small_config(), step=1, seconds=1.0, model=model.state_dict())
    assert "decoder.to_gates.weight is (48, 15)" in refused(path)
    assert "(48, 16)" in refused(path)


def test_a_weight_too_many_is_refused_by_name(saved, tmp_path):
    _, model = saved
    path = tmp_path / "best-00000001"
    tensors = model.state_dict() | {"surplus": torch.zeros(1)}
    checkpoint.save(path, small_config(), step=1, seconds=1.0, model=tensors)
    assert "surplus" in refused(path)


def test_weights_alone_cannot_be_resumed(saved, tmp_path):
    _, model = saved
    path = tmp_path / "best-00000001"
    checkpoint.save(path, small_config(), step=1, seconds=1.0, model=model.state_dict())
    with pytest.raises(UserError, match="cannot be resumed"):
        checkpoint.read(path).tensors(checkpoint.TRAINING)


def test_no_model_names_the_nearest_folder(saved):
    path, _ = saved
    with pytest.raises(UserError, match=r"did you mean .*run.\?"):
        checkpoint.find(path.parents[2] / "rum")


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoint.find(tmp_path)


def test_values_that_are_not_finite_are_not_written_as_json(saved, tmp_path):
    _, model = saved
    path = tmp_path / "step-00000001"
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(path, small_config(), step=1, seconds=float("nan"), model=model.state_dict())
    assert not path.exists()


def test_fifty_kills_while_writing_leave_fifty_readable_runs(tmp_path):
    script = Path(__file__).parent / "kill_while_saving.py"
    done = subprocess.run([sys.executable, script, tmp_path, "50"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["kills"] == 50
    assert report["unreadable"] == 0
    assert report["caught_writing"] >= 10  # else the kills came at harmless moments and prove nothing
