"""The tab Training in a real browser: a run that trains beside it, several runs, and no run at all."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from draw.run import train
from serving import serving
from small import data_set, small_config
from test_cli import SMALL
from test_studio_math import needs_node
from test_studio_page import chromium, model, place, state_js, until, visiting  # noqa: F401  # fixtures

pytest.importorskip("starlette", reason="needs starlette, of the extra web")
pytest.importorskip("uvicorn", reason="needs uvicorn, of the extra web")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with two finished runs of different lengths."""
    folder = tmp_path_factory.mktemp("two")
    for name, iterations in (("first", 12), ("second", 20)):
        config = small_config().replace(iterations=iterations)
        for _ in train(config, folder / name, data=data_set(), device="cpu"):
            pass
        # As if each step had taken a second, however busy this machine was: the second run is the longer one.
        log = folder / name / "metrics.jsonl"
        records = [json.loads(line) for line in log.read_text().splitlines()]
        paced = [record | ({"seconds": float(record["step"])} if "seconds" in record else {}) for record in records]
        log.write_text("".join(json.dumps(record) + "\n" for record in paced))
    return folder


@pytest.fixture(scope="module")
def address(two):
    with serving("--runs", two) as (url, _):
        yield url


@pytest.fixture
def visit(chromium):  # noqa: F811
    """Opens a page; fails at the end if it complained, or asked any other host."""
    own = []
    with visiting(chromium) as visit:

        def visit_own(url, **settings):
            own.append(url.split("#")[0])
            return visit(url, **settings)

        visit_own.complaints = visit.complaints
        yield visit_own
    assert [url for url in visit.asked if not url.startswith(("data:", "blob:", *own))] == []


def points(page, run=1):
    """How many points the curve of a run has."""
    drawn = page.evaluate(
        f"document.querySelector('#curves g .raw, #curves g:nth-child({run}) .raw')?.getAttribute('d')"
    )
    return len(re.findall("[ML]", drawn or ""))


def runs_of(page):
    """What the list says: name, state and facts of each run."""
    items = "[...document.querySelectorAll('#runs li')]"
    return page.evaluate(
        f"{items}.map((li) => [...li.querySelectorAll('label, .badge, .hint')].map((e) => e.innerText))"
    )


def test_a_run_is_followed_while_it_trains(visit, folder):
    images = data_set(height=28, width=28).images
    np.savez(folder.parent / "small.npz", **{split: values.numpy() for split, values in images.items()})
    with serving("--runs", folder) as (url, _):
        page = visit(url)
        assert page.get_attribute("#tab-training", "aria-selected") == "true"
        page.wait_for_selector("#training-empty:not([hidden])")  # after the server has said that there are none
        assert page.inner_text("#training-empty").endswith(f"draw train demo --out {folder}/demo")
        command = [sys.executable, "-m", "draw", "train", "demo", "--data", str(folder.parent / "small.npz"), "--out",
                   str(folder / "demo"), *SMALL, "--log-every", "20", "--validate-every", "200",
                   "--schedule-minutes", "0.2",
                   "--device", "cpu", "--compile", "off"]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            until(page, "document.querySelector('.badge.training')", 60)
            assert page.is_hidden("#training-empty")
            until(page, "document.querySelector('#curves .raw')?.getAttribute('d')")
            before = points(page)
            page.evaluate("location.hash = 'curve=loss_x'")  # begins the tab again, with what it has
            until(page, "document.querySelector('#sheet img').naturalWidth > 200")
            ((name, state, facts),) = runs_of(page)
            assert (name, state) == ("demo", "training")
            assert facts.endswith("less than a minute left")
            until(page, f"document.querySelector('#curves .raw').getAttribute('d').match(/[ML]/g).length > {before}")
            until(page, "document.querySelector('.badge.finished')", 60)
        finally:
            process.kill()
            process.wait()
        ((_, _, facts),) = runs_of(page)
        assert re.fullmatch(r"step [\d,]+ · best \d+\.\d nats", facts)
        assert page.evaluate("document.querySelector('#runs progress').value") == 1
        assert page.inner_text("#status") == "demo: finished"
        later = visit(url)
        until(later, "document.querySelector('#curves .raw')?.getAttribute('d')")
        assert points(later) == points(page)
        last = json.loads((folder / "demo/metrics.jsonl").read_text().splitlines()[-1])
        until(page, f"document.querySelector('#sheet img').src.endsWith('/demo/{last['step']}.png')")
        shutil.rmtree(folder / "demo")
        until(page, "!document.querySelector('#training-empty').hidden")
        page.context.close()  # before the server goes
        later.context.close()


