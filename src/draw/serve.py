"""The studio from a small local server: the same page as `draw export`, from separate files.

It answers GET of a fixed table of paths, on the loopback interface, to requests that name it by its own address. There
are no path, query or body inputs, no cookies, and no other site may read, frame or script anything.
"""

import json
import socket
from collections.abc import Callable
from typing import Any

from draw.errors import UserError
from draw.export import MODULES, WEB, WORKER

HOST = "127.0.0.1"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "worker-src 'self'; img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def app(manifest: dict[str, Any], binary: bytes, port: int) -> Any:
    """The ASGI application.

    Args:
        manifest: Of `export.pack`, as is the binary.
        port: The one it will be reached at: part of the only names by which it may be called.

    Raises:
        UserError: If the extra `web` is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.responses import PlainTextResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise UserError("draw serve needs the extra web: pip install 'draw[web]'") from error

    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    files = {
        f"/{name}": ((WEB / name).read_bytes(), kinds[name.rpartition(".")[2]])
        for name in dict.fromkeys(("index.html", "style.css", *MODULES, *WORKER))
    }
    files["/"] = files.pop("/index.html")
    files["/manifest.json"] = json.dumps(manifest, allow_nan=False).encode(), "application/json"
    files["/weights.bin"] = binary, "application/octet-stream"
    names = {f"{HOST}:{port}", f"localhost:{port}"}
    origins = {f"http://{name}" for name in names}

    async def answer(request: Any) -> Any:
        body, kind = files[request.url.path]
        return Response(body, media_type=kind, headers=HEADERS)

    class OwnNamesOnly:
        """Refuses what is addressed to another name (a rebound DNS entry), or comes from another site."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":  # the start and the end of the server; a web socket has no route
                await self.inner(scope, receive, send)
                return
            sent = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
            hosts = [value for name, value in sent if name == b"host"]
            own = len(hosts) == 1 and hosts[0] in names
            own = own and all(value in origins for name, value in sent if name == b"origin")
            refuse = PlainTextResponse("This server answers to its own address only.\n", 403, headers=HEADERS)
            await (self.inner if own else refuse)(scope, receive, send)

    routes = [Route(path, answer, methods=["GET"]) for path in files]
    return Starlette(routes=routes, middleware=[Middleware(OwnNamesOnly)])


def serve(manifest: dict[str, Any], binary: bytes, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        port: 0 for any free one.
        ready: Called with the address when it can be opened.

    Raises:
        UserError: If the port is taken, or the extra `web` is not installed.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listening:
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise UserError(f"cannot listen on port {port}: {error.strerror}; choose another with --port") from error
        port = listening.getsockname()[1]
        application = app(manifest, binary, port)
        import uvicorn  # of the same extra

        listening.listen()
        ready(f"http://{HOST}:{port}/")
        settings = uvicorn.Config(
            application, log_level="warning", server_header=False, proxy_headers=False, ws="none", lifespan="off",
            limit_concurrency=100, timeout_keep_alive=5, timeout_graceful_shutdown=2,
        )  # fmt: skip
        uvicorn.Server(settings).run(sockets=[listening])
