"""What the page refuses: requests that its own pages never make, and settings beyond a budget.

Everything that a client sends is untrusted; docs/security.md says what is promised.
"""

import socket
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from dreamsa.config import ModelConfig, RunConfig

MAX_BODY = 2**20
"""Bytes of a request."""
UNUSED = ("upload", "upload_progress", "component_server", "stream")
"""Endpoints of gradio's that the page does not need."""
MAX_STEPS = 100_000
BYTES_PER_PARAMETER = 16
"""Value, gradient and two moments, float32."""


class Guard:
    """ASGI middleware that refuses foreign hosts and origins, uploads and large requests.

    Args:
        hosts: Names of this server besides localhost and the machine's own; ".example.org" also
            admits subdomains.
    """

    def __init__(self, app: Any, hosts: Collection[str] = ()) -> None:
        self.app, self.hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refused = refusal(scope, self.hosts) if scope["type"] in ("http", "websocket") else None
        if refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse(refused[1], refused[0])(scope, receive, send)


def refusal(scope: Any, hosts: Collection[str]) -> tuple[int, str] | None:
    """Status and reason if a request is refused."""
    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    if not is_own_host(host, hosts):
        return 403, f"This server is not {host[:100]!r}. Name it with --allow-host."
    if origin is not None and not _is_own_origin(origin, host, hosts):
        return 403, "Requests of other sites are refused."
    api = scope["path"].rpartition("gradio_api/")[2]
    if any(api == name or api.startswith((f"{name}/", f"{name}?")) for name in UNUSED):
        return 403, "This page takes no files."
    if "proxy=" in scope["path"]:
        return 403, "This page takes no addresses."
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not length.isdecimal():
        return 411, "The length of the request is missing."
    return (413, f"A request has at most {MAX_BODY} bytes.") if int(length) > MAX_BODY else None


def is_own_host(host: str, named: Collection[str]) -> bool:
    """Whether a Host header names this server: by an address, which no foreign site can claim, as
    localhost, by the machine's name, or by one of `named`."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        return bool(ip_address(name))
    except ValueError:
        own = {"localhost", socket.gethostname().lower(), *named}
        return name in own or any(name.endswith(end) for end in named if end.startswith("."))


def _is_own_origin(origin: str, host: str, named: Collection[str]) -> bool:
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    ends = tuple(end for end in named if end.startswith("."))
    return parts.netloc == host or name in named or name.endswith(ends or ("//",))


def check_budget(config: RunConfig, models: Collection[str]) -> None:
    """Refuse what one client of a shared page should not ask for.

    Raises:
        ValueError: The setting, what was found and what is allowed.
    """
    if config.model.model not in models:
        raise ValueError(
            f"The page does not offer the model {config.model.model!r}. It offers: "
            f"{', '.join(models)}. The server's owner adds one with --model."
        )
    named = ModelConfig(config.model.model)
    for name in ("revision", "parts", "encoder"):
        if getattr(config.model, name) != getattr(named, name):
            raise ValueError(f"model.{name} can be set from the command line only.")
    camera, grid = config.camera, config.field.grid
    entries = grid.levels * grid.features * 2**grid.log2_size
    for name, found, allowed in (
        ("steps", config.steps, MAX_STEPS),
        ("hash grid, bytes with gradient and moments", BYTES_PER_PARAMETER * entries, 2**30),
        ("field.width", config.field.width, 256),
        ("render.occupancy", config.render.occupancy, 128),
        (
            "samples per step (camera.batch * camera.resolution^2 * render.samples)",
            camera.batch * camera.resolution**2 * config.render.samples,
            2**26,
        ),
        ("camera.batch", camera.batch, 16),
        ("distill.inversion_steps", config.distill.inversion_steps, 20),
        ("turntable", config.turntable, 240),
    ):
        if found > allowed:
            raise ValueError(
                f"{name}: {found} is more than the {allowed} that the page allows. "
                "The command line has no such limit."
            )