def test_two_runs_are_overlaid_and_named(visit, address):
    page = visit(address)
    until(page, "document.querySelectorAll('#curves .name').length === 2")
    assert sorted(page.evaluate("[...document.querySelectorAll('#curves .name')].map((e) => e.textContent)")) == [
        "first",
        "second",
    ]
    assert [run[:2] for run in runs_of(page)] == [["first", "finished"], ["second", "finished"]]
    colours = page.evaluate("[...document.querySelectorAll('#curves .name')].map((e) => getComputedStyle(e).fill)")
    assert len(set(colours)) == 2
    page.uncheck("#runs li:first-child input")
    until(page, "document.querySelectorAll('#curves .name').length === 1")
    page.click("[aria-label='Samples of second']")
    page.check("[name=curve][value=loss_z]")
    page.check("[name=axis][value=minutes]")
    until(page, "location.hash === '#curve=loss_z&axis=minutes&hide=first&run=second'")
    again = visit(page.url)
    until(again, "document.querySelectorAll('#curves .name').length === 1")
    assert again.is_checked("[value=minutes]")
    assert not again.is_checked("#runs li:first-child input")
    assert again.inner_text("#sheet figcaption") == "second, samples after step 20"


def test_what_a_finger_reads_stays(visit, address):
    page = visit(address, viewport={"width": 360, "height": 740}, has_touch=True)
    until(page, "document.querySelectorAll('#curves .raw').length === 2")
    box = page.locator("#curves").bounding_box()
    page.touchscreen.tap(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    until(page, "document.querySelector('#readout').textContent.includes(' at step ')")
    page.wait_for_timeout(200)
    assert " at step " in page.inner_text("#readout")


def test_only_costs_are_said_to_be_better_when_lower(visit, address):
    page = visit(address)
    until(page, "document.querySelectorAll('#curves .name').length === 2")
    assert "Nats per image, lower is better." in page.inner_text("#curves-help")
    page.check("[name=curve][value=loss_z]")
    until(page, "document.querySelector('#curves-help').textContent.includes('it rises while a network learns')")
    assert "lower" not in page.inner_text("#curves-help")


def test_all_of_it_can_be_done_by_keyboard(visit, address):
    page = visit(address)
    until(page, "document.querySelectorAll('#runs li').length === 2")
    press = page.keyboard.press
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-training"
    press("Tab")
    press("ArrowRight")
    assert page.is_checked("[value=loss_x]")
    press("Tab")
    press("ArrowRight")
    assert page.is_checked("[value=minutes]")
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "curves"
    press("End")
    until(page, "/second \\d+\\.\\d at 0\\.\\d min/.test(document.querySelector('#readout').textContent)")
    press("ArrowLeft")
    press("Tab")
    until(page, "document.querySelector('#readout').textContent === ''")
    press("Space")
    assert not page.is_checked("#runs li:first-child input")
    for _ in range(3):
        press("Tab")
    press("Enter")
    until(page, "document.querySelector('#sheet figcaption').textContent.startsWith('second')")
    press("Tab")
    assert page.evaluate("document.activeElement.href").endswith("/samples/second/20.png")
    page.focus("#tab-training")
    press("ArrowRight")  # around to the first
    assert "draw serve MODEL" in page.inner_text("#watch")


def test_every_control_has_a_name(visit, address):
    page = visit(address)
    until(page, "document.querySelector('#sheet img').naturalWidth > 0")
    tree = page.locator("#training").aria_snapshot()
    assert 'img "Bound in nats over training steps; now first' in tree
    assert 'progressbar "first: 100 % of its schedule"' in tree
    assert 'checkbox "first"' in tree
    assert not re.search(r"- (button|checkbox|radio|link|progressbar|img)\b(?! \")", tree)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_small_phone(visit, address, scheme):
    page = visit(address, viewport={"width": 360, "height": 640}, device_scale_factor=2, color_scheme=scheme)
    until(page, "document.querySelector('#sheet img').naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground, text = (page.evaluate(f"getComputedStyle(document.querySelector('{at}')).{what}") for at, what in
                    (("body", "backgroundColor"), ("#curves text", "fill")))  # fmt: skip
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, text))
    assert (light > dark + 250) if scheme == "light" else (dark > light + 250)


