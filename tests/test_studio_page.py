"""The studio as its users have it: the exported file opened in a real browser, from disk."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from draw import checkpoint, cli, export, results
from draw.config import DataConfig, ModelConfig, RunConfig
from draw.model import DRAW
from draw.objective import losses
from small import data_set
from test_studio_math import evaluate_js, needs_node, node, normals
from tiny import random_model

STEPS, Z, SIDE = 8, 6, 28
MODEL = {"height": SIDE, "width": SIDE, "steps": STEPS, "enc_size": 20, "dec_size": 20, "z_size": Z, "spread": 0.1}
SAMPLE, READ = 1, 2  # what noise is for, in draw.js


@pytest.fixture(scope="module")
def model():
    return random_model(dtype=torch.float32, **MODEL)


@pytest.fixture(scope="module")
def place(model, tmp_path_factory):
    """A folder with a run and its data set."""
    place = tmp_path_factory.mktemp("studio")
    data = data_set(height=SIDE, width=SIDE)
    np.savez(place / "small.npz", **{split: images.numpy() for split, images in data.images.items()})
    config = RunConfig(model=model.config, data=DataConfig(source=str(place / "small.npz")))
    checkpoint.save(place / "run/checkpoints/best-1", config, step=1, seconds=60.0, model=model.state_dict())
    return place


@pytest.fixture(scope="module")
def file(place):
    assert cli.main(["export", str(place / "run"), str(place / "page.html")]) == 0
    return place / "page.html"


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs chromium: apt-get install chromium")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # it refuses to run as root with one
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=sandbox)
        yield browser
        browser.close()


@contextlib.contextmanager
def visiting(chromium, *kinds):
    """What opens pages, and keeps what they `asked` for; fails at the end if one complained.

    Messages on the console are complaints if they are of these kinds, all of them if none is named.
    """
    contexts, complaints, asked = [], [], []

    def hear(message):
        if not kinds or message.type in kinds:
            complaints.append(message.text)

    def visit(url, **settings):
        context = chromium.new_context(**({"viewport": {"width": 1100, "height": 800}} | settings))
        contexts.append(context)
        page = context.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        context.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.wait_for_selector("html[data-ready]")
        return page

    visit.complaints, visit.asked = complaints, asked
    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def visit(chromium, file):
    """Opens the page; fails at the end if it complained, or asked for anything but itself."""
    with visiting(chromium, "error") as visit:

        def visit_page(fragment="", **settings):
            return visit(file.as_uri() + fragment, **settings)

        visit_page.complaints = visit.complaints
        yield visit_page
    assert {url.split("#")[0] for url in visit.asked if not url.startswith(("blob:", "data:"))} <= {file.as_uri()}


def until(page, expression, seconds=10):
    """Waits for an expression to be true. Playwright's own way evaluates it in the page: forbidden by the policy."""
    for _ in range(40 * seconds):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never true: {expression}")


def at(page, t, panel="watch"):
    """Waits until the glimpse is shown."""
    until(page, f"document.querySelector('#{panel}-transport output').textContent === 'glimpse {t} of {STEPS}'")


