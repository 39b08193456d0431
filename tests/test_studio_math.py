"""The studio's arithmetic: `web/draw.js` under node gives Python's numbers, whatever the model is made of."""

import base64
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from draw import export
from draw.errors import UserError
from draw.filterbank import rectangle
from draw.objective import losses
from tiny import inputs, random_model

DRAW_JS = export.WEB / "draw.js"
RUNNER = Path(__file__).parent / "studio_run.mjs"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node, the JavaScript runtime")

MODELS = {
    "attention": {},
    "no attention": {"read_n": None, "write_n": None},
    "attention to read only": {"write_n": None},
    "attention to write only": {"read_n": None},
    "one filter": {"read_n": 1, "write_n": 1},
    "colour": {"channels": 3},
    "colour without attention": {"channels": 3, "read_n": None, "write_n": None},
    "64 glimpses, larger": {"steps": 64, "height": 20, "width": 28, "enc_size": 40, "dec_size": 36, "spread": 0.1},
}


def node(*arguments, **settings):
    done = subprocess.run([NODE, *map(str, arguments)], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evaluate_js(code):
    """The JSON value of an expression that sees the module as `draw`."""
    script = f"import * as draw from {DRAW_JS.as_uri()!r}; process.stdout.write(JSON.stringify({code}))"
    return json.loads(node("--input-type=module", "--eval", script))


def trace_js(model, folder, eps, x=None):
    """What draw.js computes for the model, arrays (t, b, ...); names are those of the JavaScript."""
    manifest, binary = export.pack(model)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "weights.bin").write_bytes(binary)
    (folder / "case.json").write_text(json.dumps({"b": eps.shape[1], "infer": x is not None}))
    (folder / "eps.bin").write_bytes(eps.double().numpy().tobytes())
    if x is not None:
        (folder / "x.bin").write_bytes(x.double().numpy().tobytes())
    node(RUNNER, DRAW_JS, folder)
    result = json.loads((folder / "trace.json").read_text())
    fields = {name: [step[name] for step in result["steps"]] for name in result["steps"][0]}
    arrays = {name: None if values[0] is None else np.array(values) for name, values in fields.items()}
    return arrays | {"lossX": result["lossX"], "boxes": result["boxes"]}


def windows(window):
    """A Window of (t, b) as draw.js stores it, (t, b * 5)."""
    return torch.stack(list(window), dim=-1).flatten(1)


def assert_same(theirs, ours, name):
    if ours is None:
        assert theirs is None, name
    else:
        np.testing.assert_allclose(theirs, ours.reshape(theirs.shape).numpy(), atol=1e-4, rtol=1e-6, err_msg=name)


@needs_node
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("infer", [False, True], ids=["generation", "inference"])
def test_javascript_gives_the_numbers_of_python_at_every_glimpse(name, infer, tmp_path):
    model = random_model(dtype=torch.float32, **MODELS[name])
    eps, x = inputs(model, 5)  # four rows at once and one alone
    x = x if infer else None
    found = trace_js(model, tmp_path, eps, x)
    model = model.double()  # the same weights: what differs is arithmetic, not the rounding of Python's own float32
    with torch.no_grad():
        drawing = model(eps.double(), None if x is None else x.double(), trace=True)
    trace = drawing.trace
    assert_same(found["canvas"], trace.canvas, "canvas")
    assert_same(found["z"], trace.latent.z, "z")
    assert_same(found["writeWindow"], trace.write_window and windows(trace.write_window), "write window")
    if infer:
        measured = losses(x.double(), drawing, model.likelihood)
        assert_same(found["xHat"], trace.x_hat, "error image")
        assert_same(found["readWindow"], trace.read_window and windows(trace.read_window), "read window")
        assert_same(found["kl"], drawing.kl, "KL")
        np.testing.assert_allclose(found["lossX"] + found["kl"].sum(0), measured.bound.numpy(), atol=1e-4, rtol=0)


@needs_node
def test_windows_are_drawn_where_python_draws_them(tmp_path):
    model = random_model(dtype=torch.float32)
    eps, _ = inputs(model, 1)
    found = trace_js(model, tmp_path, eps)["boxes"]
    with torch.no_grad():
        boxes = rectangle(model(eps, trace=True).trace.write_window, model.config.write_n)
    for t, box in enumerate(found):
        for field in boxes._fields:
            assert box[field] == pytest.approx(float(getattr(boxes, field)[t, 0]), abs=1e-4)


@needs_node
@pytest.mark.parametrize("center", [-40, 2.5, 1e6])
def test_rows_of_the_filters_sum_to_one_wherever_the_window_lies(center):
    rows = np.array(evaluate_js(f"[...draw.axisFilters({center}, 3, 1e-6, 4, 7)]")).reshape(4, 7)
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-12)


@needs_node
def test_the_loss_of_extreme_logits_is_finite():
    losses = evaluate_js("[...draw.lossX([1, 0, 1, 0], [200, -200, -200, 200], 4)]")
    np.testing.assert_allclose(losses, [0, 0, 200, 200], atol=1e-12)


def uniforms(seed, index, purpose):
    """The generator that draw.js documents: sfc32 from three numbers and a counter of 1, without the first 12."""
    mask = 2**32 - 1
    a, b, c, counter = seed & mask, index & mask, purpose & mask, 1
    for i in range(10**9):
        total = (a + b + counter) & mask
        counter = (counter + 1) & mask
        a, b = b ^ (b >> 9), (c + (c << 3)) & mask
        c = (((c << 21) | (c >> 11)) + total) & mask
        if i >= 12:
            yield (total + 0.5) / 2**32


