"""What ships: the table of results, the models and their cards, and that each still measures what was recorded."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from draw import checkpoint, cli, results
from draw.config import DataConfig, EvalConfig
from draw.data import load_data
from draw.errors import UserError
from draw.evaluation import evaluate
from draw.presets import PRESETS
from small import data_set
from test_cli import trained_in

ROOT = Path(__file__).parents[1]
SHIPPED = checkpoint.shipped()


def main(capsys, *arguments, code=0):
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == code
    return capsys.readouterr()


def recorded(place, preset, about=("--licence", "none needed", "--limit", "It draws what it was shown.")):
    """Record the run in a place, as if this preset had trained it, and ship it as `tiny`."""
    spec = importlib.util.spec_from_file_location("record", ROOT / "benchmarks" / "record.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "WEIGHTS", place / "weights")
        patch.setattr(results, "RESULTS", place / "results.json")
        record.main([str(place / "run"), preset, "--title", "a tiny one", "--hardware", "none", "--ship", "tiny",
                     "--command", "draw train demo", "--weighted-images", "3", *about])  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model that was recorded as if it shipped: its folder of weights, its results, its data."""
    place = trained_in(tmp_path_factory.mktemp("ships"))
    (place / "weights").mkdir()
    (place / "results.json").write_text('{"rows": []}')
    recorded(place, "demo")
    return place


@pytest.fixture
def ships(tiny, monkeypatch):
    monkeypatch.setattr(checkpoint, "WEIGHTS", tiny / "weights")
    monkeypatch.setattr(results, "RESULTS", tiny / "results.json")
    return tiny


def test_a_model_that_ships_is_found_by_its_name(ships, capsys, tmp_path):
    main(capsys, "sample", "tiny", "--out", tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 0


def test_what_ships_is_half_as_wide_and_loads_as_float32(ships):
    assert all(value.dtype == torch.float32 for value in checkpoint.load("tiny").state_dict().values())
    wide = (checkpoint.find(ships / "run").path / checkpoint.MODEL).stat().st_size
    assert (ships / "weights" / "tiny" / checkpoint.MODEL).stat().st_size < 0.75 * wide  # the header aside


def test_a_damaged_model_that_ships_is_refused(ships, tmp_path, monkeypatch):
    weights = ships / "weights" / "tiny" / checkpoint.MODEL
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match="SHA-256"):
            checkpoint.load("tiny")
    finally:
        weights.write_bytes(whole)


def test_an_unknown_model_names_the_nearest_that_ships(ships, capsys):
    assert "did you mean 'tiny'?" in main(capsys, "sample", "tinny", code=2).err


def test_paper_checks_a_row_by_measuring_it_again(ships, capsys):
    answer = json.loads(main(capsys, "paper", "--check", "tiny", "--json").out)
    assert answer["same"]
    assert answer["measured"]["bound_nats"] == pytest.approx(answer["recorded"]["bound_nats"], abs=1e-3)
    assert answer["measured"]["samples"] == 20


def test_paper_notices_a_row_that_is_not_so(ships, capsys, tmp_path, monkeypatch):
    false = json.loads((ships / "results.json").read_text())
    test = false["rows"][0]["test"]
    test["bound_nats"] -= 6 * test["bound_sampling_se"]  # the images are the same: their spread excuses nothing
    assert 6 * test["bound_sampling_se"] < 0.5 * test["bound_se"]
    (tmp_path / "results.json").write_text(json.dumps(false))
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.json")
    assert "NOT the same" in main(capsys, "paper", "--check", "tiny", code=1).out


def test_paper_and_models_print_the_recorded_numbers(ships, capsys):
    row = results.result("tiny")
    bound = f"{row.test.bound_nats:.2f} ± {row.test.bound_se:.2f}"
    for command in (["paper"], ["models"], ["models", "tiny"]):
        assert bound in main(capsys, *command).out
    assert "80.97" in main(capsys, "paper").out
    assert row.sha256 in main(capsys, "models", "tiny").out
    assert json.loads(main(capsys, "models", "--json").out)["tiny"]["sha256"] == row.sha256


def test_paper_sets_bounds_of_other_images_apart_from_table_1(ships, capsys, tmp_path, monkeypatch):
    first, *_ = json.loads((ships / "results.json").read_text())["rows"]
    rows = [first | {"name": "mnist-1h", "title": "of table 1"}, first | {"name": "demo", "title": "of glyphs"}]
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.json")
    for kept, apart in ((rows, ["demo: of glyphs"]), (rows[:1], None)):
        (tmp_path / "results.json").write_text(json.dumps({"rows": kept}))
        table, _, below = main(capsys, "paper").out.partition("\n\nOther images")
        assert "mnist-1h: of table 1" in table
        assert "80.97" in table
        listed = [line[:15] for line in below.partition("\n\n")[0].splitlines()[1:]]
        assert (listed or None) == apart


def test_example_images_are_as_the_model_is_to_read_them():
    grey, bits = (data_set(grey=True, binarization=kind) for kind in ("none", "stochastic"))
    assert 128 in results.chosen_examples(grey)[0]
    shown, labels = results.chosen_examples(bits, seed=3)
    assert (set(shown.unique().tolist()), labels) == ({0, 255}, [])
    assert shown.equal(results.chosen_examples(bits, seed=3)[0])
    assert not shown.equal(results.chosen_examples(bits, seed=4)[0])


