"""What a client of the page is refused."""

import json
import socket
from dataclasses import replace

import pytest
from tiny import tiny_config

from dreamsa.config import TOYBOX, ModelConfig
from dreamsa.job import Job
from dreamsa.presets import KNOWN_MODELS, preset
from dreamsa.runs import new_run
from dreamsa.settings import with_overrides
from dreamsa.web import app, jobs
from dreamsa.web.controller import Controller
from dreamsa.web.guard import MAX_BODY, check_budget, is_own_host, refusal
from dreamsa.web.jobs import QUEUE, JobManager

FACTS = {"device": "cpu", "backend": "numba"}
MODELS = (TOYBOX, *KNOWN_MODELS)


@pytest.mark.parametrize(
    ("host", "named", "own"),
    [
        ("127.0.0.1:7860", (), True),
        ("[::1]:7860", (), True),
        ("192.168.1.5", (), True),
        ("localhost", (), True),
        ("LOCALHOST:1", (), True),
        (socket.gethostname(), (), True),
        ("evil.example", (), False),
        ("127.0.0.1.evil.example", (), False),
        ("localhost.evil.example", (), False),
        ("127.0.0.1@evil.example", (), False),
        ("", (), False),
        ("[", (), False),
        ("3d.example.org", ("3d.example.org",), True),
        ("evil-3d.example.org", ("3d.example.org",), False),
        ("abc.gradio.live", (".gradio.live",), True),
        ("gradio.live.evil.example", (".gradio.live",), False),
    ],
)
def test_a_server_answers_to_its_own_names(host, named, own):
    """A foreign page whose name resolves to this machine has its own name in Host (rebinding)."""
    assert is_own_host(host, named) is own


def asked(path="/", host="127.0.0.1:7860", **headers):
    pairs = {"host": host, **{k.replace("_", "-"): v for k, v in headers.items()}}
    raw = [(k.encode(), v.encode()) for k, v in pairs.items()]
    return refusal({"type": "http", "method": "POST", "path": path, "headers": raw}, ())


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, None),
        ("/gradio_api/queue/join", {"origin": "http://127.0.0.1:7860"}, None),
        ("/", {"origin": "null"}, 403),
        ("/", {"origin": "http://evil.example"}, 403),
        ("/", {"origin": "http://127.0.0.1:3000"}, 403),
        ("/", {"origin": "http://127.0.0.1:7860.evil.example"}, 403),
        ("/", {"origin": "http://["}, 403),
        ("/gradio_api/upload", {}, 403),
        ("/gradio_api/upload/", {}, 403),
        ("/prefix/gradio_api/upload", {}, 403),
        ("/gradio_api/component_server", {}, 403),
        ("/gradio_api/proxy=http://169.254.169.254/", {}, 403),
        ("/", {"content_length": str(MAX_BODY)}, None),
        ("/", {"content_length": str(MAX_BODY + 1)}, 413),
        ("/", {"content_length": "-1"}, 411),
        ("/", {"transfer_encoding": "chunked"}, 411),
    ],
)
def test_requests_that_the_page_never_makes_are_refused(path, headers, status):
    found = asked(path, **headers)
    assert (found and found[0]) == status


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"field.grid.log2_size": 24, "field.grid.levels": 32, "field.grid.features": 8}, "grid"),
        ({"camera.resolution": 1024, "render.samples": 4096}, "samples per step"),
        ({"camera.batch": 64, "camera.resolution": 8}, "camera.batch"),
        ({"steps": 1_000_000}, "steps"),
        ({"render.occupancy": 256}, "render.occupancy"),
        ({"field.width": 1024}, "field.width"),
        ({"turntable": 1000}, "turntable"),
        ({"distill.inversion_steps": 100}, "inversion_steps"),
        ({"model.model": "/etc"}, "does not offer the model '/etc'"),
        ({"model.model": "someone/else"}, "does not offer"),
        ({"model.parts": "/etc"}, r"model\.parts"),
        ({"model.encoder": "/etc"}, r"model\.encoder"),
        ({"model.revision": "main"}, r"model\.revision"),
    ],
)
def test_a_client_has_a_budget(changes, says):
    with pytest.raises(ValueError, match=says):
        check_budget(with_overrides(preset("toybox", "a rabbit"), changes), MODELS)


@pytest.mark.parametrize("name", ["toybox", "sd", "paper"])
def test_every_preset_is_within_the_budget(name):
    check_budget(preset(name, "a rabbit"), MODELS)


def test_the_model_field_does_not_tell_which_paths_exist(tmp_path):
    made = Controller(JobManager(tmp_path), tmp_path)
    answers = set()
    for model in ("/etc", "/no/such/folder", "/etc/passwd", "~", "../x"):
        config = replace(tiny_config(), model=ModelConfig(model))
        for use in (made.generate, made.probe):
            with pytest.raises(ValueError) as refused:
                use(config)
            answers.add(str(refused.value).replace(repr(model), "MODEL"))
    assert len(answers) == 1
    assert not list(tmp_path.glob("*/run.json"))


def test_a_model_of_the_servers_owner_is_offered(tmp_path):
    made = Controller(JobManager(tmp_path), tmp_path, models=["/models/mine"])
    config = replace(preset("toybox", "a rabbit"), model=ModelConfig("/models/mine"))
    check_budget(config, made.models)


def test_a_port_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"--port must lie in \[1, 65535\], got 99999"):
        app.launch(Controller(JobManager(tmp_path), tmp_path), server_port=99999)


def test_a_killed_servers_queue_is_restored_and_a_closed_ones_is_empty(tmp_path, monkeypatch):
    started = []

    def fake(run, folder):
        started.append(run.id)
        return Job(run, iter(()))  # pyright: ignore[reportArgumentType]

    runs = [new_run(tiny_config(), None, tmp_path, FACTS) for _ in range(3)]
    ids = [run.id for run in runs]
    monkeypatch.setattr(jobs, "resume", fake)
    for known, wanted in (
        (json.dumps([*ids, "../evil", 3, None]), ids),
        ("{", []),
        ("[3]", []),
        ("3", []),
        (b"\xff", []),
    ):
        content = known if isinstance(known, bytes) else known.encode()
        (tmp_path / QUEUE).write_bytes(content)
        started.clear()
        manager = JobManager(tmp_path)
        monkeypatch.setattr(manager, "_serve", lambda device: None)  # nothing begins
        manager.restore()
        assert started == wanted
        assert manager.active() == wanted
        manager.close()
        assert json.loads((tmp_path / QUEUE).read_text()) == []
