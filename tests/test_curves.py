"""The curve of a run: a readable picture whatever has been logged."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from draw import curves
from draw.errors import UserError


def record(kind, step, bound):
    values = {"bound_nats": bound, "loss_x_nats": 0.7 * bound, "loss_z_nats": 0.3 * bound}
    return {"kind": kind, "step": step, "seconds": 0.5 * step} | values | ({"bound_se": 0.3} if kind == "valid" else {})


def train_records(count):
    return [record("train", 50 * i, 90 + 400 / i) for i in range(1, count + 1)]


VALID = [record("valid", 500, 130.0), record("valid", 1_000, 110.0)]


@pytest.mark.parametrize(
    "records",
    [train_records(1), train_records(30), train_records(300) + VALID, VALID[:1], [record("train", 0, 5.0)] * 2],
    ids=["one record", "no validation yet", "a whole run", "validation alone", "two equal records"],
)
def test_a_curve_is_a_png_of_1000_by_750(records, tmp_path):
    curves.curve([{"kind": "run"}, *records], tmp_path / "new" / "c.png", title="a run")
    with Image.open(tmp_path / "new" / "c.png") as image:
        assert (image.format, image.size) == ("PNG", (1_000, 750))


def test_the_curve_of_a_run_that_has_logged_nothing_are_an_error_line(tmp_path):
    with pytest.raises(UserError, match="cannot plot a run: no training"):
        curves.curve([{"kind": "run"}], tmp_path / "c.png", title="a run")


def drawn_axes(monkeypatch, tmp_path, records):
    """The axes of a plot, kept from its figure."""
    kept = []
    original = Figure.savefig

    def keep(figure, *args, **kwargs):
        kept.append(figure)
        return original(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    curves.curve(records, tmp_path / "c.png", title="a run")
    return kept[0].axes


def test_curves_cut_off_the_first_spike_and_say_so(monkeypatch, tmp_path):
    above, _ = drawn_axes(monkeypatch, tmp_path, train_records(200))
    assert above.get_ylim()[1] < 150
    assert "cut off above, up to 490" in [text.get_text() for text in above.texts]


def test_curves_name_the_best_validation_bound(monkeypatch, tmp_path):
    above, _ = drawn_axes(monkeypatch, tmp_path, train_records(200) + VALID)
    assert "best validation bound 110.0 ± 0.3" in [text.get_text() for text in above.texts]


def test_curves_show_nats_over_minutes(monkeypatch, tmp_path):
    above, below = drawn_axes(monkeypatch, tmp_path, train_records(200))
    assert (above.get_ylabel(), below.get_xlabel()) == ("nats per image", "minutes of training")
    assert above.lines[0].get_xdata()[-1] == pytest.approx(200 * 50 * 0.5 / 60)


def test_validations_of_glimpses_that_were_not_trained_yet_are_left_out(monkeypatch, tmp_path):
    growing = [r | {"glimpses": 8 if r["step"] < 800 else 16} for r in train_records(200)]
    above, _ = drawn_axes(monkeypatch, tmp_path, growing + VALID)
    assert circles(above) == [110.0]


@pytest.mark.parametrize("name", ["runs/a$x^$", "runs/\udcff", "runs/\u65e5\u672c"])
def test_whatever_a_folder_is_named_it_can_be_a_title(tmp_path, name, recwarn):
    curves.curve(train_records(5), tmp_path / "c.png", title=name)
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert not recwarn.list


def circles(axes):
    return next(line for line in axes.lines if line.get_markerfacecolor() == "white").get_ydata().tolist()


def test_validations_that_say_their_glimpses_are_shown_and_the_best_has_the_most(monkeypatch, tmp_path):
    growing = [r | {"glimpses": 8 if r["step"] < 800 else 16} for r in train_records(200)]
    valid = [VALID[0] | {"glimpses": 8, "bound_nats": 105.0}, VALID[1] | {"glimpses": 16}]
    above, _ = drawn_axes(monkeypatch, tmp_path, growing + valid)
    assert circles(above) == [105.0, 110.0]
    assert "best validation bound 110.0 ± 0.3" in [text.get_text() for text in above.texts]
