"""The kernels that make all glimpses in one pass, on the CPU and for CUDA: the numbers of the plain model.

CUDA's are run on the CPU thread by thread (cuda_on_cpu.h), the CPU's in float32 and in bfloat16, whose products are
made by a matrix unit, by vectors of bfloat16 or by those of floats.
"""

import platform
import shutil

import jaxtyping
import pytest
import torch

from draw import cpu, cuda, fast, kernels
from draw.config import SpeedConfig
from draw.noise import seeded
from draw.objective import losses
from draw.types import State
from passes import SIZES, SMALL, emulated_cuda, on_cpu, outcome
from tiny import inputs, random_model

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on this machine")
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="threads are switched by x86-64 code")

ROUNDED = 2e-2  # factors have 8 bits
PLAIN = ("-DNO_AMX", "-DNO_AVX512BF16")
PASSES = {  # on the CPU: the precision, flags of the compiler, and what makes products
    "float32": (torch.float32, (), "floats"),
    "floats": (torch.bfloat16, (*PLAIN, "-DOWN_THREADS"), "floats"),
    "vectors": (torch.bfloat16, PLAIN[:1], "AVX512-BF16"),
    "matrix unit": (torch.bfloat16, (), "AMX"),
}
ON_CPU = {
    "without": SMALL | {"enc_size": 16, "dec_size": 40, "read_n": None, "write_n": None},
    "reads whole": SMALL | {"enc_size": 40, "read_n": None},
    "writes whole": SMALL | {"dec_size": 8, "write_n": None},
    "colour": SMALL | {"channels": 3, "height": 9, "width": 17, "enc_size": 24, "steps": 1},
}


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((None, sizes), marks=on_x86, id=f"cuda-{name}") for name, sizes in SIZES.items()),
        *(
            pytest.param((way, sizes), id=f"{kind}-{name}")
            for kind, way in PASSES.items()
            for name, sizes in (SIZES | ON_CPU).items()
        ),
    ],
)
def given(request, tmp_path_factory):
    """A network, the unroll of its glimpses in one pass, and how far its numbers may be from the plain ones."""
    way, sizes = request.param
    model = random_model(seed=1, dtype=torch.float32, spread=0.05, **sizes)
    if way is None:
        return model, cuda.unroll_for(model, emulated_cuda(model, tmp_path_factory.mktemp("passes"))), ROUNDED
    return model, unroll_of(model, *way), 1e-5 if way[0] == torch.float32 else ROUNDED


def unroll_of(model, precision, flags, wanted):
    unroll, made_by = on_cpu(model, precision, *flags)
    if made_by != wanted:
        pytest.skip(f"products are made by {made_by} here, not by {wanted}")
    return unroll


def require_close(given, wanted, tolerance):
    for name, value in wanted.items():
        error = (given[name] - value).norm() / value.norm().clamp(min=1e-6)
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("b", [16, 17, 19, 70])
def test_values_and_gradients_are_those_of_the_plain_model(given, b):
    model, unroll, tolerance = given
    eps, x = inputs(model, b)
    require_close(outcome(model, eps, x, unroll), outcome(model, eps, x, None), tolerance)


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same(given, threads):
    model, unroll, _ = given
    eps, x = inputs(model, 19)
    before = torch.get_num_threads()
    wanted = outcome(model, eps, x, unroll)
    try:
        torch.set_num_threads(threads)
        require_close(outcome(model, eps, x, unroll), wanted, 1e-4)
    finally:
        torch.set_num_threads(before)


def test_memory_used_again_says_nothing_of_what_was_there(given):
    model, unroll, _ = given
    wanted = outcome(model, *inputs(model, 5), unroll)
    outcome(model, *inputs(model, 5, seed=1), unroll)
    outcome(model, *inputs(model, 7), unroll)
    again = outcome(model, *inputs(model, 5), unroll)
    assert all(torch.equal(again[name], value) for name, value in wanted.items())


def test_two_drawings_may_wait_for_their_gradients(given):
    model, unroll, _ = given
    both = [inputs(model, 4, seed=seed) for seed in range(2)]
    wanted = [outcome(model, eps, x, unroll) for eps, x in both]
    model.zero_grad()
    bounds = [losses(x, model(eps, x, unroll=unroll), model.likelihood).bound.mean() for eps, x in both]
    sum(bounds).backward()
    for name, weight in model.named_parameters():
        require_close({name: weight.grad}, {name: wanted[0][name] + wanted[1][name]}, 1e-4)


def test_measuring_keeps_two_glimpses_and_gives_the_same(given):
    model, unroll, _ = given
    eps, x = inputs(model, 5)
    kept = losses(x, model(eps, x, unroll=unroll), model.likelihood).bound
    with torch.no_grad():
        assert torch.equal(losses(x, model(eps, x, unroll=unroll), model.likelihood).bound, kept)


def test_every_state_passes_its_gradient_on(given):
    model, unroll, tolerance = given
    eps, x = inputs(model, 16)

    def gradients(way):
        state = State(*(v.detach().clone().requires_grad_() for v in model.initial_state(len(x))))
        after, _ = way(state, eps, x)
        weights = seeded("weights")
        sum((v * torch.randn(v.shape, generator=weights)).sum() for v in after).backward()
        return {name: value.grad for name, value in zip(State._fields, state, strict=True)}

    require_close(gradients(unroll), gradients(model.unroll), tolerance)


