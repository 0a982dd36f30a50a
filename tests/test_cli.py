"""The installed command in real subprocesses, with the embedded model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[1]
QUICK = ["--set", "camera.resolution=32", "--set", "render.samples=32"]


def dreamsa(*arguments, timeout=240, **environment):
    command = [sys.executable, "-m", "dreamsa.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}, cwd=REPO)


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory):
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    done = dreamsa("generate", "a rabbit", "--steps", 4, *QUICK, "--runs", folder, "--quiet")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_help_is_quick_and_loads_no_torch():
    times = []
    for _ in range(3):
        started = time.monotonic()
        done = dreamsa("--help")
        times.append(time.monotonic() - started)
    assert done.returncode == 0
    assert "generate" in done.stdout
    assert min(times) < 1.0  # 0.3 s on an idle machine; this one may be busy
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, dreamsa, dreamsa.cli; print({'torch', 'jaxtyping'} & {*sys.modules})"],
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.strip() == "set()"


def test_a_run_leaves_pictures_that_can_be_opened(rabbit):
    import imageio
    from PIL import Image

    sheet = np.asarray(Image.open(rabbit / "contact_sheet.png"))
    assert sheet.std() > 5
    assert Image.open(rabbit / "turntable.webp").size == (128, 128)  # after four steps all its frames may look alike, and are merged
    frames = imageio.mimread(rabbit / "turntable.mp4", memtest=False)
    assert len(frames) == 60
    assert frames[0].shape == (128, 128, 3)
    record = json.loads((rabbit / "run.json").read_text())
    assert (record["status"], record["prompt"]) == ("finished", "a rabbit")
    assert "dreamsa edit" in (rabbit / "README.md").read_text()


def test_edit_list_show_and_render(rabbit):
    folder = rabbit.parent
    done = dreamsa("edit", rabbit.name, "a purple rabbit", "--steps", 4, "--ascent-steps", 2, "--runs", folder, "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("phase") for line in lines[:-1]] == ["ascend", "ascend", "descend", "descend"]
    child = lines[-1]["run"]
    listed = dreamsa("list", "--runs", folder).stdout
    assert re.search(rf"{rabbit.name}.*\n.*── {child}  a purple rabbit  finished 4/4", listed)
    shown = json.loads(dreamsa("show", child, "--runs", folder, "--json").stdout)
    assert shown["parent"] == rabbit.name
    rendered = dreamsa("render", child, "--frames", 8, "--resolution", 64, "--runs", folder)
    assert rendered.returncode == 0, rendered.stderr
    assert all(Path(path).is_file() for path in rendered.stdout.split())


def test_arms_are_compared_in_processes_and_a_run_is_evaluated(rabbit):
    done = dreamsa(
        "compare", rabbit, "a purple rabbit", "--arms", "B,D", "--seeds", 1, "--steps", 4, "--workers", 2, "--runs", rabbit.parent
    )
    assert done.returncode == 0, done.stderr
    *lines, report = done.stdout.splitlines()
    assert sorted(line[0] for line in lines) == ["B", "D"]
    assert "B (plain resume, moments reset)" in Path(report).read_text()
    facts = json.loads(dreamsa("evaluate", rabbit, "--json").stdout)
    assert facts["prompt"] == "a rabbit"
    assert 0 <= facts["scores"]["r_precision"] <= 1
    assert (rabbit / "evaluation.png").is_file()


def test_ctrl_c_saves_and_prints_the_command_to_go_on(tmp_path):
    command = [sys.executable, "-m", "dreamsa.cli", "generate", "a mug", "--steps", "2000", *QUICK, "--runs", str(tmp_path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPO)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    step = int(re.search(r"Stopped at step (\d+); everything is saved. Go on with: dreamsa resume a-mug", err)[1])  # pyright: ignore
    (run,) = tmp_path.iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"{step:08d}"]
    assert not list(run.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", ""), "prompt is empty"),
        (("generate", "x" * 5000), "5,000 characters"),
        (("generate", "a castle"), "no words for 'a castle'. It knows: rabbit"),
        (("generate", "a rabbit", "--model", "./nothing"), "no model at './nothing'"),
        (("generate", "a rabbit", "--model", "tests"), "not a Stable Diffusion model"),
        (("generate", "a rabbit", "--steps", "0"), "steps must lie in [1, 1000000], got 0"),
        (("generate", "a rabbit", "--set", "sds.guidance_scale=-1"), "guidance_scale must lie in [0, 1000], got -1"),
        (("generate", "a rabbit", "--set", "camera.resolution=5000"), "resolution must lie in"),
        (("generate", "a rabbit", "--set", "nonsense"), "A setting is name=value"),
        (("generate", "a rabbit", "--set", "device=tpu"), "no device 'tpu'"),
        (("generate", "a rabbit", "--set", "field.backend=tcnn"), "'tcnn' needs a CUDA device"),
        (("generate", "--config", "/no/such.json"), "Cannot read the configuration /no/such.json"),
        (("edit", "nobody", "a mug"), "is not a run in"),
        (("resume", "nobody"), "is not a run in"),
        (("render", "nobody", "--frames", "1"), "frames must lie in"),
        (("show", "nobody"), "is not a run in"),
        (("compare", "nobody", "a mug"), "is not a run in"),
        (("benchmark", "edits", "nowhere", "--arms", "Q"), "There is no arm 'Q'"),
        (("bench", "--steps", "0"), "steps must lie in"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, arguments, says):
    done = dreamsa(*arguments, DREAMSA_RUNS=str(tmp_path))
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("dreamsa: ")
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_command_line_is_exit_code_two():
    done = dreamsa("generat", "a rabbit")
    assert done.returncode == 2 or "Did you mean" in done.stderr + done.stdout
    assert done.returncode != 0


def test_dry_run_prints_the_configuration_and_runs_nothing(tmp_path):
    done = dreamsa("generate", "a rabbit", "--dry-run", "--seed", 7, "--runs", tmp_path)
    config = json.loads(done.stdout)
    assert (config["prompt"], config["seed"]) == ("a rabbit", 7)
    assert not list(tmp_path.iterdir())


def test_prompts_prints_the_exact_texts():
    out = json.loads(dreamsa("prompts", "a rabbit", "--json").stdout)
    assert out == {view: f"a rabbit, {view} view" for view in ("front", "side", "back", "overhead")}


def test_doctor_names_backends_and_the_command_that_builds_tiny_cuda_nn():
    out = dreamsa("doctor").stdout
    assert "numba" in out
    assert "setuptools<81" in out
    assert "toybox-sd" in out


def test_no_ffmpeg_is_a_warning_and_the_webp_is_there(rabbit, tmp_path):
    script = (
        "import imageio_ffmpeg, warnings; from dreamsa import api\n"
        "def missing(): raise RuntimeError('No ffmpeg exe could be found.')\n"
        "imageio_ffmpeg.get_ffmpeg_exe = missing\n"
        f"print([p.name for p in api.render({str(rabbit)!r}, frames=8, resolution=32)])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO)
    assert "turntable.webp" in done.stdout, done.stderr
    assert "turntable.mp4" not in done.stdout
    assert "no ffmpeg was found. Install imageio-ffmpeg" in done.stderr