def pixels_of(page, selector):
    """What a canvas holds, RGB, 0 to 255."""
    data = page.eval_on_selector(selector, "canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def shot(page, selector):
    """The same, one value per image pixel."""
    pixels = pixels_of(page, selector)
    scale = pixels.shape[0] / SIDE
    middle = ((np.arange(SIDE) + 0.5) * scale).astype(int)
    return pixels[middle][:, middle]


def of_python(model, eps, x=None):
    with torch.no_grad():
        return model.double()(torch.tensor(eps).view(STEPS, 1, Z), x, trace=True)


def test_the_page_shows_what_python_draws_from_the_same_noise(visit, model):
    page = visit("#seed=5&n=4&t=8&windows=0")
    at(page, STEPS)
    for k in range(4):
        wanted = 255 * of_python(model, normals(STEPS * Z, 5, k, SAMPLE)).canvas.sigmoid().squeeze().numpy()
        found = shot(page, f"#grid button:nth-child({k + 1}) canvas")
        assert np.abs(found[..., 0] - wanted).max() <= 1


def test_one_latent_alone_draws_what_it_draws_in_python(visit, model):
    telling = model.float().telling_latents()
    assert telling
    for chosen, kept in ((str(telling[-1]), [telling[-1]]), ("none", [])):
        page = visit("#seed=5&n=4&t=8&windows=0")
        at(page, STEPS)
        everything = shot(page, "#grid button:nth-child(4) canvas")
        page.select_option("#latents", chosen)
        until(page, f"location.hash.includes('latents={chosen}')")
        again = visit(page.evaluate("location.hash"))
        for shown in (page, again):
            at(shown, STEPS)
            for k in range(4):
                eps = np.array(normals(STEPS * Z, 5, k, SAMPLE)).reshape(STEPS, Z)
                eps[:, [i for i in range(Z) if i not in kept]] = 0
                wanted = 255 * of_python(model, eps.ravel()).canvas.sigmoid().squeeze().numpy()
                found = shot(shown, f"#grid button:nth-child({k + 1}) canvas")
                assert np.abs(found[..., 0] - wanted).max() <= 1
        assert (found != everything).any()


def test_the_page_offers_the_latents_that_tell_something(visit, model):
    page = visit()
    values = page.eval_on_selector_all("#latents option", "options => options.map((option) => option.value)")
    assert values == ["all", *map(str, model.float().telling_latents()), "none"]


def test_a_link_reproduces_the_view_and_another_seed_does_not(visit):
    a, b, c = (visit(f"#seed={seed}&n=9&t=5") for seed in (3, 3, 4))
    for page in (a, b, c):
        at(page, 5)
    pictures = [page.eval_on_selector("#grid canvas", "canvas => canvas.toDataURL()") for page in (a, b, c)]
    assert pictures[0] == pictures[1] != pictures[2]


def test_it_plays_to_the_end_by_itself_and_then_shows_no_windows(visit):
    page = visit("#speed=60&n=1")
    at(page, STEPS)
    page.wait_for_selector(".play[aria-label=Play]")
    grey = shot(page, "#grid canvas")
    assert (grey[..., 0] == grey[..., 1]).all()
    page.keyboard.press("ArrowLeft")
    at(page, STEPS - 1)
    page.wait_for_timeout(50)
    code = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    bytes_ = np.array(page.eval_on_selector("#grid canvas", code)).reshape(-1, 4)
    assert (bytes_[:, 0] != bytes_[:, 1]).any()


def test_scrubbing_shows_each_glimpse_again(visit):
    page = visit("#n=1&t=2&windows=0")
    at(page, 2)
    before = shot(page, "#grid canvas")
    page.focus("#watch-transport input")
    page.keyboard.press("End")
    at(page, STEPS)
    assert (shot(page, "#grid canvas") != before).any()
    page.eval_on_selector("#watch-transport input", "r => { r.value = 2; r.dispatchEvent(new Event('input')); }")
    at(page, 2)
    np.testing.assert_array_equal(shot(page, "#grid canvas"), before)
    bars = page.locator("#watch-transport .bars").bounding_box()
    page.mouse.click(bars["x"] + 8 + 4.5 / STEPS * (bars["width"] - 16), bars["y"] + 10)
    at(page, 5)


def test_a_drawn_digit_is_read_with_the_bound_of_python(visit, model):
    page = visit("#tab=show&t=8")
    box = page.locator("#paper").bounding_box()
    x, y, side = box["x"], box["y"], box["width"]
    page.mouse.move(x + 0.3 * side, y + 0.25 * side)
    page.mouse.down()
    page.mouse.move(x + 0.7 * side, y + 0.25 * side, steps=5)
    page.wait_for_selector("#reading:not([hidden])")  # the hand rests: it is read, and again when it is done
    page.mouse.move(x + 0.45 * side, y + 0.8 * side, steps=7)
    page.mouse.up()
    pixels = shot(page, "#paper")[..., 0] / 255
    assert set(np.unique(pixels)) == {0, 1}
    assert 20 < pixels.sum() < 200
    image = torch.tensor(pixels).view(1, 1, SIDE, SIDE)
    drawing = of_python(model, normals(STEPS * Z, 0, 0, READ), image)
    measured = losses(image, drawing, model.likelihood)
    until(page, f"Math.abs(document.querySelector('#bound').textContent - {float(measured.bound)}) < 0.006")
    page.keyboard.press("Home")
    at(page, 0, "show")
    page.keyboard.press("End")
    at(page, STEPS, "show")
    for name, value in {"loss-x": measured.loss_x, "loss-z": measured.loss_z}.items():
        assert float(page.inner_text(f"#{name}")) == pytest.approx(float(value), abs=0.006)
    assert page.inner_text("#bound-name") == "bound"
    until(page, "location.hash.includes('picture=')")
    again = visit(page.evaluate("location.hash"))
    np.testing.assert_array_equal(shot(again, "#paper")[..., 0] / 255, pixels)


def test_a_test_image_is_read_as_the_data_set_has_it(visit):
    page = visit("#tab=show")
    assert page.is_visible("#show-empty")
    page.click("#examples button:nth-child(2)")
    page.wait_for_selector("#reading:not([hidden])")
    images = data_set(height=SIDE, width=SIDE).images["test"]
    assert any(np.array_equal(shot(page, "#paper")[..., 0], image[0].numpy()) for image in images)
    assert page.get_attribute("#examples button:nth-child(2)", "aria-pressed") == "true"
    page.click("#clear")
    page.wait_for_selector("#show-empty:not([hidden])")


def test_a_photograph_of_ink_on_paper_is_cut_turned_and_made_two_valued(visit, tmp_path):
    photo = np.full((300, 200), 230, np.uint8)
    photo[100:200, 90:110] = 40
    Image.fromarray(photo).save(tmp_path / "photo.png")
    page = visit("#tab=show")
    page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_selector("#reading:not([hidden])")
    pixels = shot(page, "#paper")[..., 0]
    assert set(np.unique(pixels)) == {0, 255}
    assert pixels[14, 14] == 255
    assert pixels[14, 4] == pixels[2, 14] == 0


@pytest.mark.parametrize("value", [255, 200, 128, 60, 0])
def test_a_picture_with_nothing_on_it_is_an_empty_sheet(visit, tmp_path, value):
    Image.new("L", (40, 40), value).save(tmp_path / "plain.png")
    page = visit("#tab=show&example=1")
    page.set_input_files("#file", tmp_path / "plain.png")
    page.wait_for_selector("#show-empty:not([hidden])")
    assert shot(page, "#paper").max() == 0


@pytest.mark.parametrize("ink", [255, 0])
def test_ink_on_a_transparent_ground_is_ink(visit, tmp_path, ink):
    drawn = np.zeros((SIDE, SIDE, 2), np.uint8)
    drawn[4:24, 12:16] = ink, 255
    Image.fromarray(drawn, "LA").save(tmp_path / "ink.png")
    page = visit("#tab=show")
    page.set_input_files("#file", tmp_path / "ink.png")
    page.wait_for_selector("#reading:not([hidden])")
    np.testing.assert_array_equal(shot(page, "#paper")[..., 0], drawn[..., 1])


def test_one_finger_draws_and_a_second_one_does_not(visit):
    page = visit("#tab=show", has_touch=True)
    box, session = page.locator("#paper").bounding_box(), page.context.new_cdp_session(page)

    def touch(kind, *places):
        points = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": i}
            for i, (x, y) in enumerate(places)
        ]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (0.2, 0.2))
    touch("touchStart", (0.2, 0.2), (0.8, 0.8))
    touch("touchMove", (0.3, 0.2), (0.8, 0.9))
    touch("touchMove", (0.4, 0.2), (0.7, 0.9))
    touch("touchEnd")
    page.wait_for_selector("#reading:not([hidden])")
    rows, columns = np.nonzero(shot(page, "#paper")[..., 0])
    assert rows.max() < 0.3 * SIDE
    assert columns.min() < 0.25 * SIDE
    assert 0.35 * SIDE < columns.max() < 0.5 * SIDE
    touch("touchStart", (0.8, 0.8))  # another stroke, after the first finger has gone
    touch("touchEnd")
    until(page, "document.querySelector('#paper').getContext('2d').getImageData(22, 22, 1, 1).data[0] === 255")


