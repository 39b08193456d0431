"""Results in words: what the command line prints of measurements, models and timings, as texts.

No array library is imported here, so that it costs `draw --help` nothing.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from draw.config import to_dict
from draw.presets import PRESETS

if TYPE_CHECKING:
    from draw.bench import Report
    from draw.checkpoint import Checkpoint
    from draw.evaluation import Evaluation
    from draw.growth import Sweep
    from draw.results import Card, Result


def error(standard_error: float | None) -> str:
    """The standard error after a number, if it has one."""
    return "" if standard_error is None else f" ± {standard_error:.2f}"


def bound(measured: "Evaluation") -> str:
    """The bound with its standard error, nats."""
    return f"{measured.bound_nats:.2f}{error(measured.bound_se)}"


def above_entropy(measured: "Evaluation") -> str:
    """What the bound of intensities is above their own entropy, with its standard error, nats."""
    return f"{measured.above_entropy_nats:.2f}{error(measured.above_entropy_se)}"


def evaluation(name: str, measured: "Evaluation") -> str:
    """A measurement on the data set of this name."""
    bits = "" if measured.bits_per_dim is None else f" ({measured.bits_per_dim:.4f} bits/dim)"
    lines = [
        f"{name}, {measured.split} split, {measured.images:,} images, binarization {measured.binarization}",
        f"bound  {bound(measured)} nats{bits}, {measured.samples} sample{'s' * (measured.samples > 1)} per image",
        f"       L^x {measured.loss_x_nats:.2f} + L^z {measured.loss_z_nats:.2f}",
    ]
    if measured.iw_nats is not None:
        lines.append(f"IW-{measured.importance_samples}  {measured.iw_nats:.2f}{error(measured.iw_se)} nats, "
                     f"effective sample size {measured.effective_sample_size:.1f} (median)")  # fmt: skip
    lines.append("KL per glimpse  " + " ".join(f"{value:.2f}" for value in measured.kl_per_glimpse_nats))
    if measured.kl_per_latent_nats:
        lines.append(f"99 % of L^z in {latents_in_use(measured.kl_per_latent_nats)} of "
                     f"{len(measured.kl_per_latent_nats)} latents")  # fmt: skip
    if measured.binarization == "none":
        lines.append("The targets are intensities, not bits: these nats are a cross-entropy, no code length.")
    if measured.above_entropy_nats is not None:
        entropy = measured.bound_nats - measured.above_entropy_nats
        lines.append(f"{entropy:.2f} of them are the intensities' own entropy, which no model goes below; "
                     f"{above_entropy(measured)} are above it")  # fmt: skip
    return "\n".join([*lines, f"measured in {measured.seconds:.1f} seconds"])


def latents_in_use(kl_per_latent_nats: list[float]) -> int:
    """How many latents carry 99 % of the KL."""
    import torch

    from draw.distributions import carrying_latents

    return len(carrying_latents(torch.tensor(kl_per_latent_nats, dtype=torch.float64)))


def again(was: "Evaluation", now: "Evaluation", same: bool, error: float) -> str:
    """A recorded measurement, and the one made to check it; they may differ by `error` nats."""
    because = "the noise of the latents" if now.images == was.images else "the choice of the images"
    return (
        f"recorded  {bound(was)} nats\nmeasured  {bound(now)} nats, {now.images:,} {now.split} images, "
        f"{now.samples} samples each, {now.seconds:.0f} seconds\n"
        f"{'' if same else 'NOT '}the same within {error:.2g} nats, what {because} may change"
    )


def result(row: "Result") -> str:
    """A row of the results, with what the table has no room for."""
    iw = row.weighted
    lines = [
        f"bound          test {bound(row.test)} nats ({row.test.samples} samples), valid {bound(row.valid)} "
        f"({row.valid.samples})",
        f"IW-{iw.importance_samples:<12,}{iw.iw_nats:.2f}{error(iw.iw_se)} nats on {iw.images:,} test images, whose "
        f"bound is {bound(iw)}; effective sample size {iw.effective_sample_size:.1f} (median)",
        f"training       {row.steps:,} steps, {row.epochs:.0f} epochs, seed {row.seed}, {row.hours:.2f} hours on "
        f"{row.hardware}, commit {row.commit}",
        *(f"               {command}" for command in row.commands),
        f"weights        SHA-256 {row.sha256}",
    ]
    return "\n".join(lines)


def paper(rows: "Iterable[Result]") -> str:
    """Table 1 of the paper, its numbers beside ours; the rows of other images; and then each row in full."""
    from draw.results import PAPER, PUBLISHED

    ours = {row.name: row for row in rows}
    others = {name: row for name, row in ours.items() if PRESETS[name].data.source != "binarized-mnist"}
    lines = [
        "Table 1: fixed binarised MNIST, all 10,000 test images, upper bounds on -log p(x) in nats per image",
        f"{'':<60}{'paper':>7}{'here':>15}",
        *(f"{name:<60}{published:>7.2f}" for name, published in PUBLISHED.items()),
    ]
    titles = {name: title for name, (title, _) in PAPER.items()}
    titles |= {name: row.title for name, row in ours.items() if name not in others}
    for name, title in titles.items():
        reported = f"{PAPER[name][1]:.2f}" if name in PAPER else ""
        here = bound(ours[name].test) if name in ours else "not trained"
        lines.append(f"{f'{name}: {title}':<60}{reported:>7}{here:>15}")
    if others:
        lines += ["", "Other images, of which the paper gives no number; test images, nats per image"]
        for name, row in others.items():
            lines.append(f"{f'{name}: {row.title}':<67}{bound(row.test):>15}")
            if row.test.above_entropy_nats is not None:
                lines.append(f"{'  intensities as targets, no code length; above their own entropy':<67}"
                             f"{above_entropy(row.test):>15}")  # fmt: skip
    for row in ours.values():
        lines += ["", f"{row.name}: {row.title}" + (f"; {row.note}" if row.note else ""), result(row)]
    return "\n".join(lines)


def card(checkpoint: "Checkpoint", about: "Card", row: "Result") -> str:
    """The card of a model that ships."""
    lines = [
        f"{row.model}: {row.title}",
        f"data           {about.data}",
        f"licence        {about.licence}",
        "configuration  " + ", ".join(f"{k} {v}" for k, v in to_dict(checkpoint.config.model).items()),
        result(row),
        f"float32        {about.float32_bound_nats:.3f} nats on test (1 sample) before the weights were rounded to "
        f"what ships, {about.one_sample.bound_nats:.3f} after",
        *(f"limit          {limit}" for limit in about.limits),
    ]
    return "\n".join(lines)


def report(timed: "Report", first: bool) -> str:
    """A report of `draw bench` as a table; the circumstances once, before the first."""
    what = {
        "train": f"one step of {timed.images:,} images",
        "evaluate": f"{timed.images:,} images, {timed.batch_size:,} at a time",
        "sample": f"{timed.images:,} images drawn",
    }[timed.what]
    lines = [
        *([setting(timed)] if first else []),
        f"\n{timed.what}, preset {timed.preset}: {what}; {timed.repeats} repeats in turn",
        f"{'':<20}{'min ms':>12}{'median ms':>12}",
    ]
    rows = (
        ("plain, float32", timed.plain_s),
        (f"fast, {timed.floor_precision}", timed.fast_s),
        (f"floor, {timed.floor_precision}", timed.floor_s),
        ("floor, float32", timed.floor_float32_s),
        ("draw sample, whole", timed.process_s),
    )
    lines += [f"{name:<20}{milliseconds(pair.min)}{milliseconds(pair.median)}" for name, pair in rows if pair]
    for name, pair in {"plain / fast": timed.plain_over_fast, "fast / floor": timed.fast_over_floor}.items():
        if pair:
            lines.append(f"{name:<20}{pair.min:>12.2f}{pair.median:>12.2f}")
    lines.append(f"{'images per second':<20}{'':>12}{timed.images_per_s:>12,.0f}")
    first_call, memory = f"{timed.first_step_s:.2f} s", f"{timed.peak_memory_bytes / 1e6:,.1f} MB"
    if timed.plain_first_step_s is not None and timed.plain_peak_memory_bytes is not None:
        first_call += f", plain {timed.plain_first_step_s:.2f} s"
        memory += f", plain {timed.plain_peak_memory_bytes / 1e6:,.1f} MB"
    return "\n".join([*lines, f"{'first call':<20}  {first_call}", f"{'peak memory':<20}  {memory}"])


def sweep(grown: "Sweep") -> str:
    """The sweeps of `draw bench --grow` as a table."""
    lines = [
        setting(grown),
        f"preset {grown.preset}, {grown.batch_size} images per step unless said, {grown.repeats} repeats in turn",
        f"{'':<8}{'size':>6}{'min ms':>12}{'median ms':>12}{'peak MB':>10}{'fixed MB':>10}",
    ]
    for axis, growth in grown.axes.items():
        for point in growth.points:
            memory = f"{point.peak_memory_bytes / 1e6:>10,.1f}{point.fixed_memory_bytes / 1e6:>10,.1f}"
            times = milliseconds(point.seconds.min) + milliseconds(point.seconds.median)
            lines.append(f"{axis:<8}{point.size:>6}{times}{memory}")
        laws = {"time": growth.time, "memory above the fixed part": growth.memory}
        fitted = (f"{name} ~ {axis}^{law.exponent:.2f}" for name, law in laws.items() if law)
        lines.append(" " * 8 + ", ".join(fitted))
    return "\n".join(lines)


def setting(timed: "Report | Sweep") -> str:
    """On what, with which versions and how something was timed."""
    here, versions = timed.hardware, timed.versions
    threads = f"{here['threads']} thread" + "s" * (here["threads"] > 1)
    commit = timed.commit or "an unknown commit"
    return "\n".join(
        [
            f"hardware  {here['processor']}, {here['cores']} cores, {threads}, device {here['device']}",
            f"versions  draw {versions['draw']} at {commit}, torch {versions['torch']}, python {versions['python']}",
            "computed  " + ", ".join(f"{name} {value}" for name, value in timed.config["speed"].items()),
        ]
    )


def milliseconds(seconds: float) -> str:
    """A time in a table's column."""
    return f"{1_000 * seconds:>12,.2f}"
