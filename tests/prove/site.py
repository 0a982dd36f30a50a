"""A real server of the page, in a process of its own, and requests to it. Loopback only."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SCRIPT = """
import sys, time
from dreamsa import job
from tiny import tiny_score
class Slow(type(tiny_score())):
    def predict_noise(self, *args):
        time.sleep(0.05)
        return super().predict_noise(*args)
job.StableDiffusion.load = classmethod(lambda cls, config, device: Slow(**vars(tiny_score())))
job.write_outputs = lambda *_: []
from dreamsa.web.app import serve
sys.exit(128 + serve("127.0.0.1", None, sys.argv[1], False, False))
"""
SMALL = "camera.resolution=16\nrender.samples=24\nturntable=0\nfield.grid.log2_size=8"
"""Settings of a job whose steps take a fraction of a second."""
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Server(NamedTuple):
    process: subprocess.Popen
    address: str

    def ask(
        self, path: str = "/", data: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        request = urllib.request.Request(self.address + path, data, named)
        try:
            with _open(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def call(self, name: str, *data: Any, session: str = "prove") -> Any:
        """The answer of an endpoint; an error is {"error": ...}."""
        body = json.dumps({"data": data, "session_hash": session}).encode()
        kind = "application/json"
        code, _, answer = self.ask(f"/gradio_api/run/{name}", body, Content_Type=kind)
        found = json.loads(answer)
        return found["data"][0] if code == 200 else found

    def start(self, seed: int = 0, steps: int = 5000) -> Any:
        return self.call("generate", "a rabbit", steps, seed, "toybox", SMALL)


@contextmanager
def serving(folder: Path, runs: Path) -> Iterator[Server]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= {"http_proxy": "http://127.0.0.1:9", "TMPDIR": str(folder)}
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(runs)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[^/\s]+", line)
        assert found, f"{line}{(folder / 'server.log').read_text()}"
        yield Server(process, found[0])
    finally:
        process.kill()
        process.wait()
