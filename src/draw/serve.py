"""The studio from a small server: the same page as `draw export`, from separate files, and the runs in a folder, live.

The first model's page lies at /, those of the others at /models/NAME/, each with all its files, and links to the rest.

It answers GET of a fixed table of paths to requests that name it by its own address. There are no query or body inputs
and no cookies; the one name in a path, a run's, is looked up among those found. No other site may read, frame or script
anything.

On another interface than the loopback one every path lies under a secret token: /TOKEN/style.css and so on. In the path
rather than in a query or a header, since relative addresses keep it, in scripts, workers, event streams and pictures
alike, and no page can forget it; Referrer-Policy keeps it from other sites, and nothing logs it.
"""

import asyncio
import hmac
import ipaddress
import json
import re
import shlex
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from draw.errors import UserError
from draw.export import MODULES, TRAINING, WEB, WORKER, index
from draw.live import EVERY, Run, Runs, news

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Packed = tuple[dict[str, Any], bytes]  # a model as `export.pack` returns it
HOST = "127.0.0.1"
HEAD_BYTES = 16_384  # of a request, at most; a browser's has about 600
CLIENTS = 256  # event streams at a time
HEARTBEAT = 15.0  # seconds after which a stream says that it is still there
PATIENCE = 60.0  # seconds in which a client has to take what it was sent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "worker-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def app(
    models: Mapping[str, Packed],
    port: int,
    *,
    runs: Runs | None = None,
    host: str = HOST,
    token: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Any:
    """The ASGI application.

    Args:
        models: By their names, the one that is shown first foremost; none for a page without a model.
        port: The one it will be reached at: part of the only names by which it may be called.
        runs: What the tab Training shows; without them there is none.
        host: The address it listens on.
        token: The first part of every path, if any.
        stopping: Asked once a second by every event stream: whether to end.

    Raises:
        UserError: If the extra `web` is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import FileResponse, PlainTextResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise UserError("draw serve needs the extra web: pip install 'draw[web]'") from error

    kinds = {"css": "text/css", "js": "text/javascript"}
    names = dict.fromkeys(("style.css", *MODULES, *WORKER, *(TRAINING if runs else ())))
    shared = {name: ((WEB / name).read_bytes(), kinds[name.rpartition(".")[2]]) for name in names}
    shared[""] = index(training=runs is not None).encode(), "text/html"
    homes = _homes(models)
    places: dict[str, tuple[dict[str, Any] | None, bytes]] = {homes[name]: packed for name, packed in models.items()}
    places = places or {"/": (None, b"")}
    files: dict[str, tuple[bytes, str]] = {}
    for home, (manifest, binary) in places.items():
        if manifest and len(homes) > 1:
            up = "../" * (home.count("/") - 1) or "./"
            manifest = manifest | {"models": [[name, up + other[1:]] for name, other in homes.items()]}
        files |= {home + name: file for name, file in shared.items()}
        files[f"{home}manifest.json"] = json.dumps(manifest, allow_nan=False).encode(), "application/json"
        files[f"{home}weights.bin"] = binary, "application/octet-stream"

    async def answer(request: Any) -> Any:
        body, kind = files[request.url.path]
        return Response(body, media_type=kind)

    async def sheet(request: Any) -> Any:
        path = runs and runs.sheet(request.path_params["run"], request.path_params["step"])
        return FileResponse(path) if path else PlainTextResponse("Not Found", 404)

    routes = [Route(path, answer, methods=["GET"]) for path in files]
    if runs:
        events = _Events(runs, stopping)
        for home in places:
            routes.append(Route(f"{home}events", events, methods=["GET"]))
            routes.append(Route(home + "samples/{run}/{step}.png", sheet, methods=["GET"]))
    site = Starlette(routes=routes)
    site.router.redirect_slashes = False
    return _Guard(site, PlainTextResponse("This server answers to its own address only.\n", 403), host, port, token)


def _homes(models: Mapping[str, Packed]) -> dict[str, str]:
    """Under which path each model's page lies: the first one's at the root, the others' by their names."""
    homes: dict[str, str] = {}
    for name in models:
        plain = re.sub("[^A-Za-z0-9_-]", "-", name)
        home = f"/models/{plain}/" if homes else "/"
        while home in homes.values():
            home = f"{home[:-1]}-/"
        homes[name] = home
    return homes


