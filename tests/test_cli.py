"""The installed command in real subprocesses, with the embedded model."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[1]
QUICK = [
    *("--set", "camera.resolution=32", "--set", "render.samples=32"),
    *("--set", "turntable=8", "--no-mesh"),
]


def dreamsa(*arguments, timeout=240, **environment):
    command = [sys.executable, "-m", "dreamsa.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        cwd=REPO,
    )


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
        before = os.times()
        done = dreamsa("--help")
        after = os.times()
        seconds = after.children_user - before.children_user
        times.append(seconds + after.children_system - before.children_system)
    assert done.returncode == 0
    assert "generate" in done.stdout
    assert min(times) < 1.0  # of the CPU, whatever else runs
    script = "import sys, dreamsa.cli; print({'torch', 'jaxtyping', 'pydantic'} & {*sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert loaded.stdout.strip() == "set()"


def test_a_run_leaves_pictures_that_can_be_opened(rabbit):
    import imageio
    from PIL import Image

    sheet = np.asarray(Image.open(rabbit / "contact_sheet.png"))
    assert sheet.std() > 5
    # after four steps all its frames may look alike, and are merged
    assert Image.open(rabbit / "turntable.webp").size == (256, 256)
    frames = imageio.mimread(rabbit / "turntable.mp4", memtest=False)
    assert len(frames) == 8
    assert frames[0].shape == (256, 256, 3)
    record = json.loads((rabbit / "run.json").read_text())
    assert (record["status"], record["prompt"]) == ("finished", "a rabbit")
    assert "dreamsa edit" in (rabbit / "README.md").read_text()


def test_edit_list_show_and_render(rabbit):
    folder = rabbit.parent
    options = ["--steps", "4", "--ascent-steps", "2", "--json", "--runs"]
    done = dreamsa("edit", rabbit.name, "a purple rabbit", *options, folder)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    first, last = lines[0], lines[-1]
    assert (first["event"], first["steps"], first["parent"]) == ("start", 4, rabbit.name)
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["phase"] for line in steps] == ["ascend", "ascend", "descend", "descend"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    previews = [line["preview"] for line in steps]
    assert all(one is None or Path(one).is_file() for one in previews)
    stages = [line["stage"] for line in lines if line["event"] == "stage"]
    assert {"loading the model", "pictures 12/12", "asking the judge"} <= set(stages)
    assert re.match(r"Judge sees an? .* in \d of 8 views", last["judge"])
    assert "dreamsa edit" in last["judge"]
    child = last["run"]
    listed = dreamsa("list", "--runs", folder).stdout
    assert re.search(rf"{rabbit.name}.*\n└── {child}  a purple rabbit  finished 4/4", listed)
    shown = json.loads(dreamsa("show", child, "--runs", folder, "--json").stdout)
    assert shown["parent"] == rabbit.name
    out = folder / "pictures"
    options = ["--frames", 8, "--resolution", 64, "--out", out, "--runs", folder]
    rendered = dreamsa("render", child, *options)
    assert rendered.returncode == 0, rendered.stderr
    names = {Path(path).name for path in rendered.stdout.split()}
    assert names == {path.name for path in out.iterdir()} >= {"turntable.mp4", "contact_sheet.png"}


def test_a_removed_run_is_in_the_trash_and_parents_are_refused(rabbit, tmp_path):
    child = {"parent": rabbit.name, "lineage": [{"id": rabbit.name, "prompt": "a rabbit"}]}
    for name, changes in ((rabbit.name, {}), ("child", {"id": "child", **child})):
        shutil.copytree(rabbit, tmp_path / name)
        record = json.loads((rabbit / "run.json").read_text())
        (tmp_path / name / "run.json").write_text(json.dumps({**record, **changes}))
    refused = dreamsa("rm", rabbit.name, "--runs", tmp_path)
    assert refused.returncode == 1
    assert "is the parent of child" in refused.stderr
    assert (tmp_path / rabbit.name).exists()
    removed = dreamsa("rm", "child", "--runs", tmp_path)
    assert (tmp_path / ".trash" / "child" / "run.json").is_file()
    back = shlex.split(removed.stdout.partition("back: ")[2])
    assert subprocess.run(back).returncode == 0
    assert (tmp_path / "child" / "run.json").is_file()
    dreamsa("rm", rabbit.name, "child", "--runs", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".trash"]


def test_a_named_run_has_its_name_and_a_taken_one_is_refused(rabbit):
    command = ["generate", "a mug", "--steps", "1", "--name", rabbit.name, "--runs", rabbit.parent]
    done = dreamsa(*command)
    assert done.returncode == 1
    assert f"already a run or file named {rabbit.name}" in done.stderr


def test_arms_are_compared_in_processes_and_a_run_is_evaluated(rabbit):
    options = ["--arms", "B,ascent", "--seeds", "1", "--steps", "4", "--workers", "2", "--runs"]
    done = dreamsa("compare", rabbit, "a purple rabbit", *options, rabbit.parent)
    assert done.returncode == 0, done.stderr
    *lines, report = done.stdout.splitlines()
    assert sorted(line.split(",")[0] for line in lines) == ["ascent", "plain"]
    assert "ascent" in Path(report).read_text()
    facts = json.loads(dreamsa("evaluate", rabbit, "--json").stdout)
    assert facts["prompt"] == "a rabbit"
    assert 0 <= facts["scores"]["r_precision"] <= 1
    assert (rabbit / "evaluation.png").is_file()


def test_ctrl_c_saves_and_prints_the_command_that_continues(tmp_path):
    runs = tmp_path / "my runs"
    command = [sys.executable, "-m", "dreamsa.cli", "generate", "a mug", "--steps", "2000", *QUICK]
    command += ["--runs", str(runs), "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPO
    )
    assert process.stdout is not None
    while '"event": "step"' not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    found = re.search(r"Stopped at step (\d+) and saved. Continue with: (.*)", err)
    assert found is not None, err
    step, (run,) = int(found[1]), runs.iterdir()
    assert shlex.split(found[2]) == ["dreamsa", "resume", run.name, "--runs", str(runs)]
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"{step:08d}"]
    assert not list(run.rglob(".tmp-*"))


EXAMPLE = str(next(REPO.glob("assets/examples/*/config.json")))
MISTAKES = [
    (("generate", ""), "prompt is empty"),
    (("generate", "x" * 5000), "5,000 characters"),
    (("generate", "a castle"), "'a castle'"),
    (("generate", "a rabit"), "Did you mean 'a rabbit'?"),
    (("generate", "a corgi in a top hat"), "not know: corgi, top; it would make a hat."),
    (("generate", "a rabbit", "--name", "../x"), "'../x' cannot name a run"),
    (("generate", "a rabbit", "--device", "tpu"), "no device 'tpu'"),
    (("generate", "a rabbit", "--steps", "-3"), "steps must be greater than or equal to 1, got -3"),
    (("rm",), "Name the runs to remove"),
    (("web", "--port", "70000"), "Port 70000 on 127.0.0.1 is taken"),
    (("generate", "a rabbit", "--model", "./nothing"), "no model at './nothing'"),
    (("generate", "a rabbit", "--model", "tests"), "not a Stable Diffusion model"),
    (
        ("generate", "a rabbit", "--steps", "0"),
        "steps must be greater than or equal to 1, got 0",
    ),
    (
        ("generate", "a rabbit", "--set", "distill.guidance_scale=-1"),
        "guidance_scale must be greater than or equal to 0, got -1",
    ),
    (
        ("generate", "a rabbit", "--set", "camera.resolution=5000"),
        "resolution must be less than or equal to 1024, got 5000",
    ),
    (("generate", "a rabbit", "--set", "nonsense"), "A setting is written name=value"),
    (("generate", "a rabbit", "--set", "device=tpu"), "no device 'tpu'"),
    (("generate", "a rabbit", "--set", "field.backend=tcnn"), "'tcnn' needs a CUDA device"),
    (("generate", "--config", "/no/such.json"), "Cannot read the configuration /no/such.json"),
    (("generate", "--config", EXAMPLE, "--preset", "sd"), "both give a whole configuration"),
    (("edit", "nobody", "a mug"), "is not a run in"),
    (("resume", "nobody"), "is not a run in"),
    (("render", "nobody", "--frames", "1"), "frames must lie in"),
    (("show", "nobody"), "is not a run in"),
    (("compare", "nobody", "a mug"), "is not a run in"),
    (("benchmark", "edits", "nowhere", "--arms", "Q"), "no arm 'Q'"),
    (("bench", "--steps", "0"), "steps must lie in"),
]
REFUSALS = """
import contextlib, io, json, sys
from dreamsa.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            main(arguments)
            code = 0
        except SystemExit as stop:
            code = stop.code
    found.append((code, error.getvalue()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Exit code and stderr of every mistake, made one after the other in one process."""
    folder = tmp_path_factory.mktemp("nothing")
    commands = json.dumps([arguments for arguments, _ in MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS, commands],
        capture_output=True,
        text=True,
        env={**os.environ, "DREAMSA_RUNS": str(folder)},
        cwd=REPO,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_bad_input_is_one_sentence_and_leaves_nothing(refusals, number):
    code, error = refusals[number]
    assert code == 1
    assert error.startswith("dreamsa: ")
    assert MISTAKES[number][1] in error
    assert len(error.strip().splitlines()) == 1, error


def test_a_mistake_ends_a_real_process_with_exit_code_one(tmp_path):
    done = dreamsa("generate", "a castle", DREAMSA_RUNS=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dreamsa: ")


def test_a_wrong_command_line_is_exit_code_two():
    done = dreamsa("generat", "a rabbit")
    assert done.returncode == 2 or "Did you mean" in done.stderr + done.stdout
    assert done.returncode != 0


def test_words_outside_quotes_are_explained():
    done = dreamsa("generate", "a", "rabbit")
    assert done.returncode == 2
    assert "words left over: rabbit. Put the prompt in quotes" in done.stderr


def test_dry_run_prints_the_configuration_and_runs_nothing(tmp_path):
    done = dreamsa("generate", "a rabbit", "--dry-run", "--seed", 7, "--runs", tmp_path)
    config = json.loads(done.stdout)
    assert (config["prompt"], config["seed"]) == ("a rabbit", 7)
    assert "Time: not measured yet" in done.stderr
    assert not list(tmp_path.iterdir())


def test_damaged_records_are_listed_with_their_paths(tmp_path, rabbit):
    for name, content in (("empty", ""), ("odd", '{"schema": 2}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    shutil.copytree(rabbit, tmp_path / "renamed")
    listed = dreamsa("list", "--runs", tmp_path)
    first, *others = listed.stdout.splitlines()
    assert first.startswith("renamed  a rabbit")
    for name in ("empty", "odd"):
        assert any(str(tmp_path / name / "run.json") in line for line in others)
    rows = json.loads(dreamsa("list", "--runs", tmp_path, "--json").stdout)
    assert sorted(row["id"] for row in rows) == ["empty", "odd", "renamed"]
    assert dreamsa("show", "renamed", "--runs", tmp_path).returncode == 0


def test_an_impossible_launch_is_one_sentence(tmp_path):
    done = dreamsa("generate", "a rabbit", "--steps", 2, "--runs", tmp_path / "runs", RANK="1")
    assert done.returncode == 1
    assert "RANK=1 with WORLD_SIZE=1" in done.stderr


def test_a_closed_pipe_is_quiet():
    pipe = ["bash", "-c", '"$0" -m dreamsa.cli doctor --json | head -c 1', sys.executable]
    assert subprocess.run(pipe, capture_output=True, text=True, cwd=REPO).stderr == ""


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_wait_passively_unless_the_user_has_decided(given):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    command = [sys.executable, "-m", "dreamsa.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=environment)
    assert json.loads(done.stdout)["OMP_WAIT_POLICY"] == given.get("OMP_WAIT_POLICY", "passive")


def test_prompts_prints_the_exact_texts():
    out = json.loads(dreamsa("prompts", "a rabbit", "--json").stdout)
    centres = {"front": "000, elevation +00", "side": "090, elevation +00"}
    centres |= {"back": "180, elevation +00", "overhead": "000, elevation +90"}
    assert out == {view: f"a rabbit, {view} view, azimuth {at}" for view, at in centres.items()}


def test_doctor_names_backends_models_and_where_there_is_a_gpu_how_to_build_tiny_cuda_nn():
    out = dreamsa("doctor").stdout
    for words in ("numba", "toybox-sd", "Python", "memory", "runs folder", "sd15"):
        assert words in out
    import torch

    assert ("tiny-cuda-nn, to build" in out) == torch.cuda.is_available()


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
