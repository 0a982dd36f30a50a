"""The benchmark interleaves its measurements. Speeds are not asserted."""

import time
from importlib.util import find_spec

import pytest
import torch

from train_cls.bench import BenchConfig, bench, time_interleaved

CPU = torch.device("cpu")


def test_contestants_are_interleaved_after_a_round_of_warm_up():
    seen = []
    time_interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3, CPU)
    assert "".join(seen) == "ab" + "ba" + "ab" + "ba"


def test_process_time_is_measured_and_not_waiting():
    def work(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    contest = time_interleaved(
        {"one": lambda: work(0.01), "three": lambda: work(0.03), "sleep": lambda: time.sleep(0.02)},
        3,
        CPU,
    )
    assert contest.ratio("three", "one") == pytest.approx(3, rel=0.2)
    assert contest.seconds["sleep"] < 0.01


def test_all_contests_run_on_a_small_network():
    config = BenchConfig(
        "preresnet-tiny", classes=10, channels=1, size=8, batch=4, rounds=1, device="cpu"
    )
    step, epoch, *recipe = bench(config)
    assert set(step["of a plain step"]) == {"mounted", "ascend"} and set(
        epoch["of a bare loop's throughput"]
    ) == {"train-cls"}
    assert all(
        value > 0
        for facts in (step, epoch, *recipe)
        for group in facts.values()
        for value in group.values()
    )
    assert len(recipe) == (find_spec("timm") is not None)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="rounds"):
        BenchConfig(rounds=0)