class _Guard:
    """Refuses what is addressed to another name (a rebound DNS entry), comes from another site, or lacks the token."""

    def __init__(self, site: Any, refuse: Any, host: str, port: int, token: str | None) -> None:
        self.site, self.refuse, self.token = site, refuse, token
        address = ipaddress.ip_address(host)
        hosts = [_in_url(address), *(["localhost"] if address.is_loopback else [])]
        self.names = {f"{name}:{port}" for name in hosts} | (set(hosts) if port == 80 else set())
        # A machine that listens on all its addresses goes by names it cannot know. Any is right, because a site that
        # rebinds its name to this machine still does not know the token.
        self.any_name = address.is_unspecified and token is not None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":  # a web socket has no route
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message["headers"], *added]}
            await send(message)

        own = self._own(scope["headers"]) and scope.get("http_version") in ("1.0", "1.1")
        path = self._path(scope["path"]) if own else None
        inner = self.refuse if path is None else self.site
        await inner(scope | {"path": path}, receive, send_with_headers)

    def _own(self, headers: list[tuple[bytes, bytes]]) -> bool:
        if sum(len(name) + len(value) for name, value in headers) > HEAD_BYTES:
            return False  # uvicorn bounds only what comes in parts
        sent = [(name, value.decode("latin-1")) for name, value in headers]
        hosts = [value for name, value in sent if name == b"host"]
        if len(hosts) != 1 or not (self.any_name or hosts[0] in self.names):
            return False
        origins = {f"http://{name}" for name in (*hosts, *self.names)}
        return all(value in origins for name, value in sent if name == b"origin")

    def _path(self, path: str) -> str | None:
        """The path below the token."""
        if self.token is None:
            return path
        first, slash, rest = path[1:].partition("/")
        return slash + rest if slash and hmac.compare_digest(first.encode(), self.token.encode()) else None


class _Events:
    """The runs as server-sent events; `news` says what is in them. A client holds one message at a time, no queue."""

    def __init__(self, runs: Runs, stopping: Callable[[], bool]) -> None:
        self.runs, self.stopping, self.clients = runs, stopping, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        full = self.clients >= CLIENTS
        kind = "text/plain" if full else "text/event-stream"
        headers = [(b"content-type", kind.encode()), *([(b"retry-after", b"10")] if full else [])]
        start = {"type": "http.response.start", "status": 503 if full else 200, "headers": headers}
        if full or scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b"Too many viewers.\n" if full else b""})
            return
        self.clients += 1  # before anything is waited for
        left = asyncio.ensure_future(_until_left(receive))
        try:
            await send(start)
            await self.tell(send, left)
        except TimeoutError:
            pass  # the client has stopped reading
        finally:
            left.cancel()
            self.clients -= 1

    async def tell(self, send: Any, left: Any) -> None:
        """Tell one client what is new until it has left or the server stops."""

        async def say(text: str) -> None:
            body = {"type": "http.response.body", "body": text.encode(), "more_body": True}
            await asyncio.wait_for(send(body), PATIENCE)

        told: dict[str, Run] = {}
        names: list[str] | None = None
        spoke = time.monotonic()
        await say("retry: 2000\n\n")
        while not left.done() and not self.stopping():
            runs = await asyncio.to_thread(self.runs.look)
            if names != list(runs):
                names = list(runs)
                listing = {"folder": shlex.quote(str(self.runs.given)), "names": names}
                await say(f"event: runs\ndata: {json.dumps(listing)}\n\n")
            for message in news(runs, told):
                spoke = time.monotonic()
                await say(f"event: run\ndata: {json.dumps(message, allow_nan=False)}\n\n")
            if time.monotonic() - spoke > HEARTBEAT:
                spoke = time.monotonic()
                await say(": still here\n\n")
            await asyncio.wait([left], timeout=EVERY)
        await send({"type": "http.response.body", "body": b""})


async def _until_left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def serve(
    models: Mapping[str, Packed],
    port: int,
    ready: Callable[[str], None],
    *,
    runs: Runs | None = None,
    host: str = HOST,
    token: str | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        models: As for `app`, as are runs and token.
        port: 0 for any free one.
        ready: Called with the address when it can be opened.
        host: A literal address of this machine; 0.0.0.0 means all of them.

    Raises:
        UserError: If the address or the token will not do, the port is taken, or the extra `web` is not installed.
    """
    address = check_address(host, token)
    listening = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listening:
        try:
            listening.bind((host, port))
        except OSError as error:
            where = f"port {port}" if host == HOST else f"{host}, port {port}"
            raise UserError(f"cannot listen on {where}: {error.strerror}; choose another with --port") from error
        port = listening.getsockname()[1]

        def stopping() -> bool:
            return server.should_exit

        site = app(models, port, runs=runs, host=host, token=token, stopping=stopping)
        import uvicorn  # of the same extra

        settings = uvicorn.Config(
            site, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none",
            lifespan="off", http="h11", h11_max_incomplete_event_size=HEAD_BYTES, limit_concurrency=CLIENTS + 100,
            timeout_keep_alive=5, timeout_graceful_shutdown=2,
        )  # fmt: skip
        name = socket.gethostname() if address.is_unspecified else _in_url(address)

        class Server(uvicorn.Server):
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                # Not before: from here on an interrupt is the server's own, and ends it in order.
                ready(f"http://{name}:{port}/{f'{token}/' if token else ''}")

        server = Server(settings)
        server.run(sockets=[listening])


def _in_url(address: Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def check_address(host: str, token: str | None) -> Address:
    """The address to listen on, after a check that nobody is let in by mistake.

    Raises:
        UserError: If it is no literal address, or is open to the network without a token.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise UserError(f"expected an address such as 127.0.0.1 or 0.0.0.0 for --host, got {host!r}") from error
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", token):
        raise UserError("--token needs 16 to 128 letters, digits, - or _")
    if token is None and not address.is_loopback:
        raise UserError(f"--host {host} opens the page to the network: it needs --token, 16 characters or more")
    return address
