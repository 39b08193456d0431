"""`draw serve`: the studio on the loopback interface, and nothing else for anybody else."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from draw import cli, export
from test_studio_page import STEPS, at, chromium, model, place  # noqa: F401  # fixtures

pytest.importorskip("starlette", reason="needs starlette, of the extra web")
pytest.importorskip("uvicorn", reason="needs uvicorn, of the extra web")


@pytest.fixture(scope="module")
def address(place):  # noqa: F811
    """A running server's host and port."""
    command = [sys.executable, "-m", "draw.cli", "serve", place / "run", "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    url = json.loads(process.stdout.readline())["address"]
    yield url.removeprefix("http://").rstrip("/")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) in (0, 130)  # at once, whoever is connected
    process.stdout.close()


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
    for path in ("/", "/style.css", "/manifest.json", "/weights.bin", *(f"/{name}" for name in export.MODULES)):
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
    status, _, body = ask(address, path)
    assert status == 404
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
