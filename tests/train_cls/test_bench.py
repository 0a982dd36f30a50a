"""The benchmark takes turns fairly and times what it says; how fast anything is here is not asserted."""

import time

import pytest
import torch

from train_cls.bench import BenchConfig, bench, take_turns

CPU = torch.device("cpu")


def test_rivals_take_turns_and_the_first_round_does_not_count():
    seen = []
    take_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3, CPU)
    assert "".join(seen) == "ab" + "ba" + "ab" + "ba"


def test_a_rival_that_works_longer_takes_longer():
    """Work is counted, not waiting: other programs on the machine must not be."""

    def work(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    contest = take_turns({"one": lambda: work(0.01), "three": lambda: work(0.03), "sleep": lambda: time.sleep(0.02)}, 3, CPU)
    assert contest.ratio("three", "one") == pytest.approx(3, rel=0.2)
    assert contest.seconds["sleep"] < 0.01


def test_both_contests_run_on_a_small_network():
    step, epoch = bench(BenchConfig("preresnet-tiny", classes=10, channels=1, size=8, batch=4, rounds=1, device="cpu"))
    assert set(step["of a plain step"]) == {"mounted", "ascend"} and set(epoch["of a bare loop's throughput"]) == {"train-cls"}
    assert all(value > 0 for facts in (step, epoch) for group in facts.values() for value in group.values())


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="rounds"):
        BenchConfig(rounds=0)
