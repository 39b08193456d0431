"""`draw serve`: the studio on the loopback interface, and nothing else for anybody else."""

import asyncio
import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

from draw import checkpoint, cli, export, serve
from draw.live import Runs
from draw.run import train
from serving import TOKEN, serving
from small import data_set, small_config
from test_studio_page import STEPS, at, chromium, model, place, until, visiting  # noqa: F401  # fixtures

pytest.importorskip("starlette", reason="needs starlette, of the extra web")
pytest.importorskip("uvicorn", reason="needs uvicorn, of the extra web")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run that has a sheet of samples."""
    folder = tmp_path_factory.mktemp("runs")
    for _ in train(small_config(), folder / "a run", data=data_set(), device="cpu"):
        pass
    return folder


@pytest.fixture(scope="module")
def address(place, runs):  # noqa: F811
    """A running server's host and port."""
    with serving(place / "run", "--runs", runs) as (url, _):
        yield url.removeprefix("http://").rstrip("/")


@contextlib.contextmanager
def listening(address, path="/events"):
    """A connection to an event stream, and the file of what comes in."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection, connection.makefile("rb") as lines:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        yield lines


def messages(lines, count):
    """The first messages of an event stream: kind and data. Lines of chunked encoding are passed over."""
    found, kind = [], None
    while len(found) < count:
        line = lines.readline()
        assert line, "the stream has ended"
        if line.startswith(b"event: "):
            kind = line[7:].strip().decode()
        if line.startswith(b"data: "):
            found.append((kind, json.loads(line[6:])))
    return found


def ask(address, path="/", method="GET", body=None, **headers):
    """Status, headers and body of the answer; a header given as None is left out."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in ({"Host": address} | headers).items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_every_file_of_the_page_is_there_with_the_policy(address):
    for path in (
        "/",
        "/style.css",
        "/manifest.json",
        "/weights.bin",
        *(f"/{name}" for name in export.MODULES + export.TRAINING),
    ):
        status, headers, body = ask(address, path)
        assert status == 200
        assert body
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert not {"set-cookie", "access-control-allow-origin", "server"} & headers.keys()


@pytest.mark.parametrize(
    "path",
    ["/index.html", "/../pyproject.toml", "/..%2f..%2fexport.py", "//etc/passwd", "/web/draw.js", "/%00", "/DRAW.JS"],
)
def test_no_other_path_has_an_answer(address, path):
    status, headers, body = ask(address, path)
    assert status == 404
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"import" not in body


@pytest.mark.parametrize("host", [None, "example.org", "evil.localhost:80", "127.0.0.1", "127.0.0.1:1", "[::1]"])
def test_another_name_is_refused(address, host):
    status, _, body = ask(address, "/weights.bin", Host=host)
    assert status in (400, 403)
    assert len(body) < 100


@pytest.mark.parametrize("origin", ["http://example.org", "null", "https://127.0.0.1"])
def test_another_site_is_refused(address, origin):
    assert ask(address, "/manifest.json", Origin=origin)[0] == 403
    assert ask(address, "/manifest.json", Origin=f"http://{address}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_is_taken(address, method):
    assert ask(address, "/", method, body=b"x" * 10, Content_Length="10")[0] == 405


def test_a_run_and_its_newest_samples_are_told(address, runs):
    with listening(address) as lines:
        (kind, listing), (_, run) = messages(lines, 2)
    assert (kind, listing) == ("runs", {"folder": str(runs), "names": ["a run"]})
    assert (run["name"], run["state"], run["fraction"], run["anew"]) == ("a run", "finished", 1.0, True)
    assert [point[0] for point in run["train"]] == [2, 4, 6, 8, 10, 12]
    status, headers, body = ask(address, f"/samples/a%20run/{run['sheet']}.png")
    assert (status, headers["content-type"], body[1:4]) == (200, "image/png", b"PNG")
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/samples/../12.png", "/samples/%2e%2e/12.png", "/samples/%2e%2e%2f%2e%2e/12.png", "/samples//12.png",
     "/samples/..%2fa%20run/12.png", "/samples/%2fetc%2fpasswd/12.png", "/samples/a%20run%00/12.png",
     "/samples/./12.png", "/samples/" + "a" * 5000 + "/12.png", "/samples/a%20run/8.png",
     "/samples/a%20run/%2e%2e%2fconfig.json",
     "/samples/a%20run/012.png", "/samples/a%20run/1e1.png", "/samples/a%20run/" + "9" * 5000 + ".png",
     "/samples/a%20run/12", "/samples/a%20run/samples/step-00000012.png", "/events/", "/samples/%ff%fe/12.png"],
    ids=lambda path: path[:50],
)  # fmt: skip
def test_no_other_name_or_step_has_an_answer(address, path):
    status, _, body = ask(address, path)
    assert status == 404
    assert len(body) < 100