@pytest.fixture(scope="module")
def colour_file(tmp_path_factory):
    model = DRAW(ModelConfig(12, 12, 3, steps=2, enc_size=4, dec_size=4, z_size=2), mean_pixel=0.5)
    path = tmp_path_factory.mktemp("colour") / "page.html"
    export.write_page(path, *export.pack(model, about={"name": "colour"}))
    return path


def test_a_stroke_mixes_with_what_is_under_it_and_has_one_width_in_every_colour(chromium, colour_file):
    covers = []
    with visiting(chromium, "error") as visit:
        for colour in ("#ffffff", "#000000", "#00ff00"):
            page = visit(colour_file.as_uri() + "#tab=show")
            page.fill("#colour", colour)
            before = pixels_of(page, "#paper")
            box = page.locator("#paper").bounding_box()
            page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
            page.mouse.down()
            page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"], steps=9)
            page.mouse.up()
            ink = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
            cover = (pixels_of(page, "#paper") - before) / (ink - before)
            assert np.ptp(cover, axis=2).max() < 0.02  # the same of every channel
            covers.append(cover[..., 0])
    white, black, green = covers
    assert white.min() > -0.01
    assert white.max() < 1.01
    assert white.sum() > 5
    assert ((white > 0.01) & (white < 0.99)).any()  # a soft edge
    np.testing.assert_allclose(white, black, atol=0.02)
    np.testing.assert_allclose(white, green, atol=0.02)


