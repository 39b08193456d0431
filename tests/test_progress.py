"""What is said of a run while it trains."""

import dataclasses

import pytest

from draw.config import TrainConfig
from draw.progress import TrainingProgress
from draw.run import Validation
from draw.training import Metrics


def trained(step, bound):
    return Metrics(step, 0.0, 4, 1.0, bound, bound - 1, 1.0, 2.0, 1e-3, 100.0)


def validated(step, bound, best=False):
    return Validation(step, 1.0, bound, 0.5, bound - 1, 1.0, 10, 4, best)


@pytest.fixture
def told(capsys):
    """Shows records, and gives what is said of the last one."""

    def show(*records):
        with TrainingProgress(TrainConfig(), None, 0, 0.0) as progress:
            for record in records:
                progress.show(record)
        return capsys.readouterr().err.splitlines()[-1]

    return show


def test_a_best_validation_is_said_to_be_one(told):
    assert told(validated(10, 90.0, best=True)).endswith("±0.50 (best so far)")


def test_another_is_set_beside_the_best(told):
    records = [validated(10, 90.0, best=True), trained(20, 91.0), validated(20, 90.5)]
    assert told(*records).endswith("±0.50 (best 90.00, step 10)")


def test_without_a_best_one_in_this_call_nothing_is_said(told):
    assert told(validated(10, 90.0)).endswith("±0.50")


def test_a_resumed_run_is_set_beside_the_best_one_before_it(capsys):
    log = [trained(10, 91.0), validated(10, 90.0, best=True), trained(20, 89.0), validated(20, 90.5)]
    records = [{"kind": "run"}, *(dataclasses.asdict(record) for record in log)]
    with TrainingProgress(TrainConfig(), None, 20, 1.0, records) as progress:
        progress.show(trained(30, 150.0))
        progress.show(validated(30, 120.0))
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("(best 90.00, step 10; the run has broken down: try a lower --learning-rate)")
    )


def test_a_run_that_has_broken_down_is_told_what_to_try(told):
    best = [trained(1_000, 95.0), validated(1_000, 90.0, best=True)]
    assert told(*best, trained(2_000, 150.0), validated(2_000, 120.0)).endswith(
        "(best 90.00, step 1,000; the run has broken down: try a lower --learning-rate)"
    )


@pytest.mark.parametrize(("before", "after"), [(95.0, 60.0), (95.0, 100.0), (140.0, 130.0)])
def test_a_run_whose_validation_images_alone_are_worse_has_not_broken_down(told, before, after):
    best = [trained(1_000, before), validated(1_000, 90.0, best=True)]
    assert told(*best, trained(2_000, after), validated(2_000, 120.0)).endswith("(best 90.00, step 1,000)")
