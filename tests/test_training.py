"""Training in memory: it learns, it goes on exactly, it stops at the first value that is not finite."""

import dataclasses

import pytest
import torch

from draw.config import EvalConfig, TrainConfig
from draw.distributions import Bernoulli, kl_per_latent
from draw.errors import UserError
from draw.evaluation import evaluate
from draw.model import DRAW
from draw.training import NonFiniteError, Trainer, glimpses, learning_rate, schedule_fraction
from small import data_set, in_patches, small_config


def trained(steps, config=None, data=None):
    trainer = Trainer(config or small_config(), data or data_set())
    for _ in range(steps):
        trainer.train_step(0.0)
    return trainer


def assert_same_state(one, other):
    for mine, theirs in ((one.state(), other.state()), (one.ema.state_dict(), other.ema.state_dict())):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), name


@pytest.mark.parametrize(("n", "margin"), [(None, 12), (3, 3)])
def test_sixteen_images_are_learned_in_seconds(n, margin):
    data = data_set(train=16, height=8, width=8)
    images = data.images["train"].float() / 255
    mean = images.mean(0, keepdim=True).clamp(0.01, 0.99)
    pixels_alone = Bernoulli().loss_x(images, mean.logit().expand_as(images)).mean()  # 34 nats: no latents used
    sizes = {"height": 8, "width": 8, "enc_size": 32, "dec_size": 32, "read_n": n, "write_n": n}
    settings = {"iterations": 300, "learning_rate": 1e-2, "warmup": 20, "batch_size": 16, "log_every": 60}
    trainer = trained(300, small_config(**sizes, **settings), data)
    same_images = dataclasses.replace(data, images=data.images | {"test": data.images["train"]})
    assert evaluate(trainer.ema, same_images).bound_nats < pixels_alone - margin


def test_the_same_seed_gives_the_same_bits():
    assert_same_state(trained(5), trained(5))


def test_another_seed_gives_other_weights():
    one, other = trained(0), trained(0, small_config(seed=1))
    assert not torch.equal(one.model.decoder.to_gates.weight, other.model.decoder.to_gates.weight)


@pytest.mark.parametrize("power", [0.5, 0.75])
def test_going_on_from_a_state_is_never_having_stopped(power):
    config = small_config(adam_power=power)
    whole, part = trained(7, config), trained(4, config)
    resumed = Trainer(config, data_set())
    resumed.load_state({k: v.clone() for k, v in part.state().items()}, part.ema.state_dict(), part.step)
    for _ in range(3):
        resumed.train_step(0.0)
    assert_same_state(whole, resumed)


def test_a_state_of_other_sizes_is_refused_by_name():
    part = trained(1)
    other = Trainer(small_config(z_size=3), data_set())
    with pytest.raises(ValueError, match=r"adam\.exp_avg\.decoder\.to_gates\.weight is \(\d+, \d+\)"):
        other.load_state(part.state(), part.ema.state_dict(), part.step)


def test_noise_differs_from_step_to_step():
    trainer = trained(0)
    assert not torch.equal(trainer.model.noise(2, 0, "train", 0), trainer.model.noise(2, 0, "train", 1))


def test_stochastic_binarization_is_fresh_at_every_step_and_the_same_when_asked_again():
    grey = data_set(binarization="stochastic", grey=True)
    same_image = dataclasses.replace(grey, images=grey.images | {"train": torch.full((40, 1, 6, 5), 128).byte()})
    trainer = Trainer(small_config(), same_image)
    assert not torch.equal(trainer.batch(0), trainer.batch(1))
    assert torch.equal(trainer.batch(1), trainer.batch(1))


def test_patches_are_other_ones_at_every_step_and_the_same_when_asked_again():
    data = in_patches(data_set(train=8, height=9, width=9), 6, 5)  # a batch is an epoch: the images are the same
    trainer, again = Trainer(small_config(), data), Trainer(small_config(), data)
    batches = [trainer.batch(step) for step in range(3)]
    assert batches[0].shape == (8, 1, 6, 5)
    assert not torch.equal(batches[0].sum((1, 2, 3)).sort().values, batches[1].sum((1, 2, 3)).sort().values)
    for step in (2, 0):
        assert torch.equal(again.batch(step), batches[step])
    assert evaluate(trainer.ema, data, EvalConfig(split="train")).images == 8  # of the middle ones


