import pytest
import torch

from dreamsa.device import Processes, resolve_device, triton_problem


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no device 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="'meta' is not supported"):
        resolve_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            resolve_device("cuda")


def test_cuda_and_its_number_are_one_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert {str(resolve_device(name)) for name in ("auto", "cuda", "cuda:1")} == {"cuda:1"}
    with pytest.raises(ValueError, match="there are 2 GPUs"):
        resolve_device("cuda:7")


def set_environment(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "1"}, "RANK=1 with WORLD_SIZE=1"),
        ({"RANK": "x"}, "RANK must be a whole number, got 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 with WORLD_SIZE=2"),
    ],
)
def test_an_impossible_launch_environment_is_one_sentence(monkeypatch, environment, says):
    set_environment(monkeypatch, environment)
    with pytest.raises(ValueError, match=says):
        Processes.current()


@pytest.mark.parametrize(
    "environment", [{}, {"RANK": ""}, {"RANK": "0"}, {"RANK": " ", "WORLD_SIZE": "1"}]
)
def test_one_process_needs_no_launcher(monkeypatch, environment):
    set_environment(monkeypatch, environment)
    assert Processes.current() == Processes(0, 1)


def test_why_triton_cannot_run_is_one_line():
    def probe(device):
        raise RuntimeError("no compiler\nsecond line")

    on_cpu = triton_problem(probe, torch.device("cpu"))
    assert on_cpu == "they need a CUDA device, the device is cpu"
    assert triton_problem(probe, torch.device("cuda", 0)) == "RuntimeError: no compiler"