def test_a_server_that_has_gone_is_said_and_found_again(visit, two):
    with serving("--runs", two) as (url, process):
        page = visit(url)
        until(page, "document.querySelector('#connection').textContent.startsWith('Live')")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
        until(page, "document.querySelector('#connection').textContent.startsWith('The server does not answer')")
        assert page.is_visible("#curves path")  # what was told stays
    port = url.split(":")[2].strip("/")
    with serving("--runs", two, "--port", port):
        until(page, "document.querySelector('#connection').textContent.startsWith('Live')")
    page.context.close()
    assert all("Failed to load resource" in text for text in visit.complaints)  # the browser's own words, if it has any
    visit.complaints.clear()


def test_a_model_and_its_runs_are_on_one_page(visit, place, two):  # noqa: F811
    with serving(place / "run", "--runs", two) as (url, _):
        page = visit(url + "#n=4&speed=60")
        assert page.get_attribute("#tab-watch", "aria-selected") == "true"
        page.click("#tab-training")
        until(page, "document.querySelectorAll('#runs li').length === 2")
        page.keyboard.press("n")  # of Watch alone
        assert page.evaluate("document.querySelector('#seed').value") == "1"
        page.click("#tab-watch")
        page.wait_for_selector("#watch-transport .play")
        page.click("#tab-show")
        page.click("#examples button")
        page.wait_for_selector("#reading:not([hidden])")
        page.context.close()


def test_under_a_token_the_page_is_whole(visit, two):
    with serving("--runs", two, "--token", "0123456789abcdef") as (url, _):
        page = visit(url)
        until(page, "document.querySelector('#sheet img').naturalWidth > 0")
        page.context.close()


def test_an_exported_page_has_no_such_tab(place, tmp_path):  # noqa: F811
    from draw import cli

    assert cli.main(["export", str(place / "run"), str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert 'id="training"' not in text
    assert "tab-training" not in text.replace("tab-${", "")


@needs_node
@pytest.mark.parametrize(
    "bad", ["curve=x", "axis=hours", "run=", "run=" + "a" * 256, "hide=", "tab=none", "__proto__=a"]
)
def test_values_out_of_range_in_the_address_are_left_at_their_defaults(bad):
    limits = "{ steps: 1, examples: 0, pixels: 0, training: true, home: 'training' }"
    assert state_js(f"state.fromHash('#{bad}', {limits})") == state_js(f"state.defaults({limits})")


@needs_node
def test_where_nothing_trains_the_address_says_nothing_of_it():
    limits = "{ steps: 8, examples: 2, pixels: 4 }"
    assert state_js(f"state.fromHash('#tab=training&run=a&hide=b', {limits})") == state_js(f"state.defaults({limits})")


@needs_node
def test_the_address_holds_names_of_any_kind():
    limits = "{ steps: 1, examples: 0, pixels: 0, training: true }"
    names = ["a&b", "ü, =#%", "../x"]
    state = state_js(f"state.fromHash(state.toHash({{ hide: {json.dumps(names)}, run: '#&=' }}, {limits}), {limits})")
    assert state["hide"] == names
    assert state["run"] == "#&="
    assert len(state_js(f"state.fromHash('#' + 'hide=a&'.repeat(500), {limits})")["hide"]) == 100
