"""The wheel, installed outside the checkout, does what the README's first lines say."""

import json
import site
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def run(*command, cwd):
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of programs of an environment with the wheel, and of the dependencies of this
    one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "."]
    run(*build, REPO, cwd=folder)
    run(sys.executable, "-m", "venv", "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", *folder.glob("*.whl"), cwd=folder)
    home = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd="/").strip())
    (home / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return python.parent


@pytest.mark.slow
def test_an_object_is_made_in_an_empty_folder(installed, tmp_path):
    where = run(installed / "python", "-c", "import dreamsa; print(dreamsa.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    quick = ["--steps", 8, "--set", "camera.resolution=32", "--set", "turntable=8", "--json"]
    lines = run(installed / "dreamsa", "generate", "a rabbit", *quick, cwd=tmp_path).splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert (first["event"], last["event"]) == ("start", "finished")
    assert last["judge"].startswith("Judge sees")
    for name in ("mesh.glb", "turntable.webp", "contact_sheet.png", "README.md"):
        assert (tmp_path / "runs" / last["run"] / name).is_file()
    assert len(run(installed / "dreamsa", "examples", cwd=tmp_path).splitlines()) >= 2
    assert "toybox-sd" in run(installed / "dreamsa", "doctor", cwd=tmp_path)