@pytest.mark.parametrize(("kind", "target"), [("drop", "#drop"), ("paste", "body")])
def test_a_picture_is_dropped_or_pasted_from_any_tab(visit, kind, target):
    bar = np.zeros((SIDE, SIDE), np.uint8)
    bar[4:24, 12:16] = 255
    file = io.BytesIO()
    Image.fromarray(bar).save(file, "PNG")
    page = visit("#t=0")
    event = {"drop": "DragEvent('drop', { dataTransfer", "paste": "ClipboardEvent('paste', { clipboardData"}[kind]
    page.evaluate(f"""() => {{
        const bytes = Uint8Array.from(atob("{base64.b64encode(file.getvalue()).decode()}"), (c) => c.charCodeAt(0));
        const given = new DataTransfer();
        given.items.add(new File([bytes], "bar.png", {{ type: "image/png" }}));
        document.querySelector("{target}").dispatchEvent(new {event}: given, bubbles: true, cancelable: true }}));
    }}""")
    page.wait_for_selector("#reading:not([hidden])")
    assert page.get_attribute("#tab-show", "aria-selected") == "true"
    np.testing.assert_array_equal(shot(page, "#paper")[..., 0], bar)


def test_a_copied_link_is_the_view(visit):
    page = visit("#seed=11&n=4&t=5", permissions=["clipboard-read", "clipboard-write"])
    at(page, 5)
    page.click("#copy-link")
    until(page, "document.querySelector('#copy-link').textContent === 'Copied'")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    again = visit("#" + link.partition("#")[2])
    at(again, 5)
    pictures = [each.eval_on_selector("#grid canvas", "canvas => canvas.toDataURL()") for each in (page, again)]
    assert pictures[0] == pictures[1]