def test_without_its_images_a_model_that_ships_answers_with_what_was_recorded(ships, capsys, monkeypatch):
    monkeypatch.setattr("draw.sources.available", lambda data_dir: {str(ships / "small.npz"): False})
    told = main(capsys, "evaluate", "tiny", "--json")
    assert json.loads(told.out)["recorded"] is True
    assert json.loads(told.out)["bound_nats"] == results.result("tiny").test.bound_nats
    assert "is not here" in told.err
    for measures in (["--precision", "bfloat16"], ["--threads", "1"], ["--device", "cpu"]):
        assert json.loads(main(capsys, "evaluate", "tiny", "--json", *measures).out)["recorded"] is False


def test_with_its_images_a_model_that_ships_is_measured(ships, capsys):
    told = json.loads(main(capsys, "evaluate", "tiny", "--samples", "20", "--json").out)
    assert told["recorded"] is False
    assert told["bound_nats"] == pytest.approx(results.result("tiny").test.bound_nats, abs=1e-3)


def test_a_card_of_other_images_is_not_that_of_binarised_mnist(tiny):
    with pytest.raises(SystemExit, match=r"a card of .*small.npz: give its --licence and at least one --limit"):
        recorded(tiny, "demo", about=())


def test_a_model_that_takes_the_place_of_another_leaves_its_row(tiny, tmp_path, monkeypatch, capsys):
    place = shutil.copytree(tiny, tmp_path / "ships")
    (place / "weights" / "tiny-other").mkdir()  # whose name begins alike
    recorded(place, "svhn")
    recorded(place, "mnist")
    assert sorted(path.name for path in (place / "weights").iterdir()) == ["tiny", "tiny-other"]
    monkeypatch.setattr(results, "RESULTS", place / "results.json")
    assert [(row.name, row.model) for row in results.results()] == [("demo", None), ("mnist", "tiny"), ("svhn", None)]
    assert results.result("tiny").name == "mnist"
    assert "demo" in main(capsys, "paper").out
    assert "the weights of 'demo' do not ship" in main(capsys, "paper", "--check", "demo", code=2).err


def test_names_that_do_not_ship_are_one_line(ships, capsys):
    assert "did you mean 'tiny'?" in main(capsys, "models", "tinny", code=2).err
    assert "did you mean 'tiny'?" in main(capsys, "paper", "--check", "tinny", code=2).err


def test_a_page_of_a_model_that_ships_has_images_to_read_and_ranks_them(ships, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("draw.sources.available", lambda data_dir: {str(ships / "small.npz"): False})
    told = main(capsys, "export", "tiny", tmp_path / "page.html", "--json")
    assert json.loads(told.out)["examples"] == results.EXAMPLES
    assert told.err == ""
    page = (tmp_path / "page.html").read_text()
    _, percentiles = results.card("tiny")
    assert json.dumps(percentiles.one_sample.percentiles_nats) in page


# What really ships


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_is_complete_and_its_weights_are_those_of_its_row(name):
    found, card = results.card(name)
    row = results.result(name)
    assert found.sha256[checkpoint.MODEL] == row.sha256
    assert (found.path / checkpoint.MODEL).stat().st_size <= 6e6
    assert abs(card.float32_bound_nats - card.one_sample.bound_nats) < 0.01
    assert card.data
    assert card.licence
    assert card.limits
    assert row.test.images == (1_000 if name == "cifar10" else 10_000)  # as many as were at hand
    assert row.test.samples == 20
    assert found.model().telling_latents() == card.telling_latents


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_that_ships_measures_what_was_recorded(name, shared_data):
    found, card = results.card(name)
    data = load_data(DataConfig(found.config.data.source), shared_data)
    measured = evaluate(found.model(), data, EvalConfig(images=card.subset.images))
    assert measured.bound_nats == pytest.approx(card.subset.bound_nats, abs=0.01)


def test_every_row_is_of_a_preset_and_has_its_own_name():
    rows = results.results()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert set(names) <= set(PRESETS)
    assert sorted(row.model for row in rows if row.model) == SHIPPED


def test_the_percentiles_of_a_measurement_are_of_its_images(ships):
    data = load_data(DataConfig(str(ships / "small.npz")))
    measured = evaluate(checkpoint.load("tiny"), data, EvalConfig(split="valid"))
    assert len(measured.percentiles_nats) == 21
    assert measured.percentiles_nats == sorted(measured.percentiles_nats)
    assert math.isclose(measured.percentiles_nats[10], np.median(bounds_of(data, "valid")), abs_tol=1e-3)


def bounds_of(data, split):
    """Each image's bound, measured alone in the batch that `evaluate` makes of the split."""
    from draw.objective import losses

    model = checkpoint.load("tiny")
    x = data.images[split] / 255
    return losses(x, model(model.noise(len(x), 0, "bound", 0, 0), x), model.likelihood).bound.numpy()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_says_the_bound_of_all_validation_images(name):
    assert checkpoint.find(name).info["bound_nats"] == results.result(name).valid.bound_nats
