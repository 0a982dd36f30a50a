import json
import os
import random
import subprocess
import sys
import time

import pytest
import torch

from dreamsa import checkpoint
from dreamsa.checkpoint import CheckpointError


def write(folder, value=1.0, step=3):
    scene = {"a": torch.full((64,), value), "b": torch.arange(5)}
    checkpoint.save(folder, {"scene": scene}, {"step": step})
    return folder


def names(folder):
    return sorted(os.listdir(folder))


def test_round_trip_is_exact(tmp_path):
    tensors, state = checkpoint.load(write(tmp_path / "00000003", 0.1))
    assert torch.equal(tensors["scene"]["a"], torch.full((64,), 0.1))
    assert torch.equal(tensors["scene"]["b"], torch.arange(5))
    assert state == {"step": 3}


def test_every_flipped_bit_is_noticed_and_its_file_named(tmp_path):
    """safetensors alone loads 398 of 400 flipped files silently wrong."""
    folder, rng = write(tmp_path / "00000003"), random.Random(0)
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            try:
                tensors, _ = checkpoint.load(folder)
                # e.g. a space became another blank: nothing was lost
                assert path.name == checkpoint.MANIFEST
                assert torch.equal(tensors["scene"]["a"], torch.ones(64))
            except CheckpointError as error:
                assert path.name in str(error) or path.name == checkpoint.MANIFEST
        path.write_bytes(good)
    checkpoint.load(folder)


def test_truncated_missing_and_swapped_files_are_noticed(tmp_path):
    folder, other = write(tmp_path / "00000003"), write(tmp_path / "00000004", 2.0)
    path = folder / "scene.safetensors"
    good = path.read_bytes()
    for bad in (good[:-1], good[:10], b"", (other / "scene.safetensors").read_bytes()):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"scene.safetensors is damaged"):
            checkpoint.load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"scene.safetensors is missing"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"format": 99, "files": {}}',
        '{"format": 1}',
        '{"format": 1, "files": []}',
        '{"format": 1, "files": {}}',
        '{"format": 1, "files": {"state.json": 3}}',
        '{"format": 1, "files": {"../x": {"bytes": 1, "sha256": "0"}}}',
    ],
)
def test_odd_manifests_are_checkpoint_errors(tmp_path, manifest):
    folder = write(tmp_path / "00000003")
    (folder / checkpoint.MANIFEST).write_text(manifest)
    with pytest.raises(CheckpointError):
        checkpoint.load(folder)


def test_latest_goes_back_past_a_damaged_one_and_says_so(tmp_path):
    write(tmp_path / "00000003", step=3)
    newer = write(tmp_path / "00000010", step=10)
    assert checkpoint.latest(tmp_path) == newer
    (newer / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"state.json is damaged.*the checkpoint before it"):
        assert checkpoint.latest(tmp_path) == tmp_path / "00000003"
    assert checkpoint.latest(tmp_path / "nothing") is None


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tmp_path):
    folder = write(tmp_path / "00000003")
    with pytest.raises(FileExistsError, match="never overwritten"):
        write(folder, 2.0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.save(tmp_path / "00000004", {}, {"loss": float("nan")})
    assert names(tmp_path) == ["00000003"]


def test_prune_keeps_the_newest_and_sweeps_up(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path / f"{step:08d}", step=step)
    (tmp_path / ".tmp-abc").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert names(tmp_path) == ["00000002", "00000003"]


def flip(folder, name="scene.safetensors"):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def test_prune_counts_complete_checkpoints_only(tmp_path):
    for step in range(1, 6):
        write(tmp_path / f"{step:08d}", step=step)
    flip(tmp_path / "00000005")
    flip(tmp_path / "00000003")
    checkpoint.prune(tmp_path, keep=2)
    complete = [name for name in names(tmp_path) if checkpoint.damage(tmp_path / name) is None]
    assert complete == ["00000002", "00000004"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced_and_set_aside(tmp_path):
    def save():
        return checkpoint.save_step(tmp_path, 7, {"scene": {"a": torch.ones(3)}}, {"step": 7})

    target = save()
    before = (target / "scene.safetensors").stat().st_mtime_ns
    save()  # a complete one is never written again
    assert (target / "scene.safetensors").stat().st_mtime_ns == before
    for i in range(2):
        flip(target)
        assert save() == target
        assert checkpoint.damage(target) is None
        assert checkpoint.latest(tmp_path) == target
        assert (tmp_path / f"damaged-00000007-{i}").is_dir()


def test_a_full_disk_leaves_the_old_checkpoint_and_no_part_of_the_new(tmp_path):
    """A write beyond RLIMIT_FSIZE fails as on a full disk."""
    script = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from dreamsa import checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "checkpoint.save(Path(sys.argv[1]), {'scene': {'a': torch.ones(100_000)}}, {})"
    )
    old = write(tmp_path / "00000003")
    command = [sys.executable, "-c", script, str(tmp_path / "00000004")]
    assert subprocess.run(command, capture_output=True).returncode != 0
    assert names(tmp_path) == ["00000003"]
    checkpoint.load(old)


KILLED = """
import sys, torch
from pathlib import Path
from dreamsa import checkpoint
torch.set_num_threads(1)
print("ready", flush=True)
step = 1
while True:
    tensors = {"scene": {"a": torch.full((50_000,), float(step))}}
    checkpoint.save_step(Path(sys.argv[1]), step, tensors, {"step": step})
    step += 1
"""


def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path):
    rng = random.Random(1)
    for trial in range(4):
        folder = tmp_path / str(trial)
        command = [sys.executable, "-c", KILLED, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2 + rng.random() * 0.4)
        process.kill()
        process.wait()
        newest = checkpoint.latest(folder)
        assert newest is not None
        tensors, state = checkpoint.load(newest)
        assert torch.equal(tensors["scene"]["a"], torch.full((50_000,), float(state["step"])))
        checkpoint.prune(folder)
        assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize(
    "make", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop]
)
def test_optimizers_pack_and_unpack(tmp_path, make):
    def run(x, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            (x * x).sum().backward()
            optimizer.step()

    x = torch.nn.Parameter(torch.ones(3))
    first = make([{"params": [x], "name": "all"}], lr=0.1)
    run(x, first, 3)
    tensors, state = checkpoint.pack_optimizer(first)
    checkpoint.save(tmp_path / "00000001", {"optimizer": tensors}, json.loads(json.dumps(state)))
    y = torch.nn.Parameter(x.detach().clone())
    second = make([{"params": [y], "name": "all"}], lr=0.5)
    loaded = checkpoint.load(tmp_path / "00000001")
    checkpoint.unpack_optimizer(second, loaded.tensors.get("optimizer", {}), loaded.state)
    run(x, first, 3)
    run(y, second, 3)
    assert torch.equal(x, y)