def normals(count, seed, index, purpose):
    """Box and Muller's pairs."""
    u, values = uniforms(seed, index, purpose), []
    while len(values) < count:
        radius, angle = math.sqrt(-2 * math.log(next(u))), 2 * math.pi * next(u)
        values += [radius * math.cos(angle), radius * math.sin(angle)]
    return np.array(values[:count])


@needs_node
@pytest.mark.parametrize("key", [(0, 0, 1), (1, 0, 1), (2**32 - 1, 35, 2)])
def test_noise_is_what_is_documented(key):
    theirs = evaluate_js(f"[...draw.normals(101, {key[0]}, {key[1]}, {key[2]})]")
    np.testing.assert_allclose(theirs, normals(101, *key), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keys", [[(seed, 0, 1) for seed in range(200)], [(7, index, 1) for index in range(200)]])
def test_noise_is_normal_and_differs_between_seeds_and_canvases(keys):
    noise = np.stack([normals(50, *key) for key in keys])
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.05


@needs_node
def test_a_canvas_has_its_own_noise_among_however_many():
    code = "[1, 3].map((n) => [...draw.noise({ steps: 2, zSize: 3 }, n, 5, 1)])"
    one, three = (np.array(values) for values in evaluate_js(code))
    np.testing.assert_array_equal(one.reshape(2, 1, 3)[:, 0], three.reshape(2, 3, 3)[:, 0])


@needs_node
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("manifest.format = 2", "format is 2"),
        ("manifest.pieces.read = 'foveal'", "read is foveal; this page knows attentive, full"),
        ("delete manifest.tensors['to_mu.bias']", "to_mu.bias is absent, wanted 4"),
        ("manifest.model.z_size = 9", "is 4 x 7, wanted 9 x 7"),
        ("manifest.bytes += 4", "bytes wanted, got"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change, message):
    manifest, binary = export.pack(random_model(dtype=torch.float32))
    code = (
        f"(() => {{ const manifest = {json.dumps(manifest)}; {change};"
        f"try {{ draw.readModel(manifest, new ArrayBuffer({len(binary)})); }} catch (error) {{ return error.message; }}"
        "})()"
    )
    assert message in evaluate_js(code)


def test_every_weight_is_in_the_binary_where_the_manifest_says():
    model = random_model(dtype=torch.float32)
    manifest, binary = export.pack(model)
    assert manifest["bytes"] == len(binary) == 4 * manifest["about"]["parameters"]
    for name, tensor in model.state_dict().items():
        entry = manifest["tensors"][name]
        stored = np.frombuffer(binary, "<f4", tensor.numel(), entry["offset"]).reshape(entry["shape"])
        np.testing.assert_array_equal(stored, tensor.numpy())


@needs_node
def test_weights_that_float16_holds_exactly_are_stored_so_and_widened():
    model = random_model(dtype=torch.float32)
    for weight in model.parameters():
        weight.data = weight.data.half().float()
    values = torch.tensor([0.0, -0.0, 2**-24, -(2**-24), 1023 * 2**-24, 2**-14, 65504.0, -65504.0, 1 + 2**-10])
    model.write.to_patch.bias.data = values
    manifest, binary = export.pack(model)
    assert len(binary) == 2 * manifest["about"]["parameters"]
    stored = base64.b64encode(binary).decode()
    code = (
        f"import({json.dumps(str(DRAW_JS))}).then((m) => {{ const manifest = {json.dumps(manifest)};"
        f"const bytes = Uint8Array.from(Buffer.from({json.dumps(stored)}, 'base64'));"
        "const all = Object.fromEntries(Object.keys(manifest.tensors).map((name) =>"
        "[name, [...m.tensorOf(manifest, bytes.buffer, name)].map((v) => (Object.is(v, -0) ? '-0' : v))]));"
        "console.log(JSON.stringify(all)); })"
    )
    found = json.loads(node("--input-type=module", "-e", code))
    for name, weight in model.state_dict().items():
        np.testing.assert_array_equal(np.array(found[name], dtype=np.float32), weight.numpy().ravel())
    assert found["write.to_patch.bias"][:2] == [0, "-0"]


def test_a_piece_that_the_page_does_not_know_is_refused():
    class Own(torch.nn.Module):
        pass

    model = random_model(dtype=torch.float32)
    model.prior = Own()
    with pytest.raises(UserError, match=r"with prior .*Own: the page knows the paper's pieces"):
        export.pack(model)


def test_weights_that_are_no_numbers_are_refused():
    model = random_model(dtype=torch.float32)
    model.to_mu.bias.data[0] = math.nan
    with pytest.raises(UserError, match=r"to_mu\.bias holds values that are no finite numbers"):
        export.pack(model)


@needs_node
def test_a_bound_is_ranked_among_those_of_test_images():
    ranked = [60.0, 75.0, 100.0, 125.0, 140.0]  # at 0, 25, 50, 75, 100 %
    bounds = [59.0, 60.0, 75.0, 80.0, 140.0, 140.5]
    code = (
        f"import({json.dumps(str(DRAW_JS))}).then((m) => console.log({bounds}.map((b) => m.shareBelow(b, {ranked}))))"
    )
    assert json.loads(node("--input-type=module", "-e", code)) == pytest.approx([0, 0, 0.25, 0.3, 1, 1])