def test_so_many_may_listen_and_no_more(runs, monkeypatch):
    """Without a server, so that the bound can be small."""
    monkeypatch.setattr(serve, "CLIENTS", 2)
    site = serve.app({}, 80, runs=Runs(runs))

    async def listen(leave):
        sent = []
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": "/events",
            "headers": [(b"host", b"localhost")],
        }

        async def receive():
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await site(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]).get(b"retry-after")

    async def three_and_one_later():
        leave = asyncio.Event()
        listeners = [asyncio.create_task(listen(leave)) for _ in range(3)]
        (refused,), _ = await asyncio.wait(listeners, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        leave.set()
        await asyncio.gather(*listeners)
        return refused.result(), await listen(leave)

    assert asyncio.run(three_and_one_later()) == ((503, b"10"), (200, None))


def test_the_bound_on_listeners_holds_two_hundred():
    assert 200 <= serve.CLIENTS <= 1000


def test_without_runs_there_is_no_training(place):  # noqa: F811
    with serving(place / "run") as (url, _):
        address = url.removeprefix("http://").rstrip("/")
        assert b"tab-training" not in ask(address)[2]
        for path in ("/events", "/training.js", "/samples/a/1.png"):
            assert ask(address, path)[0] == 404


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_at_once_whoever_listens(runs, number):
    with serving("--runs", runs) as (url, process), contextlib.ExitStack() as listeners:
        address = url.removeprefix("http://").rstrip("/")
        for _ in range(5):
            messages(listeners.enter_context(listening(address)), 2)
        begun = time.monotonic()
        process.send_signal(number)
        process.wait(timeout=20)
        assert time.monotonic() - begun < 10  # three on a quiet machine


def test_with_a_token_it_answers_below_the_token_only(runs):
    with serving("--runs", runs, "--host", "0.0.0.0", "--token", TOKEN) as (url, process):
        assert url.endswith(f"/{TOKEN}/")
        port = url.split(":")[2].split("/")[0]
        address, other = f"127.0.0.1:{port}", f"any.name:{port}"
        for path in ("/", "/style.css", "/events", f"/{TOKEN}", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", f"/{TOKEN.upper()}/",
                     f"//{TOKEN}/", f"/?token={TOKEN}", "/%C3%BC/"):  # fmt: skip
            status, _, body = ask(address, path)
            assert (status, len(body) < 100) == (403, True), path
        assert ask(address, f"/{TOKEN}/style.css")[0] == 200
        assert ask(address, f"/{TOKEN}/", Host=other, Origin=f"http://{other}")[0] == 200
        assert ask(address, f"/{TOKEN}/", Host=other, Origin="http://example.org")[0] == 403
        assert ask(address, f"/{TOKEN}/nothing")[0] == 404
        with listening(address, f"/{TOKEN}/events") as lines:
            assert messages(lines, 2)[0][0] == "runs"
        process.send_signal(signal.SIGINT)
        assert "warning: nothing is encrypted" in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "none"], "no folder none"),
        (["--runs", ".", "--host", "0.0.0.0"], "needs --token"),
        (["--runs", ".", "--host", "192.0.2.1", "--token", "short"], "16 to 128 letters"),
        (["--runs", ".", "--host", "::", "--token", "sixteen/or/more/letters"], "16 to 128 letters"),
        (["--runs", ".", "--host", "example.org"], "expected an address"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", *arguments, "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_address_that_is_not_of_this_machine_is_refused(tmp_path, capsys):
    assert cli.main(["serve", "--runs", str(tmp_path), "--host", "192.0.2.1", "--token", TOKEN, "--port", "0"]) == 2
    assert "cannot listen on 192.0.2.1" in capsys.readouterr().err


def test_under_load_memory_is_flat_and_nothing_forged_is_accepted():
    """The minute of the benchmark, shortened."""
    script = Path(__file__).parents[1] / "benchmarks" / "serve_load.py"
    command = [sys.executable, script, "--clients", "20", "--seconds", "2", "--requests", "500"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert (report["accepted"], report["alive"], report["viewers"]["lost"]) == (0, True, 0)
    assert sum(sum(counts.values()) for counts in report["answers"].values()) == 500


def test_it_listens_on_the_loopback_interface_only(address):
    port = int(address.split(":")[1])
    for name in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}:
        with pytest.raises(OSError), socket.create_connection((name, port), timeout=2):
            pass


def test_a_port_that_is_taken_is_one_line(address, place, capsys):  # noqa: F811
    assert cli.main(["serve", str(place / "run"), "--port", address.split(":")[1]]) == 2
    error = capsys.readouterr().err
    assert "choose another with --port" in error
    assert error.count("\n") == 1


def test_the_page_works_from_the_server(address, chromium):  # noqa: F811
    page = chromium.new_page()
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://{address}/#speed=60&n=4")
    page.wait_for_selector("html[data-ready]")
    at(page, STEPS)
    page.click("#tab-show")
    page.click("#examples button")
    at(page, STEPS, "show")
    assert complaints == []
    assert all(url.startswith((f"http://{address}/", "data:", "blob:")) for url in asked)
    page.close()


@pytest.fixture(scope="module")
def several(place, runs):  # noqa: F811
    """The address of a server of two models, under a token."""
    with serving(place / "run", "mnist", "--runs", runs, "--token", TOKEN) as (url, _):
        yield url


def fetched(url):
    """The JSON at an address."""
    parts = urlsplit(url)
    status, _, body = ask(parts.netloc, parts.path)
    assert status == 200, url
    return json.loads(body)


def test_of_several_models_each_has_a_page_with_links_to_all(several):
    homes = {"run": several, "mnist": several + "models/mnist/"}
    for home in homes.values():
        links = fetched(home + "manifest.json")["models"]
        assert [(name, urljoin(home, link)) for name, link in links] == list(homes.items())
    for name, home in homes.items():
        assert fetched(home + "manifest.json")["about"]["name"] == name
        parts = urlsplit(home)
        for file in ("", "style.css", "weights.bin", *export.MODULES, *export.TRAINING):
            status, headers, body = ask(parts.netloc, parts.path + file)
            assert (status, bool(body)) == (200, True)
            assert "default-src 'none'" in headers["content-security-policy"]


def test_the_runs_are_told_on_the_pages_of_all_models(several):
    parts = urlsplit(several + "models/mnist/")
    with listening(parts.netloc, parts.path + "events") as lines:
        (kind, _), (_, run) = messages(lines, 2)
    assert (kind, run["name"]) == ("runs", "a run")
    assert ask(parts.netloc, f"{parts.path}samples/a%20run/{run['sheet']}.png")[0] == 200


def test_one_model_has_no_links_to_others(address):
    assert "models" not in fetched(f"http://{address}/manifest.json")


def test_another_model_is_chosen_on_the_page(several, chromium):  # noqa: F811
    with visiting(chromium, "error") as visit:
        page = visit(f"{several}#tab=show")
        assert page.locator("#models a").all_inner_texts() == ["run", "mnist"]
        assert page.locator("#models [aria-current]").inner_text() == "run"
        page.click("#models a:text('mnist')")
        page.wait_for_url("**/models/mnist/#tab=show*")
        page.wait_for_selector("html[data-ready]")
        assert page.title() == "DRAW · mnist"
        assert page.locator("#models [aria-current]").inner_text() == "mnist"
        page.click("#examples button")
        until(page, "document.querySelector('#show-transport output').textContent === 'glimpse 64 of 64'", 30)
        page.click("#tab-watch")
        page.click("#models a:text('run')")
        page.wait_for_url(several)
        page.go_back()
        until(page, "document.title === 'DRAW · mnist'")


def test_a_page_of_one_model_has_no_choice(address, chromium):  # noqa: F811
    with visiting(chromium) as visit:
        assert visit(f"http://{address}/").locator("#models").is_hidden()


def test_models_of_one_name_are_told_apart_by_their_paths(place, tmp_path, monkeypatch):  # noqa: F811
    served = {}
    monkeypatch.setattr(serve, "serve", lambda models, *_, **__: served.update(models))
    shutil.copytree(place / "run", tmp_path / "mnist")
    cli.main(["serve", str(tmp_path / "mnist"), "mnist", str(place / "run")])
    assert list(served) == [str(tmp_path / "mnist"), "mnist", "run"]
    assert [manifest["about"]["name"] for manifest, _ in served.values()] == list(served)


def test_a_model_named_twice_is_one_line(place, capsys):  # noqa: F811
    assert cli.main(["serve", "mnist", str(place / "run"), "mnist"]) == 2
    assert capsys.readouterr().err == "draw: cannot serve 'mnist' beside itself\n"


def test_no_two_models_have_one_address():
    homes = serve._homes(dict.fromkeys(["a", "a b", "a-b-4", "a.b", "数字", "模型", "a-b-", "a-b--"], ({}, b"")))
    assert len(set(homes.values())) == 8
    assert homes["a"] == "/"
    assert all(re.fullmatch(r"/|/models/[A-Za-z0-9_-]+/", home) for home in homes.values())


def test_without_a_name_all_that_ship_are_served(monkeypatch):
    served = {}
    monkeypatch.setattr(serve, "serve", lambda models, *_, **__: served.update(models))
    monkeypatch.setenv("DRAW_DATA", "/no/such/folder")
    cli.main(["serve"])
    assert next(iter(served)) == "mnist"
    assert sorted(served) == checkpoint.shipped()
    for manifest, _ in served.values():
        assert manifest["examples"]["count"] == 10
        assert ("percentiles_nats" in manifest["about"]) == manifest["about"]["binary"]
    assert not served["cifar10"][0]["about"]["binary"]
