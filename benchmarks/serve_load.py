"""The studio's server under load: many viewers of runs in training for a minute, and forged or malformed requests.

    python benchmarks/serve_load.py --out docs/benchmarks/serve_load.json

A log grows by ten lines a second meanwhile, and one viewer in ten does not read what it is sent. Prints the server's
resident memory and what became of the requests; fails if one was accepted, if the server does not answer afterwards,
or if its memory has grown by more than a few megabytes. Needs Linux, and the extra web.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from draw.config import RunConfig, TrainConfig, to_dict
from draw.run import environment

TOKEN = "a-secret-of-the-load-test"
FLAT = 8 << 20  # bytes that memory may grow by while the viewers listen
AT_A_TIME = 20  # forged requests
LINE = {"kind": "train", "bound_nats": 90.0, "loss_x_nats": 60.0, "loss_z_nats": 30.0}


def main() -> int:
    """Run the load; 1 if the server did not stand it."""
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        (run / "config.json").write_text(json.dumps(to_dict(RunConfig(train=TrainConfig(iterations=10**9)))))
        (run / "metrics.jsonl").write_text("".join(line(step) for step in range(1, 5000)))
        command = [sys.executable, "-m", "draw", "serve", "--runs", folder, "--port", "0", "--token", TOKEN, "--json"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert server.stdout
        port = int(json.loads(server.stdout.readline())["address"].split(":")[2].split("/")[0])
        try:
            report = asyncio.run(load(options, run / "metrics.jsonl", server.pid, port))
        finally:
            begun = time.monotonic()
            server.send_signal(signal.SIGINT)
            code = server.wait(timeout=20)
    report |= {"exit_code": code, "exit_s": round(time.monotonic() - begun, 2)}
    report["load_average"] = os.getloadavg()[0]
    report["environment"] = environment(torch.device("cpu")) | {"cores": len(os.sched_getaffinity(0))}
    text = json.dumps(report, indent=1) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text)
    grown = report["rss_bytes"]["end"] - report["rss_bytes"]["start"]
    stood = report["accepted"] == 0 and report["alive"] and grown < FLAT and report["viewers"]["lost"] == 0
    return 0 if stood else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200, help="viewers at a time; default 200")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they stay; default 60")
    parser.add_argument("--requests", type=int, default=10_000, help="that are forged or malformed; default 10000")
    parser.add_argument("--seed", type=int, default=0, help="of the requests; default 0")
    parser.add_argument("--out", type=Path, help="a JSON file for the report")
    return parser.parse_args()


async def load(options: argparse.Namespace, log: Path, pid: int, port: int) -> dict[str, Any]:
    """First the viewers, then the requests, with one viewer who stays through all of it."""
    staying = asyncio.create_task(watch(port, reads=True))
    await asyncio.sleep(1)
    growing = asyncio.create_task(grow(log))
    viewers = [asyncio.create_task(watch(port, reads=k % 10 != 9)) for k in range(options.clients)]
    memory = {}
    await asyncio.sleep(min(10.0, options.seconds / 4))  # all have what there was
    for name in ("start", "middle", "end"):
        memory[name] = resident(pid)
        await asyncio.sleep(options.seconds / 2 if name != "end" else 0)
    lost = sum(viewer.done() for viewer in viewers)
    for viewer in viewers:
        viewer.cancel()
    received = await asyncio.gather(*viewers)

    begun = time.monotonic()
    random_ = random.Random(options.seed)
    kinds = [random_.choice(list(FORGED)) for _ in range(options.requests)]
    answers: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in FORGED}
    waiting = iter(kinds)

    async def send_them() -> None:
        for kind in waiting:
            answers[kind][await status(port, FORGED[kind](random_, port))] += 1

    await asyncio.gather(*(send_them() for _ in range(AT_A_TIME)))
    took = time.monotonic() - begun
    memory["after_requests"] = resident(pid)
    alive = await status(port, request(port)) == "200" and not staying.done()
    growing.cancel()
    staying.cancel()
    await asyncio.gather(staying, growing, return_exceptions=True)
    return {
        "viewers": {"count": options.clients, "seconds": options.seconds, "lost": lost, "most_bytes": max(received)},
        "rss_bytes": memory,
        "requests": options.requests,
        "requests_per_s": round(options.requests / took),
        "accepted": sum(n for counts in answers.values() for answer, n in counts.items() if answer[0] in "123"),
        "answers": {kind: dict(counts) for kind, counts in sorted(answers.items()) if counts},
        "alive": alive,
    }


def line(step: int) -> str:
    """A log line."""
    return json.dumps(LINE | {"step": step, "seconds": step / 10}) + "\n"


async def grow(log: Path) -> None:
    """Log ten lines a second."""
    for step in range(5000, 10**9):
        with log.open("a") as file:
            file.write(line(step))
        await asyncio.sleep(0.1)


async def watch(port: int, *, reads: bool) -> int:
    """A viewer, until cancelled or the stream ends. Gives the bytes it took in."""
    taken = 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
    try:
        writer.write(request(port, path=f"/{TOKEN}/events"))
        while chunk := await (reader.read(1 << 12) if reads else asyncio.sleep(1, b"nothing is read")):
            taken += len(chunk) if reads else 0
    except asyncio.CancelledError:
        pass
    finally:
        writer.close()
    return taken


def resident(pid: int) -> int:
    """Resident memory of a process, bytes."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


