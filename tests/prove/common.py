"""What the proofs share: a result, a tiny run, and processes that can be killed."""

import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from tiny import tiny_config, tiny_score

from dreamsa import api, job
from dreamsa.guidance import stable_diffusion
from dreamsa.runs import Run


class Result(NamedTuple):
    tried: int
    failures: list[str]
    facts: Mapping[str, object] = MappingProxyType({})


def use_tiny_model() -> None:
    """Let runs of this process and its children take a fraction of a second per step."""
    torch.set_num_threads(1)
    stable_diffusion._shared.clear()
    job.StableDiffusion.load = classmethod(lambda cls, config, device: tiny_score())
    job.write_outputs = lambda run, scene, frames=0, resolution=0: []


def generate(folder: Path, steps: int = 60, **changes) -> Run:
    config = tiny_config(**{"steps": steps, "save_every": 5, **changes})
    return api.generate(config=config, runs=folder).wait()


def digest(run: Run) -> str:
    """Of the last checkpoint's tensors."""
    found = run.latest_checkpoint
    names = ("scene.safetensors", "training.safetensors", "state.json")
    return hashlib.sha256(b"".join((found / name).read_bytes() for name in names)).hexdigest()


def fork(work: Callable[[], object], log: Path) -> int:
    """Run `work` in a child process; returns its number. It ends with 0, or with 1 and a
    traceback in `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            work()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        code = 1
    os._exit(code)


def ended(pid: int) -> int:
    """Exit code of a child; minus its signal if that has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def settle(work: Callable[[], object], log: Path) -> int:
    return ended(fork(work, log))