def test_the_averaged_weights_follow_the_recursion():
    trainer = trained(0, small_config(ema_decay=0.5))
    for step in range(1, 14):
        before = trainer.ema.canvas0.clone()
        trainer.train_step(0.0)
        decay = min(0.5, step / (step + 10))
        average = decay * before + (1 - decay) * trainer.model.canvas0
        torch.testing.assert_close(trainer.ema.canvas0, average.detach())


def test_the_first_step_is_as_long_as_the_learning_rate():
    # Adam's first step is lr * sign(gradient) wherever the gradient is not negligible: its size must be lr.
    trainer = trained(0, small_config(learning_rate=1e-2, warmup=1))
    before = trainer.model.canvas0.clone()
    trainer.train_step(0.0)
    assert (trainer.model.canvas0 - before).abs().max().item() == pytest.approx(1e-2, rel=1e-3)


def test_the_power_of_adams_second_moment_counts_from_the_step_on_at_which_it_is_given():
    part, changed = trained(4), Trainer(small_config(adam_power=0.75), data_set())
    changed.load_state({k: v.clone() for k, v in part.state().items()}, part.ema.state_dict(), part.step)
    for trainer in (part, changed):
        trainer.train_step(0.0)
    ours, theirs = changed.state(), part.state()
    for name, value in ours.items():  # the same gradient, the same moments, another step
        if not name.startswith("model."):
            torch.testing.assert_close(value, theirs[name], msg=name)
    assert not torch.equal(ours["model.decoder.to_gates.weight"], theirs["model.decoder.to_gates.weight"])


def test_weight_decay_takes_off_the_learning_rates_share_of_every_matrix_and_of_nothing_else():
    settings = {"learning_rate": 1e-2, "warmup": 1}
    kept, decayed = (trained(1, small_config(weight_decay=decay, **settings)).model for decay in (0.0, 0.5))
    for (name, first), plain, less in zip(
        trained(0).model.named_parameters(), kept.parameters(), decayed.parameters(), strict=True
    ):
        share = 1e-2 * 0.5 if name.endswith("weight") else 0.0
        torch.testing.assert_close(plain - less, share * first, rtol=1e-3, atol=1e-7, msg=name)
        assert share == 0 or first.abs().max() > 0.01  # it had something to lose


def test_the_gradient_norm_reported_is_the_one_before_clipping():
    trainer = trained(1, small_config(clip_norm=1e-3, log_every=1))
    assert trainer.metrics(1.0, 1.0).grad_norm > 1e-2


def test_metrics_are_means_since_the_last_line():
    one_by_one = trained(0, small_config(log_every=1))
    bounds = []
    for _ in range(4):
        one_by_one.train_step(0.0)
        bounds.append(one_by_one.metrics(1.0, 1.0).bound_nats)
    four = trained(4, small_config(log_every=4)).metrics(1.0, 1.0)
    assert four.bound_nats == pytest.approx(sum(bounds) / 4)
    assert four.bound_nats == pytest.approx(four.loss_x_nats + four.loss_z_nats)
    assert four.epoch == pytest.approx(4 * 8 / 40)


@pytest.mark.parametrize("name", ["decoder.to_gates.weight", "canvas0"])
def test_a_weight_that_is_not_finite_is_named_with_the_step(name):
    trainer = trained(3)
    with torch.no_grad():
        dict(trainer.model.named_parameters())[name].view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteError, match=f"step 3: weight {name} is not finite"):
        trainer.train_step(0.0)


def test_an_intermediate_that_is_not_finite_is_named_with_its_glimpse():
    trainer = trained(2)
    with torch.no_grad():
        trainer.model.to_log_sigma.bias.fill_(100.0)  # finite, but exp(2 * 100) is not
    with pytest.raises(NonFiniteError, match=r"step 2: .* is not finite"):
        trainer.train_step(0.0)