async def status(port: int, text: bytes) -> str:
    """The status of the answer to what is sent, "closed" if there is none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return "no connection"
    try:
        writer.write(text)
        answer = await asyncio.wait_for(reader.readline(), 10)
        return answer.split()[1].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"
    except ConnectionError:
        return "closed"
    except TimeoutError:
        return "still waiting"  # for the rest of the request: nothing was answered
    finally:
        writer.close()


# Requests. `request` alone is a good one; every other differs from it in what its name says.


def request(
    port: int, path: str = f"/{TOKEN}/", method: str = "GET", headers: str = "", host: str | None = ""
) -> bytes:
    """A good request, if nothing is changed."""
    named = "" if host is None else f"Host: {host or f'127.0.0.1:{port}'}\r\n"
    return f"{method} {path} HTTP/1.1\r\n{named}Connection: close\r\n{headers}\r\n".encode("latin-1")


def letters(random_: random.Random, most: int) -> str:
    """Some text that fits into a path or a header."""
    return "".join(random_.choices("abcXYZ019-_.~%", k=random_.randint(1, most)))


HOSTS = ("example.org", "evil.localhost", "127.0.0.1", "127.0.0.1:1", "[::1]", "localhost.", "0.0.0.0", " ", "a b")
ORIGINS = ("null", "http://example.org", "https://127.0.0.1", "http://localhost.evil.org", "file://", "")
METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 200)
PATHS = (
    "../",
    "%2e%2e/",
    "..%2f",
    "....//",
    "%00",
    "%c0%ae%c0%ae/",
    "samples/../../",
    "samples/run/../",
    "samples/%2fetc/",
)
OPEN = ("/", "/events", "/style.css", "/manifest.json", f"/?token={TOKEN}", f"/{TOKEN}")
HUGE = "Content-Length: 9999999999\r\n"
FORGED = {
    "host": lambda r, port: request(port, host=r.choice(HOSTS)),
    "no host": lambda r, port: request(port, host=None),
    "two hosts": lambda r, port: request(port, headers="Host: example.org\r\n"),
    "origin": lambda r, port: request(port, headers=f"Origin: {r.choice(ORIGINS)}\r\n"),
    "method": lambda r, port: request(port, method=r.choice(METHODS), headers="Content-Length: 0\r\n"),
    "traversal": lambda r, port: request(port, f"/{TOKEN}/{r.choice(PATHS) * r.randint(1, 9)}etc/passwd"),
    "run": lambda r, port: request(port, f"/{TOKEN}/samples/{letters(r, 4000)}/{r.randint(0, 10**9)}.png"),
    "step": lambda r, port: request(port, f"/{TOKEN}/samples/run/{letters(r, 40)}.png"),
    "token": lambda r, port: request(port, f"/{r.choice((TOKEN[:-1], TOKEN + 'x', TOKEN.upper(), letters(r, 200)))}/"),
    "no token": lambda r, port: request(port, r.choice(OPEN)),
    "absolute": lambda r, port: request(port, f"http://example.org/{TOKEN}/"),
    "no http": lambda r, port: r.randbytes(r.randint(1, 500)) + b"\r\n\r\n",
    "version": lambda r, port: request(port).replace(b"HTTP/1.1", r.choice((b"HTTP/9.9", b"HTTP", b"", b"XTTP/1.1"))),
    "long header": lambda r, port: request(port, headers=f"X: {'x' * r.choice((20_000, 200_000))}\r\n"),
    "many headers": lambda r, port: request(port, headers="".join(f"X{i}: {i}\r\n" for i in range(5_000))),
    "bad header": lambda r, port: request(port, headers=r.choice(("X\r\n", ": x\r\n", "X y: 1\r\n", "X: \0\r\n"))),
    "two lengths": lambda r, port: request(port, method="POST", headers="Content-Length: 1\r\nContent-Length: 2\r\n"),
    "large body": lambda r, port: request(port, method="POST", headers=HUGE) + b"x" * 100_000,
    "bad chunks": lambda r, port: request(port, method="POST", headers="Transfer-Encoding: chunked\r\n") + b"zz\r\nx",
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