def test_a_file_that_is_no_image_is_said_to_be_none(visit, tmp_path):
    (tmp_path / "note.png").write_text("nothing")
    page = visit("#tab=show")
    page.set_input_files("#file", tmp_path / "note.png")
    page.wait_for_selector("#status:not(:empty)")
    assert "choose a PNG" in page.inner_text("#status")
    assert page.is_visible("#status")


def test_an_animation_that_is_not_there_yet_is_said_to_be(visit):
    page = visit("#n=64&t=0", reduced_motion="no-preference")
    page.evaluate("""() => {  // before the next answer of the worker
        document.querySelector('#new-seed').click();
        document.querySelector('#save-gif').click();
    }""")
    assert page.is_visible("#status")
    assert page.inner_text("#status").startswith("Still drawing")


def test_a_seed_that_is_none_is_said_and_taken_back(visit):
    page = visit("#seed=5")
    page.fill("#seed", "-1")
    page.press("#seed", "Enter")
    assert page.is_visible("#status")
    assert page.inner_text("#status").startswith("A seed is a whole number")
    assert page.input_value("#seed") == "5"


def test_keys_work_where_the_slider_has_the_focus(visit):
    page = visit("#t=4&seed=5")
    at(page, 4)
    page.focus("#watch-transport input")
    page.keyboard.press("ArrowRight")  # the slider's own
    at(page, 5)
    page.keyboard.press("n")
    until(page, "Number(document.querySelector('#seed').value) !== 5")
    page.keyboard.press("End")
    at(page, STEPS)
    page.focus("#seed")
    page.keyboard.press("r")  # a number's field needs all keys
    at(page, STEPS)


