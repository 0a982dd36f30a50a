"""A run survives what happens to it: damaged checkpoints, exceptions, signals, odd file systems."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_score

from dreamsa import api, checkpoint, cli, files, job, outputs, signals, train
from dreamsa.checkpoint import CheckpointError
from dreamsa.commands.follow import follow
from dreamsa.commands.output import one_line_json
from dreamsa.guidance import stable_diffusion
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.runs import Run, RunError
from dreamsa.train import new_training


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    use(monkeypatch, tiny_score())
    monkeypatch.setattr(job, "write_outputs", lambda run, scene, frames=8, resolution=16: [])
    monkeypatch.setattr(job, "write_results", lambda *arguments: None)


def use(monkeypatch, score):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: score)
    stable_diffusion._shared.clear()


def start(tmp_path, **changes):
    return api.generate(config=tiny_config(**{"save_every": 5, **changes}), runs=tmp_path)


def damage(folder: Path) -> None:
    path = folder / "scene.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def scene_bytes(run: Run) -> bytes:
    return (run.latest_checkpoint / "scene.safetensors").read_bytes()


@pytest.mark.parametrize("damaged", [["00000012"], ["00000010", "00000012"]])
def test_a_finished_run_whose_last_checkpoints_are_damaged_is_trained_again(tmp_path, damaged):
    run = start(tmp_path).wait()
    whole = scene_bytes(run)
    for name in damaged:
        damage(run.checkpoints / name)
    with pytest.warns(UserWarning, match="is damaged"):
        for use_it in (lambda: api.edit(run, "a mug", runs=tmp_path), lambda: api.export(run)):
            with pytest.raises(RunError, match=r"no complete .*Train what is missing: .* resume"):
                use_it()
        resumed = api.resume(run, runs=tmp_path).wait()
    assert scene_bytes(resumed) == whole
    with pytest.raises(RunError, match="is finished"):
        api.resume(run, runs=tmp_path)


def test_without_a_complete_checkpoint_a_run_says_that_it_starts_again(tmp_path):
    running = start(tmp_path)
    next(iter(running))
    running.stop()
    damage(running.run.checkpoints / "00000001")
    with pytest.warns(UserWarning, match="starts again from step 0, and ends in the same scene"):
        resumed = api.resume(running.run, runs=tmp_path).wait()
    assert scene_bytes(resumed) == scene_bytes(start(tmp_path).wait())
    assert "from step 0" in (resumed.path / "log.txt").read_text()


def test_a_reader_beside_a_writer_that_prunes_always_finds_a_checkpoint(tmp_path):
    def write():
        for step in range(1, 40):
            checkpoint.save_step(tmp_path, step, {"a": {"x": torch.zeros(8)}}, {"step": step})

    checkpoint.save_step(tmp_path, 0, {"a": {"x": torch.zeros(8)}}, {"step": 0})
    writer, found = threading.Thread(target=write), []
    writer.start()
    while writer.is_alive():
        found.append(checkpoint.newest(tmp_path, checkpoint.load))
    writer.join()
    assert len(found) > 10
    assert None not in found


class Failing(type(tiny_score())):
    """Raises `error` at the given calls."""

    def __init__(self, error, calls):
        super().__init__(**vars(tiny_score()))
        self.error, self.calls, self.count = error, calls, 0

    def predict_noise(self, *args):
        self.count += 1
        if self.count - 1 in self.calls:
            raise self.error
        return super().predict_noise(*args)


ERRORS = [KeyError("a"), TypeError("b"), MemoryError(), ZeroDivisionError("c"), RuntimeError("d")]


@pytest.mark.parametrize("error", ERRORS[::2], ids=lambda error: type(error).__name__)
def test_an_exception_in_a_step_loses_nothing_and_is_reported(tmp_path, monkeypatch, error):
    given = {"steps": 12, "ascent_steps": 4, "eta": 0.3, "runs": tmp_path}
    parent = start(tmp_path).wait()
    whole = api.edit(parent, "a mug", **given).wait()
    at = ERRORS.index(error) + 1  # the last step of the ascent and the first after it, too
    use(monkeypatch, Failing(error, {at}))
    failing = api.edit(parent, "a mug", **given)
    with pytest.raises(RunError, match=rf"failed: {type(error).__name__}") as caught:
        failing.wait()
    assert f"Saved up to step {at}; log: " in str(caught.value)
    assert failing.run.command("resume") in str(caught.value)
    assert failing.run.status == "failed"
    log = (failing.run.path / "log.txt").read_text()
    assert "Traceback" in log and "predict_noise" in log
    use(monkeypatch, tiny_score())
    assert scene_bytes(api.resume(failing.run, runs=tmp_path).wait()) == scene_bytes(whole)


def test_out_of_memory_is_tried_once_more_and_changes_no_bit(tmp_path, monkeypatch):
    whole = start(tmp_path).wait()
    error = torch.OutOfMemoryError("CUDA out of memory")
    use(monkeypatch, Failing(error, {0, 3, 5, 9}))
    assert scene_bytes(start(tmp_path).wait()) == scene_bytes(whole)
    use(monkeypatch, Failing(error, {3, 4}))
    with pytest.raises(RunError, match=r"out of memory.*Saved up to step 3.*resume"):
        start(tmp_path).wait()


@pytest.mark.parametrize("scale", [1e19, 1e30, float("inf"), float("nan")])
def test_a_gradient_whose_square_overflows_is_skipped(scale):
    class Huge(type(tiny_score())):
        def predict_noise(self, noisy, timesteps, texts):
            return tuple(part * scale for part in super().predict_noise(noisy, timesteps, texts))

    training = new_training(tiny_config())
    before = [p.clone() for p in training.scene.parameters()]
    result = train.sds_step(training, Huge(**vars(tiny_score())), ViewPrompt(tiny_score(), "x"))
    assert result.skipped
    assert all(map(torch.equal, before, training.scene.parameters()))
    moments = [v for state in training.optimizer.state.values() for v in state.values()]
    assert all(bool(value.isfinite().all()) for value in moments)


def test_a_run_that_skips_more_steps_than_it_does_ends(monkeypatch, tmp_path):
    from test_train import Broken

    use(monkeypatch, Broken({call for call in range(200) if call % 3}))
    with pytest.raises(RuntimeError, match=r"11 steps in all, because the guidance") as caught:
        start(tmp_path, steps=60).wait()
    assert "Resume it" in " ".join(caught.value.__notes__)


def states():
    good = {
        "step": 3,
        "skipped": 0,
        "skipped_in_a_row": 0,
        "prepared": False,
        "annealer": {"previous": None, "lowest": None, "ended": [], "begun": False, "step": 3},
    }
    yield from ({key: v for key, v in good.items() if key != name} for name in good)
    for value in (-5, 1.5, 10**18, "3", None, True, [], float("nan"), 4):
        yield {**good, "step": value}
    for name in ("previous", "lowest", "ended"):
        rest = {key: v for key, v in good["annealer"].items() if key != name}
        yield {**good, "annealer": rest}
        yield {**good, "annealer": {**rest, name: "x"}}
        yield {**good, "annealer": {**rest, name: float("nan")}}


@pytest.mark.parametrize("state", list(states())[:3] + list(states())[4:])
def test_an_odd_state_is_a_checkpoint_error_that_changes_nothing(tmp_path, monkeypatch, state):
    training = new_training(tiny_config())
    tensors, optimizer = checkpoint.pack_optimizer(training.optimizer)
    state = {**state, "optimizer": optimizer}
    if "optimizer" in state:
        path = tmp_path / "00000003"
        checkpoint.save(path, {"scene": training.scene.tensors(), "training": tensors}, {})
        monkeypatch.setattr(
            checkpoint, "load", lambda folder: checkpoint.Checkpoint({"scene": {}}, state)
        )
    with pytest.raises(CheckpointError, match="does not fit its run"):
        training.load(path)
    assert training.step == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t, o: t.update({"0.exp_avg": torch.full_like(t["0.exp_avg"], torch.nan)}),
            "finite",
        ),
        (lambda t, o: t.update({"0.exp_avg": torch.zeros(3)}), "shape"),
        (lambda t, o: t.update({"99.exp_avg": torch.zeros(3)}), "IndexError"),
        (lambda t, o: t.update({"x.exp_avg": torch.zeros(3)}), "ValueError"),
        (lambda t, o: o.pop("groups"), "KeyError"),
        (lambda t, o: o["groups"].pop(), "other parameter groups"),
        (lambda t, o: o.update(groups=3), "TypeError"),
        (lambda t, o: o["groups"][0].pop("lr"), "other parameter groups"),
    ],
)
def test_an_odd_optimizer_state_is_a_checkpoint_error(change, says):
    training = new_training(tiny_config())
    train.sds_step(training, tiny_score(), ViewPrompt(tiny_score(), "x"))
    tensors, state = checkpoint.pack_optimizer(training.optimizer)
    state = json.loads(json.dumps(state))
    change(tensors, state)
    with pytest.raises(CheckpointError, match=says):
        checkpoint.unpack_optimizer(new_training(tiny_config()).optimizer, tensors, state)


def test_a_resumed_run_computes_with_its_own_threads_and_names_what_else_changes_its_bits(
    tmp_path, monkeypatch
):
    used = []
    monkeypatch.setattr(job, "use_threads", used.append)
    running = start(tmp_path)
    next(iter(running))
    running.stop()
    assert used == [running.run.record["threads"]]
    running.run.update(threads=7, weights="another")
    with pytest.warns(UserWarning, match=r"resumes, but not bit for bit .*: weights another -> "):
        resumed = api.resume(running.run, runs=tmp_path)
    resumed.wait()
    assert used[1:] == [7]
    assert resumed.run.record["threads"] == 7


def test_numba_leaves_torch_its_threads():
    script = (
        "import torch; from dreamsa.device import use_threads; use_threads(2)\n"
        "from dreamsa.train import new_training; from tiny import tiny_config\n"
        "new_training(tiny_config()).scene.refresh(0, 0, True); print(torch.get_num_threads())"
    )
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def test_quiet_says_when_the_last_save_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    for quiet, as_json in ((True, False), (False, True)):
        monkeypatch.setattr(signals, "stop_on_signals", lambda: [signal.SIGTERM])
        with pytest.raises(RunError, match="No space left on device. Nothing was saved"):
            follow(start(tmp_path), as_json, quiet)


def test_signals_that_come_together_are_one(monkeypatch):
    ended, before = [], {n: signal.getsignal(n) for n in signals._numbers()}
    try:
        received = signals.stop_on_signals()
        monkeypatch.setattr(os, "kill", lambda pid, number: ended.append(number))
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert (received, ended) == ([signal.SIGHUP], [])
        monkeypatch.setattr(signals, "TOGETHER", 0.0)
        signal.raise_signal(signal.SIGTERM)
        assert ended == [signal.SIGTERM]
        monkeypatch.undo()
        for number in before:
            signal.signal(number, signal.default_int_handler)
        signals.interrupt_on_signals()
        with pytest.raises(KeyboardInterrupt), signals.deferred_interrupt():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # while it saves
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_json_has_no_nan():
    value = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (2, float("-inf"))}}
    assert json.loads(one_line_json(value)) == {"a": None, "b": [1.0, None], "c": {"d": [2, None]}}


def test_a_file_system_whose_folders_cannot_be_synced_works(tmp_path, monkeypatch):
    fsync, code = os.fsync, [errno.EINVAL]

    def odd(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code[0], os.strerror(code[0]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", odd)
    assert start(tmp_path, steps=2).wait().status == "finished"
    code[0] = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        files.write_json(tmp_path / "a.json", {})


def test_what_dead_writers_left_is_removed_and_a_living_ones_is_not(tmp_path):
    running = start(tmp_path)
    run = running.run
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], text=True,
                          capture_output=True, check=True).stdout.strip()  # fmt: skip
    (run.path / "previews").mkdir()
    left = [run.path / f".tmp-{dead}-a.png", run.path / "previews" / f".tmp-{dead}-b.png"]
    left += [run.path / "previews" / ".tmp-old"]
    for path in left:
        path.write_text("half")
    (run.path / f".tmp-{dead}-folder").mkdir()
    living = run.path / f"{files.own_prefix()}c"
    living.write_text("half")
    running.wait()
    assert list(run.path.rglob(".tmp-*")) == [living]


@pytest.mark.parametrize("program", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\ncat > /dev/null\n", None])
def test_an_ffmpeg_that_fails_is_a_warning(tmp_path, monkeypatch, program):
    path = tmp_path / "ffmpeg"
    if program is not None:
        path.write_text(program)
        path.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    frames = np.zeros((8, 16, 16, 3), np.uint8)
    with pytest.warns(UserWarning, match=r"turntable.mp4 was not written"):
        written = outputs.write_turntable(frames, tmp_path / "turntable")
    assert [path.name for path in written] == ["turntable.webp"]
    assert sorted(path.name for path in tmp_path.glob("turntable*")) == ["turntable.webp"]


def test_an_unexpected_error_is_one_sentence(monkeypatch, capsys):
    for error in (*ERRORS, AssertionError()):
        monkeypatch.setattr(cli, "app", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        with pytest.raises(SystemExit) as ended:
            cli.main(["list"])
        said = capsys.readouterr().err
        assert ended.value.code == 1
        assert re.fullmatch(r"dreamsa: [^\n]+\n", said)
        assert ("--debug" in said) == (not isinstance(error, RuntimeError))
        with pytest.raises(type(error)):
            cli.main(["list", "--debug"])
