"""A server as its users start it."""

import contextlib
import json
import os
import signal
import subprocess
import sys

TOKEN = "a-token_of-16-letters"


@contextlib.contextmanager
def serving(*arguments):
    """The address that a server with these arguments prints, and its process; in the end it has to stop at once."""
    command = [sys.executable, "-m", "draw", "serve", "--json", "--port", "0", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield json.loads(process.stdout.readline())["address"], process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode in (0, 130)  # whoever is connected
        assert "Traceback" not in errors
        assert TOKEN not in errors
    finally:
        process.kill()
