"""Paths and addresses that lead out of the page's own folder, sent to every endpoint that takes
text; foreign hosts and origins; uploads; hostile prompts. A secret beside the runs must be in no
answer, no file may appear, no connection may reach a canary, and the server must answer on."""

import json
import socket
import threading
import time
from pathlib import Path
from urllib.parse import quote

from prove.common import Result, generate, use_tiny_model
from prove.site import Server, serving

COUNT, QUICK = 60, 6
SECRET = "the-secret-of-the-server"
PROMPTS = ("a" * 10**6, "\U0001f407" * 10**5, "a\u202erabbit", "\ud800", "${oc.env:HOME}", "{0}",
           "%s%n", "'\"", "a\nrabbit", "$(touch x)", "<img src=x onerror=alert(1)>", "\x00",
           "'; DROP TABLE runs; --", "../../x", "[[[", "-h", "--help")  # fmt: skip


def payloads(secret: Path, run: str, count: int) -> list[str]:
    """Ways to name a file."""
    plain = [str(secret), f"../{secret.name}", f"../../{secret.name}", f"{run}/../../{secret.name}",
             "/proc/self/environ", "/etc/passwd", "~/.bashrc", "C:\\Windows\\win.ini",
             f"{run}/run.json", f"runs/{run}/config.json"]  # fmt: skip
    changes = (
        lambda p: p,
        lambda p: p.replace("../", "%2e%2e%2f"),
        lambda p: quote(quote(p, safe=""), safe=""),
        lambda p: f"file://{p}",
        lambda p: f"//{p}",
        lambda p: p.replace("/", "\\"),
        lambda p: f"{p}\x00.png",
        lambda p: f"....//{p}",
        lambda p: p.upper(),
    )
    made = [change(p) for change in changes for p in plain]
    return made[:: max(len(made) // count, 1)][:count]


def _canary() -> tuple[str, list[bytes]]:
    """An address that remembers who connects."""
    listener, seen = socket.create_server(("127.0.0.1", 0)), []

    def listen() -> None:
        while True:
            connection, _ = listener.accept()
            seen.append(connection.recv(100))
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/x", seen


def _requests(server: Server, text: str, run: str):
    """Answers of all endpoints to one text."""
    file = {"path": text, "url": text, "meta": {"_type": "gradio.FileData"}}
    wire = quote(text, safe="/:%\\", errors="surrogatepass")
    for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/",
                   "/gradio_api/proxy=", "/theme.css?x=", "/gradio_api/stream/"):  # fmt: skip
        yield prefix, server.ask(prefix + wire)
    yield "upload", server.ask("/gradio_api/upload", text.encode(errors="replace"))
    for name, data in (
        ("status", [text]),
        ("stop", [text]),
        ("resume", [text]),
        ("export", [text, "json"]),
        ("export", [run, text]),
        ("export", [file, "json"]),
        ("edit", [text, "a mug"]),
        ("generate", ["a rabbit", 5, 0, text]),
        ("generate", ["a rabbit", 5, 0, "toybox", f"model.parts={text}"]),
        ("component_server", [file]),
    ):
        body = json.dumps({"data": data, "session_hash": "x", "fn_index": 0}).encode()
        for way in ("run", "call", "component_server"):
            address = f"/gradio_api/{way}/{name}"
            yield f"{way} {name}", server.ask(address, body, Content_Type="application/json")


def prove(folder: Path, count: int) -> Result:
    use_tiny_model()
    runs, secret = folder / "runs", folder / "secret.txt"
    secret.write_text(SECRET)
    generate(runs, 12)
    run = next(path.parent.name for path in runs.glob("*/run.json"))
    (runs / run / "private").write_text(SECRET)
    address, seen = _canary()
    failures, tried = [], 0
    with serving(folder, runs) as server:
        texts = [*payloads(secret, run, count), address, address.replace("127.0.0.1", "0")]
        texts += ["http://169.254.169.254/latest", "http://[::1]:22/", "http://2130706433:1/"]
        before = {path.name for path in runs.iterdir()}
        for text in texts:
            for name, (_, _, answer) in _requests(server, text, run):
                tried += 1
                if SECRET.encode() in answer or b"root:x:" in answer or b"PATH=" in answer:
                    failures.append(f"{name} {text!r} leaks")
        for number, words in enumerate(PROMPTS):
            started = time.monotonic()
            data = {"data": [words, 3, number, "toybox"], "session_hash": "x"}
            body = json.dumps(data).encode()
            server.ask("/gradio_api/run/generate", body, Content_Type="application/json")
            tried += 1
            if time.monotonic() - started > 5:
                failures.append(f"prompt {number}: {time.monotonic() - started:.1f} s")
        for headers, wanted in (
            ({"Host": "evil.example"}, 403),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({}, 200),
        ):
            code, answered, _ = server.ask("/", **headers)
            tried += 1
            if code != wanted or "access-control-allow-origin" in map(str.lower, answered):
                failures.append(f"{headers}: {code}")
        new = {path.name for path in runs.iterdir()} - before
        failures += [
            f"made a file: {name}" for name in new if not name.startswith(("a-rabbit", "."))
        ]
    failures += [f"the server connected to an address it was given: {line!r}" for line in seen]
    return Result(tried, failures, {"texts": len(texts), "prompts": len(PROMPTS)})