def test_nothing_is_updated_when_the_loss_is_not_finite():
    trainer = trained(2)
    with torch.no_grad():
        trainer.model.canvas0.view(-1)[0] = float("inf")
    before = {name: tensor.clone() for name, tensor in trainer.state().items()}
    with pytest.raises(NonFiniteError):
        trainer.train_step(0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state().items())
    assert trainer.step == 2


def test_the_learning_rate_warms_up_then_falls_to_zero():
    config = TrainConfig(iterations=1000, warmup=100, learning_rate=1.0)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.01)
    assert learning_rate(config, 49, 0.0) == pytest.approx(0.5, rel=0.01)
    assert learning_rate(config, 500, 0.0) == pytest.approx(0.5)
    assert learning_rate(config, 1000, 0.0) == pytest.approx(0.0)


def test_the_learning_rate_can_stay_at_its_peak_and_then_fall_along_the_same_cosine():
    config = TrainConfig(iterations=1000, warmup=100, learning_rate=1.0, fall_from=0.6)
    rates = [learning_rate(config, step, 0.0) for step in (49, 100, 599, 700, 800, 900, 1000)]
    assert rates == pytest.approx([0.5, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0])


def test_a_schedule_in_minutes_follows_the_clock_and_not_the_steps():
    config = TrainConfig(schedule_minutes=2.0, iterations=10)
    assert schedule_fraction(config, 10_000, 60.0) == pytest.approx(0.5)
    assert schedule_fraction(config, 0, 121.0) == 1.0


def test_glimpses_double_from_the_first_number_to_all_of_them():
    config = TrainConfig(grow_from=4, grow_until=0.6, iterations=100)
    counts = [glimpses(config, 30, step, 0.0) for step in range(101)]
    assert [counts[step] for step in (0, 19, 20, 39, 40, 59, 60, 100)] == [4, 4, 8, 8, 16, 16, 30, 30]
    assert counts == sorted(counts)


def test_without_growth_there_are_always_all_glimpses():
    assert glimpses(TrainConfig(), 30, 0, 0.0) == 30
    assert glimpses(TrainConfig(grow_from=99), 30, 0, 0.0) == 30


def test_only_the_latents_that_are_awake_are_in_use_at_the_start():
    trainer = Trainer(small_config(awake=2), data_set())
    model, x = trainer.model, trainer.batch(0)
    whole = DRAW(small_config().model, mean_pixel=data_set().mean_pixel)
    for name, weight in model.named_parameters():  # nothing else differs
        if name not in (
            "decoder.to_gates.weight",
            "to_mu.weight",
            "to_mu.bias",
            "to_log_sigma.weight",
            "to_log_sigma.bias",
        ):
            assert torch.equal(weight, whole.get_parameter(name))
    eps = model.noise(len(x), "noise")
    drawing = model(eps, x)
    per_latent = kl_per_latent(drawing.latent.q, drawing.latent.p)
    assert (per_latent[..., :2] > 0).all()
    assert (per_latent[..., 2:] == 0).all()
    other = eps.clone()
    other[..., 2:] += 1
    assert torch.equal(model(other, x).canvas, drawing.canvas)
    other[..., :2] += 1
    assert not torch.equal(model(other, x).canvas, drawing.canvas)


def test_a_sleeping_latent_can_wake():
    trainer = trained(12, small_config(awake=2))
    assert (trainer.model.decoder.to_gates.weight[:, 2:4] != 0).any()
    assert (trainer.model.to_mu.weight[2:] != 0).any()


def test_more_latents_awake_than_there_are_is_all():
    assert_same_state(trained(3), trained(3, small_config(awake=9)))


def test_latents_of_another_cell_cannot_be_put_to_sleep():
    class Plain(torch.nn.Module):
        def __init__(self, input_size, size):
            super().__init__()
            self.map = torch.nn.Linear(input_size + size, size)

    with pytest.raises(UserError, match="awake needs the paper's LSTM, not Plain"):
        Trainer(small_config(awake=2), data_set(), build=lambda config, **start: DRAW(config, cell=Plain, **start))