def test_everything_can_be_done_by_keyboard(visit):
    page = visit("#n=4&speed=1")
    press = page.keyboard.press
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-watch"
    press("Space")  # presses the tab, not play
    press("Tab")
    assert page.evaluate("document.activeElement.parentElement.id") == "grid"
    press("ArrowRight")
    press("ArrowDown")
    press("Enter")
    page.wait_for_selector("#large:not([hidden])")
    assert page.inner_text("#which") == "canvas 4 of 4"
    press("Escape")
    page.wait_for_selector("#grid:not([hidden])")
    until(page, "document.activeElement.ariaLabel === 'Canvas 4, show large'")
    press("Tab")  # on to play
    press("Space")
    page.wait_for_selector("#watch-transport .play[aria-label=Play]")
    press("End")
    at(page, STEPS)
    press("n")
    until(page, "Number(document.querySelector('#seed').value) !== 1")
    press("b")
    assert page.is_checked("[value=binary]")
    page.focus("#tab-watch")
    press("ArrowRight")
    page.wait_for_selector("#show:not([hidden])")
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "paper"
    for key in ("Space", "Enter", "ArrowDown", "ArrowDown", "ArrowDown", "Enter"):
        press(key)
    page.wait_for_selector("#reading:not([hidden])")
    assert shot(page, "#paper")[SIDE // 2 : SIDE // 2 + 3, SIDE // 2, 0].min() == 255
    until(page, "location.hash.includes('picture=')")


@pytest.mark.parametrize("fragment", ["#n=36", "#open=1&t=3", "#tab=show", "#tab=show&example=1&t=4"])
def test_nothing_is_wider_than_a_small_phone(visit, fragment):
    page = visit(fragment, viewport={"width": 360, "height": 640}, device_scale_factor=2)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_dark_is_dark_and_light_is_light(visit):
    for scheme, low, high in (("dark", 0, 60), ("light", 200, 256)):
        page = visit("", color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert all(low <= int(value) < high for value in re.findall(r"\d+", colour))


def test_who_wants_no_motion_sees_the_result_at_once(visit):
    page = visit("#speed=1", reduced_motion="reduce")
    at(page, STEPS)
    assert page.get_attribute("#watch-transport .play", "aria-label") == "Play"


def test_saved_pictures_are_what_is_shown(visit):
    page = visit("#n=4&t=3&speed=30")
    at(page, 3)
    page.wait_for_timeout(300)
    with page.expect_download() as png:
        page.click("#save-png")
    with page.expect_download() as gif:
        page.click("#save-gif")
    assert png.value.suggested_filename == "draw-seed-1-t3.png"
    with Image.open(png.value.path()) as image:
        assert image.width > 600
    with Image.open(gif.value.path()) as image:
        assert image.n_frames == 1 + STEPS + 1
        image.seek(3)
        frame, cell = np.asarray(image.convert("RGB")), shot(page, "#grid canvas")
        scale = round(480 / (2 * SIDE))
        gap = round(SIDE * scale / 30)
        first = frame[2 * gap :, 2 * gap :][scale // 2 :: scale, scale // 2 :: scale][:SIDE, :SIDE]
    grey = (cell[..., 0] == cell[..., 1]) & (first[..., 0] == first[..., 1])  # not where a window's border is
    assert grey.mean() > 0.5
    assert np.abs(first.astype(int) - cell)[grey].max() <= 3  # 62 greys


def test_the_policy_lets_no_other_script_run_and_nothing_be_fetched(visit):
    page = visit("#t=0")
    assert "default-src 'none'" in page.get_attribute("meta[http-equiv]", "content")
    added = "const s = document.createElement('script'); s.textContent = 'window.bad = 1'; document.body.append(s)"
    page.evaluate(f"() => {{ {added} }}")
    assert page.evaluate("window.bad") is None
    assert page.evaluate("fetch('data:,x').then(() => 'fetched', () => 'refused')") == "refused"
    visit.complaints.clear()  # the browser's own words about these two


# Without a browser


@needs_node
@pytest.mark.parametrize("names", [export.MODULES, export.WORKER], ids=["page", "worker"])
def test_the_modules_make_one_script(names, tmp_path):
    (tmp_path / "bundle.mjs").write_text(export.bundle(names))
    done = subprocess.run(["node", "--check", tmp_path / "bundle.mjs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^(import|export) ", export.bundle(names), re.MULTILINE)


def state_js(code):
    return evaluate_js(code.replace("state.", f"(await import({(export.WEB / 'state.js').as_uri()!r}))."))


@needs_node
@pytest.mark.parametrize(
    "bad", ["t=9", "t=-1", "seed=4294967296", "seed=1e3", "n=5", "n=1000000", "temperature=2.01", "temperature=NaN",
            "latents=1", "speed=0", "open=16", "pixels=red", "windows=2", "tab=x", "example=2", "picture=AAA",
            "__proto__=1", "%"],
)  # fmt: skip
def test_values_out_of_range_in_the_address_are_left_at_their_defaults(bad):
    limits = "{ steps: 8, examples: 2, pixels: 4, latents: [3, 0] }"
    assert state_js(f"state.fromHash('#{bad}', {limits})") == state_js("state.defaults({ steps: 8 })")


@needs_node
def test_the_address_holds_the_whole_state():
    limits = "{ steps: 8, examples: 2, pixels: 12, latents: [3, 0] }"
    text = (
        "#tab=show&seed=4294967295&n=25&temperature=0.5&latents=0&pixels=binary&windows=0&speed=4&t=0&open=24"
        "&example=1&noise=7"
    )
    state = state_js(f"state.fromHash('{text}', {limits})")
    assert state["seed"] == 2**32 - 1
    assert state["t"] == 0
    assert state["windows"] is False
    assert state["latents"] == 0
    assert state_js(f"state.toHash({json.dumps(state)}, {limits})") == text
    assert state_js("[...state.bitsFrom(state.bitsToText([1,0,0,1,1,0,0,1,0,1,1,0]), 12)]") == [
        1, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0,
    ]  # fmt: skip


@needs_node
@pytest.mark.parametrize("colours", [2, 5, 64, 218, 256])
def test_animations_hold_every_pixel(colours, tmp_path):
    """Noise, so that the dictionary fills and begins anew several times a frame."""
    width, height = 151, 97
    palette = [[i, 255 - i, (7 * i) % 256] for i in range(colours)]
    code = f"""
        import {{ gifWriter }} from {(export.WEB / "gif.js").as_uri()!r};
        import {{ writeFileSync }} from "node:fs";
        const palette = {palette}, frames = [], gif = gifWriter({width}, {height}, palette);
        let seed = 1;
        for (let f = 0; f < 3; f++) {{
          const rgba = new Uint8ClampedArray({4 * width * height}).fill(255);
          for (let i = 0; i < rgba.length; i += 4) {{
            seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
            rgba.set(palette[Math.floor((seed / 2 ** 32) ** 3 * palette.length)], i);
          }}
          frames.push(...rgba);
          gif.add(rgba, 10 * (f + 1));
        }}
        writeFileSync({str(tmp_path / "a.gif")!r}, gif.bytes());
        writeFileSync({str(tmp_path / "a.raw")!r}, Uint8Array.from(frames));
    """
    node("--input-type=module", "--eval", code)
    wanted = np.fromfile(tmp_path / "a.raw", np.uint8).reshape(3, height, width, 4)[..., :3]
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3
        for frame in range(3):
            image.seek(frame)
            assert image.info["duration"] == 100 * (frame + 1)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), wanted[frame])


@needs_node
def test_a_palette_holds_few_colours_exactly_and_many_nearly():
    def adapted(colours, count):
        rgba = [value for colour in colours for value in (*colour, 255)]
        gif = f"(await import({(export.WEB / 'gif.js').as_uri()!r}))"
        return np.array(evaluate_js(f"{gif}.adaptedPalette({rgba}, {count})"))

    few = [[0, 0, 0], [250, 3, 7], [90, 90, 200]]
    assert {tuple(colour) for colour in adapted(few * 5, 254).tolist()} == set(map(tuple, few))
    many = np.random.default_rng(0).integers(0, 256, (4000, 3))
    palette = adapted(many.tolist(), 254)
    assert len(palette) == 254
    distance = np.linalg.norm(many[:, None] - palette[None], axis=-1).min(1)
    assert distance.mean() < 26  # a cube of 6 x 6 x 6 has 24 for colours spread evenly, as these; real ones are not


def test_the_page_needs_no_other_file(file):
    text = file.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:,)""", text)
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "'unsafe" not in text


def test_no_path_of_this_machine_is_in_the_page(file, place):
    assert str(place.parent) not in file.read_text()
    assert "small.npz" in file.read_text()


def test_where_the_data_are_gone_the_page_is_made_without_examples(place, tmp_path, capsys):
    moved = tmp_path / "elsewhere"
    shutil.copytree(place / "run", moved)
    found = checkpoint.find(moved)
    description = (found.path / checkpoint.DESCRIPTION).read_text().replace("small.npz", "gone.npz")
    (found.path / checkpoint.DESCRIPTION).write_text(description)
    assert cli.main(["export", str(moved), str(tmp_path / "p.html"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["examples"] == 0
    assert captured.err.count("\n") == 1
    assert "no example images in the page" in captured.err
    arguments = ["export", str(moved), str(tmp_path / "p.html"), "--data", str(place / "small.npz"), "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == results.EXAMPLES


def test_only_pages_are_written(place, capsys):
    assert cli.main(["export", str(place / "run"), str(place / "small.npz")]) == 2
    assert "the name must end in .html" in capsys.readouterr().err


def test_examples_stand_after_the_weights(model):
    images = torch.arange(2 * SIDE * SIDE).remainder(256).to(torch.uint8).view(2, 1, SIDE, SIDE)
    manifest, binary = export.pack(model, examples=images, labels=[3, 4])
    start = manifest["examples"]["offset"]
    assert binary[start:] == images.numpy().tobytes()
    assert manifest["bytes"] == len(binary)
    assert manifest["examples"]["labels"] == [3, 4]
