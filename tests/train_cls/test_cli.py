"""The command line: training, evaluation, errors and two processes."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from dreamsa import checkpoint
from train_cls import api, cli


def run(*arguments, **kwargs):
    return subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, timeout=300, **kwargs
    )


def command(text, *paths):
    """Run `train-cls` with the words of `text`, in which {} stands for the next path."""
    remaining = iter(paths)
    words = [next(remaining) if word == "{}" else word for word in text.split()]
    return run(sys.executable, "-m", "train_cls.cli", *words)


def test_the_command_line_trains_evaluates_and_probes(tmp_path):
    folder = tmp_path / "run"
    flags = "--epochs 2 --generations 2 --per-class 20 --only-classes 0-4 --validation 50"
    done = command(f"train {{}} {flags}", folder)
    assert done.returncode == 0, done.stderr
    assert "generation 2" in done.stderr
    found = json.loads(command("evaluate {} --json", folder).stdout)
    assert 0 <= found["test"]["accuracy"] <= 1
    probed = command("probe {} digits --only-classes 5-9 --per-class 20 --epochs 5 --json", folder)
    assert json.loads(probed.stdout)["test accuracy"] > 0.2, probed.stderr
    shots = command("few-shot {} digits --only-classes 5-9 --episodes 10 --json", folder)
    assert json.loads(shots.stdout)["accuracy"] > 0.2, shots.stderr
    layers = json.loads(command("depth {} --json", folder).stdout)
    assert layers["layers"]["fc"] >= 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("train {}/x --method seel", "Did you mean seal"),
        ("train {}/x --data nowhere.zip", "nowhere.zip"),
        ("train {}/x --model resnet19", "resnet18"),
        ("train {}/x --device gpu", "There is no device 'gpu'"),
        ("train {}/x --lr -1", "lr must be greater than 0"),
        ("train {}/x --set anneal.scale", "name=value"),
        ("train {}/x --set anneal.scal=1", "Did you mean anneal.scale"),
        ("train {}/x --set optimizer=SGD", "optimizer must be 'sgd'"),
        ("train {}/x --batch 99999", "Lower the batch"),
        ("train {}/x --set anneal.before=layr3", "Did you mean 'layer3'?"),
        ("train {}/x --set anneal.share=1.5", "anneal.share must be less than or equal to 1"),
        ("train {}/x --set anneal.scale=-1", "anneal.scale must be greater than or equal to 0"),
        ("train {}/x --epochs 0", "epochs must be greater than 0"),
        ("train {}/x --size 5000", "splits.size must be less than or equal to 1024"),
        ("bench --batch 0", "batch must be greater than or equal to 1"),
        ("compare {}/x --tune swa", "--tune needs arm:setting=value"),
        ("compare {}/x --tune sael:lr=0.2", "no arm 'sael' to tune"),
        ("sweep {}/x seed 3 4", "give the seeds by --seeds"),
        (
            "sweep {}/x anneal.tolerance 0.1 --method tolerant-teacher -- -3",
            "anneal.tolerance must be greater than or equal",
        ),
        ("train {}/x --config {}/none.toml", "cannot be read: No such file"),
        ("compare {}/x --arms seal seel", "Did you mean seal"),
        ("compare {}/x --workers 0", "workers must lie in [1, 1024], got 0"),
        ("sweep {}/x model resnet18 resnet19", "resnet18"),
        ("evaluate {}/none", "config.json"),
        ("resume {}", "config.json"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(arguments, part, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([word.format(tmp_path) for word in arguments.split()])
    message = capsys.readouterr().err
    assert left.value.code == 1 and part in message and message.count("\n") == 1, message
    assert not list(tmp_path.iterdir())


def test_flags_and_settings_reach_the_configuration(capsys):
    text = "train x --dry-run --preset paper --lr 0.3 --seed 4 --size 16 --set batch=8"
    with pytest.raises(SystemExit) as left:
        cli.main(text.split())
    assert not left.value.code
    config = json.loads(capsys.readouterr().out)
    assert (config["lr"], config["batch"], config["model"]) == (0.3, 8, "resnet50")
    assert (config["seed"], config["splits"]["seed"], config["splits"]["size"]) == (4, 4, 16)


def names(app, prefix=()):
    """The words of every command."""
    for name in app:
        if not name.startswith("-"):
            inner = list(names(app[name], (*prefix, name)))
            yield from inner or [(*prefix, name)]


COMMANDS = list(names(cli.app))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_and_flag_has_a_help_text(words):
    app = cli.app
    for word in words:
        app = app[word]
    assert app.help
    for argument in app.assemble_argument_collection(parse_docstring=True):
        assert argument.parameter.help or argument.children, argument.name
        assert argument.children or argument.parameter.help.endswith("."), argument.name


def test_flags_override_a_file_which_overrides_the_preset(tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text(
        'lr = 0.3\nbatch = 8\nseed = 5\nmethod = "long"\nwarmup = 2\n[splits]\nsize = 9\n'
    )
    words = f"train x --dry-run --preset seal-code --config {path} --batch 4 --set splits.size=7"
    with pytest.raises(SystemExit) as left:
        cli.main(f"{words} --epochs 3".split())
    assert not left.value.code
    config = json.loads(capsys.readouterr().out)
    assert (config["lr"], config["batch"], config["splits"]["size"]) == (0.3, 4, 7)
    assert (config["seed"], config["method"], config["model"]) == (5, "long", "resnet50")
    path.write_text(json.dumps(config))
    copy = path.rename(tmp_path / "config.json")
    with pytest.raises(SystemExit):
        cli.main(["train", "x", "--dry-run", "--config", str(copy)])
    assert json.loads(capsys.readouterr().out) == config


def test_settings_lists_every_setting_as_it_is(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["settings", "--json", "--preset", "paper", "--lr", "0.3"])
    assert not left.value.code
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["lr"]["value"] == 0.3 and rows["lr"]["allowed"] == "number more than 0"
    assert rows["optimizer"]["allowed"] == "sgd, adam, adamw, adagrad, rmsprop"
    assert rows["splits.per_class"]["text"].startswith("Training images per class")


def test_comparisons_and_sweeps_print_lines_of_json(tmp_path, capsys):
    flags = "--workers 1 --json --model preresnet-tiny --per-class 5 --batch 20 --epochs 1"
    commands = [
        f"compare {tmp_path}/c --arms seal long --seeds 1 --generations 2 {flags}",
        f"sweep {tmp_path}/s lr 0.05 0.1 --generations 1 {flags}",
    ]
    found = []
    for words in commands:
        with pytest.raises(SystemExit) as left:
            cli.main(words.split())
        assert not left.value.code
        printed = capsys.readouterr()
        assert printed.err == ""
        found.append([json.loads(line) for line in printed.out.splitlines()])
    (seal, long, last), (*runs, final) = found
    assert (seal["arm"], long["arm"], seal["seed"]) == ("seal", "long", 0)
    assert 0 <= long["test accuracy"] <= 1 and long["epochs"] == 2
    assert "one seed" in last["verdict"]["claim"] and last["report"].endswith("report.html")
    assert last["verdict"]["differences"]["long"]["low"] is None, "no NaN in JSON"
    assert [row["lr"] for row in runs] == [row["lr"] for row in final["summary"]] == [0.05, 0.1]


def test_an_interrupted_evaluation_does_not_speak_of_comparisons(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "evaluate", interrupted)
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", "run"])
    assert (left.value.code, capsys.readouterr().err) == (130, "")


def test_an_error_ends_the_command_with_exit_code_one(tmp_path):
    done = command("resume {}", tmp_path)
    assert done.returncode == 1 and "config.json" in done.stderr and done.stderr.count("\n") == 1


def test_an_interrupted_run_prints_a_quoted_command_to_resume(tmp_path, capsys):
    def results(started):
        raise KeyboardInterrupt
        yield

    with pytest.raises(SystemExit) as left:
        cli._follow(results, tmp_path / "my run", False)
    assert left.value.code == 130
    assert f"train-cls resume '{tmp_path}/my run'" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_the_run_resumes(tmp_path, number):
    folder, flags = tmp_path / "run", "--per-class 20 --generations 2 --epochs 500 --json"
    process = subprocess.Popen(
        [sys.executable, "-m", "train_cls.cli", "train", str(folder), *flags.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["epoch"] == 1
    process.send_signal(number)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130 and f"train-cls resume {folder}" in message
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    first = next(api.resume(folder))
    assert first.epoch == int(newest.name) // 6 + 1  # of 200 images, 32 at a time


def test_closed_output_ends_the_command_silently():
    """`train-cls methods | head -1` with a reader that exits before the first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "train_cls.cli", "methods"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 141


def test_two_processes_with_half_the_batch_each_equal_one_process(tmp_path):
    """Gradients are averaged; without batch norm and dropout, the weights are the same."""
    flags = "--epochs 1 --generations 1 --method normal --model vgg16 --size 32 --per-class 4"
    flags += " --batch 10 --set pad=0 --lr 0.001"
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\nfrom train_cls.models.classifier import Dropout\n"
        "Dropout.forward = lambda self, x: x\n"
        "from train_cls.cli import main\nmain(sys.argv[1:])\n"
    )
    alone = run(sys.executable, script, "train", tmp_path / "one", *flags.split())
    assert alone.returncode == 0, alone.stderr
    launch = "-m accelerate.commands.launch --num_processes 2 --multi_gpu --main_process_port 29577"
    both = run(
        sys.executable,
        *launch.split(),
        script,
        "train",
        tmp_path / "two",
        *flags.split(),
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )
    assert both.returncode == 0, both.stderr
    ends = [
        checkpoint.load(checkpoint.latest(tmp_path / n / "checkpoints")).tensors["model"]
        for n in ("one", "two")
    ]
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-5)