def test_generation_is_the_plain_models(given):
    model, unroll, _ = given
    eps, _ = inputs(model, 3)
    assert torch.equal(model(eps, unroll=unroll).canvas, model(eps).canvas)


def test_what_the_kernels_cannot_read_goes_the_plain_way(given):
    model, unroll, _ = given
    eps, x = inputs(model, 4)
    for parts in ((eps.requires_grad_(), x), (eps.detach(), x.clone().requires_grad_())):
        results = []
        for way in (unroll, model.unroll):
            drawing = model(*parts, unroll=way)
            results.append(torch.autograd.grad(drawing.canvas.sum(), [v for v in parts if v.requires_grad])[0])
        assert torch.equal(*results)
    eps = eps.detach()
    assert model(eps[:, :0], x[:0], unroll=unroll).canvas.shape == (0, *model.config.image_shape)


@pytest.fixture(params=PASSES)
def small(request):
    """A small network, and the unroll of its glimpses on the CPU."""
    return of_kind(request.param)


def of_kind(kind, **sizes):
    model = random_model(seed=1, dtype=torch.float32, spread=0.05, **SMALL | sizes)
    return model, unroll_of(model, *PASSES[kind])


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("hidden", [7, 40, 128])
def test_a_value_that_is_not_finite_stays_with_its_image_and_its_pass(kind, hidden):
    model, unroll = of_kind(kind, enc_size=hidden, dec_size=hidden)
    eps, x = inputs(model, 5)
    bad = x.clone()
    bad[2, 0, 3, 3] = torch.nan
    with torch.no_grad():
        for images in (x, bad, x):
            finite = model(eps, images, unroll=unroll).canvas.flatten(1).isfinite().all(1)
            assert finite.tolist() == [True, True, images is x, True, True]


@pytest.mark.parametrize(("gate", "bias"), [("input", -11), ("forget", 11), ("candidate", 6), ("output", -12)])
def test_gates_that_are_almost_shut_or_open_have_their_slope(small, gate, bias):
    model, unroll = small
    rows = ["input", "forget", "candidate", "output"].index(gate) * model.config.dec_size + torch.arange(8)
    with torch.no_grad():
        model.decoder.to_gates.bias[rows] = bias
    eps, x = inputs(model, 16)
    given, wanted = (outcome(model, eps, x, way)["decoder.to_gates.bias"][rows] for way in (unroll, None))
    require_close({gate: given}, {gate: wanted}, 3e-2)


@pytest.mark.parametrize("bias", [-40, 40])
def test_gates_at_their_very_ends_have_their_value(small, bias):
    model, unroll = small
    with torch.no_grad():
        for gate in range(4):  # of some units the input gate, of others the forget gate, and so on
            for layer, size in ((model.encoder, model.config.enc_size), (model.decoder, model.config.dec_size)):
                layer.to_gates.bias[gate * size + 8 * gate + torch.arange(8)] = bias
    eps, x = inputs(model, 16)
    require_close(outcome(model, eps, x, unroll), outcome(model, eps, x, None), 3e-2)


@pytest.mark.parametrize("wrong", ["one image's", "double"])
def test_a_state_of_another_shape_or_type_is_refused_as_the_plain_model_does(given, wrong):
    model, unroll, _ = given
    eps, x = inputs(model, 3)
    state = model.initial_state(1 if wrong == "one image's" else 3)
    if wrong == "double":
        state = State(*(value.double() for value in state))
    for way in (model.unroll, unroll):
        with pytest.raises((RuntimeError, TypeError, jaxtyping.TypeCheckError)):
            way(state, eps, x)


def test_measuring_in_inference_mode_leaves_nothing_behind(small):
    model, unroll = small
    eps, x = inputs(model, 3)
    with torch.inference_mode():
        first = model(eps, x, unroll=unroll).canvas
    with torch.no_grad():
        assert torch.equal(model(eps, x, unroll=unroll).canvas, first)


def test_each_precision_has_its_kernels(monkeypatch):
    loaded = []
    monkeypatch.setattr(cpu, "load", lambda sizes, flags=(): loaded.append(flags) or kernels.load(sizes, flags))
    model = random_model(dtype=torch.float32)
    eps, x = inputs(model, 5)
    for precision in ("float32", "bfloat16"):
        unroll = fast.unroll_for(model, SpeedConfig(precision=precision))
        require_close(outcome(model, eps, x, unroll), outcome(model, eps, x, None), ROUNDED)
    assert loaded[:2] == [(), ("-DBFLOAT16",)]


def test_a_matrix_unit_that_the_system_keeps_to_itself_is_done_without(monkeypatch):
    model = random_model(dtype=torch.float32)
    refused = type("Library", (), {"draw_allowed": staticmethod(lambda: 0)})
    loaded = []
    monkeypatch.setattr(
        cpu,
        "load",
        lambda sizes, flags: loaded.append(flags) or (refused if len(loaded) < 2 else kernels.load(sizes, flags)),
    )
    eps, x = inputs(model, 2)
    assert model(eps, x, unroll=cpu.unroll_for(model, torch.bfloat16)).canvas.isfinite().all()
    assert loaded == [("-DBFLOAT16",), ("-DBFLOAT16", "-DNO_AMX")]
