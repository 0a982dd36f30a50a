"""Starting and stopping the page."""

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from dreamsa import cli

REPO = Path(__file__).resolve().parents[2]


def test_a_missing_gradio_is_one_sentence_that_names_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "dreamsa.web.app", raising=False)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["web"])
    assert capsys.readouterr().err == (
        "dreamsa: The page needs gradio, which is not installed. "
        "Install it with: pip install 'dreamsa[web]'\n"
    )


def test_a_taken_port_is_named_with_the_next_free_one():
    app = pytest.importorskip("dreamsa.web.app", reason="the page needs gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"Port {port} on .* is free: dreamsa web --port \d+"):
            app.free_port("127.0.0.1", port)
    assert app.free_port("127.0.0.1", None) >= 7860
    with pytest.raises(OSError, match=r"Port 70000 .* Name another with --port"):
        app.free_port("127.0.0.1", 70000)


def test_app_py_imports_no_torch_before_the_command_sets_the_threads():
    code = "import sys, app; print({'torch', 'numba'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_command_serves_an_empty_folder_until_it_is_stopped(tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'dreamsa[web]'")
    command = [sys.executable, "app.py", "--runs", str(tmp_path / "runs")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    server = subprocess.Popen(command, cwd=REPO, text=True, **pipes)
    try:
        line = server.stdout.readline()
        address = line.split()[4]
        assert address.startswith("http://127.0.0.1:"), line
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 128 + signal.SIGTERM
    finally:
        server.kill()
        server.communicate()
