"""The configuration: JSON both ways, every key known, every value valid."""

import dataclasses
import json
import math

import numpy as np
import pytest

from draw.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    fields_of,
    from_dict,
    from_json,
    strict_json,
    to_dict,
)
from draw.errors import UserError, nearest
from draw.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_json_both_ways_changes_nothing(name):
    config = preset(name)
    assert from_json(RunConfig, json.dumps(to_dict(config))) == config


def test_field_names_are_unique_across_the_sections():
    names = [f.name for section in (ModelConfig, DataConfig, TrainConfig) for f in fields_of(section)]
    assert len(names) == len(set(names))


def test_every_field_has_help():
    for section in (ModelConfig, DataConfig, TrainConfig, EvalConfig):
        assert all(f.metadata["help"] for f in fields_of(section))


def test_replace_reaches_every_section():
    config = RunConfig().replace(steps=3, source="mnist", seed=7, read_n=None)
    assert (config.model.steps, config.data.source, config.train.seed, config.model.read_n) == (3, "mnist", 7, None)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().model.steps = 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": {"step": 3}}', "unknown setting 'model.step'; did you mean 'steps'?"),
        ('{"model": {"steps": "3"}}', "model.steps: expected int, got '3'"),
        ('{"model": {"steps": true}}', "model.steps: expected int, got True"),
        ('{"train": {"learning_rate": NaN}}', "NaN is not JSON"),
        ('{"train": {"seed": 1, "seed": 2}}', "a key is repeated"),
        ('{"data": {"binarization": "statik"}}', "expected auto, static, stochastic, none, got 'statik'"),
        ('{"model": []}', "model: expected an object with settings"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_faulty_file_is_refused_by_name(text, message):
    with pytest.raises(UserError) as error:
        from_json(RunConfig, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (ModelConfig, {"steps": 0}, "steps must be at least 1, got 0"),
        (ModelConfig, {"read_n": 0}, "read_n must be at least 1, or none"),
        (ModelConfig, {"channels": 4}, "channels must be 1 or 3, got 4"),
        (TrainConfig, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (TrainConfig, {"ema_decay": 1.0}, "ema_decay must be in [0, 1)"),
        (TrainConfig, {"adam_power": 1.1}, "adam_power must be in [0, 1], got 1.1"),
        (TrainConfig, {"adam_power": math.nan}, "adam_power must be in [0, 1], got nan"),
        (TrainConfig, {"weight_decay": -0.1}, "weight_decay must be 0 or more, got -0.1"),
        (TrainConfig, {"weight_decay": math.nan}, "weight_decay must be 0 or more, got nan"),
        (TrainConfig, {"weight_decay": math.inf}, "weight_decay must be 0 or more, got inf"),
        (TrainConfig, {"weight_decay": 2e38}, "weight_decay must be at most 1e+38, got 2e+38"),
        (TrainConfig, {"learning_rate": 1e300}, "learning_rate must be at most 1e+38, got 1e+300"),
        (TrainConfig, {"learning_rate": 10**400}, "learning_rate: expected float, got 1000"),
        (TrainConfig, {"validation_images": 10**6 + 1}, "validation_images must be at most 1,000,000, got 1000001"),
        (TrainConfig, {"fall_from": 1.0}, "fall_from must be in [0, 1)"),
        (TrainConfig, {"seed": -1}, "seed must be from 0 to 2**63 - 1, got -1"),
        (DataConfig, {"size": "big"}, "size must be SIDE or HEIGHTxWIDTH"),
        (EvalConfig, {"samples": 0}, "samples must be at least 1"),
    ],
)
def test_an_impossible_value_is_refused_by_name(section, values, message):
    with pytest.raises(UserError) as error:
        from_dict(section, values)
    assert message in str(error.value)


def test_whole_numbers_are_valid_where_any_number_is():
    assert from_dict(TrainConfig, {"learning_rate": 1}).learning_rate == 1.0


def test_numbers_of_numpy_are_numbers():
    config = RunConfig().replace(learning_rate=np.float32(0.5), weight_decay=np.float64(0.25), batch_size=np.int64(4))
    assert from_json(RunConfig, json.dumps(to_dict(config))) == config
    for name, value in (("batch_size", np.float64(4)), ("learning_rate", np.bool_(True)), ("steps", True)):
        with pytest.raises(UserError, match=f"{name}: expected "):
            RunConfig().replace(**{name: value})


def test_an_unknown_setting_of_replace_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'steps'"):
        RunConfig().replace(stepz=1)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        preset("mnits")


def test_nothing_near_lists_the_choices():
    assert nearest("zzz", ["one", "two"]) == "choose one of one, two"


def test_infinity_is_not_json():
    with pytest.raises(UserError, match="Infinity is not JSON"):
        strict_json("[Infinity]")


def test_sizes_are_height_and_width():
    assert DataConfig(size="24x48").size_hw == (24, 48)
    assert DataConfig(size="32").size_hw == (32, 32)


def test_the_paper_settings_are_presets():
    table_3 = {"mnist": (64, 256, 100, 2, 5), "svhn": (32, 800, 100, 12, 12), "cifar10": (64, 400, 200, 5, 5)}
    for name, sizes in table_3.items():
        m = preset(name).model
        assert (m.steps, m.enc_size, m.z_size, m.read_n, m.write_n) == sizes
        assert m.dec_size == m.enc_size
