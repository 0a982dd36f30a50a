"""The trainer on digits: mechanics, exact resume, comparison and the command line. Accuracies are asserted only where they must move."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamsa import checkpoint
from train_cls import api, cli
from train_cls.compare import compare, history, last_scores, paired_difference, table, verdict
from train_cls.config import PRESETS, AnnealConfig, TrainConfig, from_dict, preset, to_dict, with_overrides
from train_cls.data import DataConfig, load_splits
from train_cls.methods import METHODS
from train_cls.report import write_report
from train_cls.run import continue_run, new_run, rows
from train_cls.train import new_training, train

SMALL = TrainConfig(epochs=2, generations=3, batch=20, splits=DataConfig(per_class=10, validation=50), model="preresnet-small")


@pytest.fixture(scope="module")
def splits():
    return load_splits("digits", SMALL.splits)


def weights(training):
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_resumes_bit_for_bit(method, splits, tmp_path):
    """Stopped in the middle of generation 2, loaded into fresh objects: the same network, snapshots, masks and teachers included."""
    config = replace(SMALL, method=method, splits=SMALL.splits)
    whole = new_training(config, splits.train)
    results = list(train(whole, splits))
    assert all(np.isfinite(r.loss) for r in results) and results[-1].scores["test accuracy"] >= 0
    assert whole.step == whole.steps
    if whole.steps <= whole.setup.period:
        return
    first = new_training(config, splits.train)
    for result in train(first, splits):
        if result.epoch == 3:
            break
    first.save(tmp_path / "00000015")
    second = new_training(replace(config, seed=config.seed), splits.train)
    second.load(tmp_path / "00000015")
    rest = list(train(second, splits))
    assert torch.equal(weights(whole), weights(second))
    assert rest[-1].scores == results[-1].scores and rest[0].loss == results[3].loss


def test_generation_one_is_the_same_for_all_methods_that_share_it(splits):
    from train_cls.compare import FROM_SCRATCH

    ends = {}
    for method in METHODS:
        if method not in FROM_SCRATCH:
            training = new_training(replace(SMALL, method=method), splits.train)
            for result in train(training, splits):
                if result.epoch == SMALL.epochs:
                    break
            ends[method] = weights(training)
    first = ends["restarts"]
    assert len(ends) > 15 and all(torch.equal(first, other) for other in ends.values())


def test_the_ascent_climbs_and_comes_back(splits):
    """Training accuracy falls while the early layers ascend at a scale that is felt, and recovers."""
    config = replace(SMALL, method="seal", epochs=8, generations=2, anneal=AnnealConfig(scale=1.0, share=0.5, bound=1e9))
    results = list(train(new_training(config, splits.train), splits))
    phases = [r.phase for r in results]
    assert phases == ["descend"] * 8 + ["ascend"] * 4 + ["descend"] * 4
    assert results[11].loss > results[7].loss and results[15].loss < results[11].loss
    assert results[11].accuracy < results[7].accuracy and results[15].accuracy > results[11].accuracy


def test_seal_with_scale_zero_is_the_freezing_control(splits):
    ends = []
    for method, scale in (("seal", 0.0), ("seal-zero", 0.01)):
        training = new_training(replace(SMALL, method=method, epochs=4, generations=2, anneal=AnnealConfig(scale=scale)), splits.train)
        list(train(training, splits))
        ends.append(weights(training))
    assert torch.equal(*ends)


def test_settings_reach_the_optimizer(splits):
    training = new_training(replace(SMALL, optimizer="adamw", clip=1.0, accumulate=2, batch=10, ema=0.9), splits.train)
    results = list(train(training, splits))
    assert training.steps == 3 * 2 * 5 and "test average accuracy" in results[-1].scores


def test_half_precision_trains_in_it_and_stores_in_single(splits):
    training = new_training(replace(SMALL, method="normal", epochs=1, precision="bfloat16"), splits.train)
    (result,) = train(training, splits)
    assert np.isfinite(result.loss) and weights(training).dtype == torch.float32


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adagrad", "rmsprop"])
def test_every_optimizer_bears_the_rules(optimizer, splits):
    training = new_training(replace(SMALL, optimizer=optimizer, method="landscape", lr=1e-3), splits.train)
    list(train(training, splits))
    assert training.annealer.lowest is not None and torch.isfinite(weights(training)).all()


def test_accumulated_batches_equal_one_large_one_without_batch_norm():
    small = load_splits("digits", DataConfig(per_class=2, validation=0, size=32))
    ends = []
    for batch, accumulate in ((20, 1), (5, 4)):
        config = TrainConfig(epochs=1, generations=1, method="normal", batch=batch, accumulate=accumulate, model="vgg16", pad=0, lr=1e-3)
        training = new_training(config, small.train)
        for module in training.model.modules():
            if hasattr(module, "p"):
                module.p = 0.0
        list(train(training, small))
        ends.append(weights(training))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "early", "late"), [("seal", 0.1, 1.0), ("seal-reverse", 1.0, 0.1), ("seal-zero", 0.0, 1.0), ("random-direction", 0.1, 1.0)]
)
def test_the_early_layers_rate_is_what_they_moved_at(method, early, late, splits):
    """In units of the scheduled rate, in the ascent and after it; the later layers' beside it."""
    config = replace(SMALL, method=method, epochs=4, generations=2, constant_lr=True, anneal=AnnealConfig(scale=0.1, share=0.5))
    training = new_training(config, splits.train)
    seen = {result.epoch: (result.early_lr, training.annealer.rates["late"]) for result in train(training, splits)}
    assert seen[5] == pytest.approx((config.lr * early, config.lr * late))
    assert seen[4] == seen[8] == pytest.approx((config.lr, config.lr))


def test_weights_of_another_network_are_refused(splits, tmp_path):
    new_training(SMALL, splits.train).save(tmp_path / "00000000")
    other = new_training(replace(SMALL, model="preresnet-tiny"), splits.train)
    with pytest.raises(ValueError, match=r"another network's: layer1\.1\.bn1\.bias is \(16,\) in it and absent in this PreResNet"):
        other.load(tmp_path / "00000000")
    list(api.train(replace(SMALL, epochs=1, generations=1), tmp_path / "run"))
    changed = with_overrides(replace(SMALL, epochs=1, generations=1), {"splits.only_classes": "0-4"})
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(changed)))
    with pytest.raises(ValueError, match=r"fc\.weight is \(10, 64\) in it and \(5, 64\)"):
        api.evaluate(tmp_path / "run")


def test_divergence_is_said(splits):
    wild = replace(
        SMALL, method="seal", epochs=6, generations=2, weight_decay=10.0, anneal=AnnealConfig(scale=100.0, share=1.0, bound=1e30)
    )
    with pytest.raises(FloatingPointError, match="diverged"):
        list(train(new_training(wild, splits.train), splits))


def test_a_guarded_ascent_ends_where_the_loss_is_beyond_its_bound(splits, caplog):
    config = replace(SMALL, method="seal", epochs=4, generations=2, anneal=AnnealConfig(share=1.0, bound=0.01))
    results = list(train(new_training(config, splits.train), splits))
    assert [r.phase for r in results] == ["descend"] * 8 and "ends early" in caplog.text


def test_kept_checkpoints_make_an_ensemble(tmp_path):
    config = replace(SMALL, method="distancing", splits=DataConfig(per_class=10, validation=50))
    list(api.train(config, tmp_path / "run"))
    assert len(list((tmp_path / "run" / "generations").iterdir())) == 3
    facts = api.evaluate(tmp_path / "run")
    assert {"validation", "test", "ensemble of generations"} <= facts.keys()
    assert 0 <= facts["ensemble of generations"]["mean disagreement"] <= 1
    each = {str(row["generation"]): row["test accuracy"] for row in rows(tmp_path / "run") if row["epoch"] % config.epochs == 0}
    assert facts["test accuracy of generation"] == pytest.approx(each)
    table_ = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(table_) == 7 and "test accuracy" in table_[0]


def test_a_run_is_never_overwritten_and_resumes_from_its_files(tmp_path):
    whole = list(api.train(SMALL, tmp_path / "whole"))
    with pytest.raises(ValueError, match="never overwritten"):
        api.train(SMALL, tmp_path / "whole")
    new_run(tmp_path / "part", SMALL)
    for result in continue_run(tmp_path / "part"):
        if result.epoch == 2:
            break
    rest = list(api.resume(tmp_path / "part"))
    assert rest[0].epoch == 3 and rest[-1].scores == whole[-1].scores
    assert [r["epoch"] for r in rows(tmp_path / "part")] == [1, 2, 3, 4, 5, 6]
    ends = [checkpoint.load(checkpoint.latest(tmp_path / n / "checkpoints")).tensors["model"] for n in ("whole", "part")]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_a_comparison_shares_its_first_generation_resumes_and_reports(tmp_path):
    arms, seeds = ("seal", "reset-only", "long"), (0, 1)
    lines = list(compare(SMALL, tmp_path / "c", arms, seeds))
    assert len(lines) == 6
    for seed in seeds:
        seal = rows(tmp_path / "c" / "seal" / f"seed-{seed}")
        assert [row["epoch"] for row in seal] == [3, 4, 5, 6], "generation 1 was not run again"
        assert len(rows(tmp_path / "c" / "generation-1" / f"seed-{seed}")) == 2
        assert [row["epoch"] for row in rows(tmp_path / "c" / "long" / f"seed-{seed}")] == [1, 2, 3, 4, 5, 6]
    before = last_scores(tmp_path / "c" / "seal" / "seed-0")
    assert len(list(compare(SMALL, tmp_path / "c", arms, seeds))) == 6
    assert last_scores(tmp_path / "c" / "seal" / "seed-0") == before
    with pytest.raises(ValueError, match="other settings"):
        list(compare(replace(SMALL, lr=0.3), tmp_path / "c", arms, seeds))
    page = write_report(tmp_path / "c", arms, seeds).read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org", "") and "best control" in page
    assert len((tmp_path / "c" / "scores.csv").read_text().splitlines()) == 7
    assert [row["epoch"] for row in history(tmp_path / "c", "seal", 1)] == [1, 2, 3, 4, 5, 6]
    assert set(table(tmp_path / "c", arms, seeds)) == set(arms)
    (tmp_path / "c" / "seal" / "seed-1" / "metrics.csv").unlink()
    assert set(table(tmp_path / "c", arms, seeds)["seal"]) == {"0"}, "a run that was stopped has no say yet"


def test_an_arm_with_tuned_settings_trains_from_scratch(tmp_path):
    list(compare(SMALL, tmp_path / "c", ("seal", "seal@hot"), (0,), {"seal@hot": {"lr": 0.2}}))
    assert rows(tmp_path / "c" / "seal@hot" / "seed-0")[0]["epoch"] == 1


def test_the_verdict_is_about_the_best_control():
    scores = {
        "seal": {"0": 0.9, "1": 0.91, "2": 0.92},
        "long": {"0": 0.89, "1": 0.90, "2": 0.905},
        "llf": {"0": 0.5, "1": 0.5, "2": 0.5},
    }
    found = verdict(scores)
    assert found["best control"] == "long" and "beats" in found["claim"]
    scores["long"] = {"0": 0.95, "1": 0.96, "2": 0.99}
    assert "loses to" in verdict(scores)["claim"]
    scores["long"] = {"0": 0.95, "1": 0.86, "2": 0.925}
    assert "does not differ surely" in verdict(scores)["claim"]
    assert verdict({"seal": {"0": 0.5}, "long": {"0": 0.75}})["claim"].endswith("-25.00 points, one seed")
    assert "no control" in verdict({"seal": {"0": 1.0}})["claim"]


def test_paired_differences_have_the_interval_of_their_mean():
    rng = np.random.default_rng(0)
    a = rng.normal(0.3, 1, 200)
    d = paired_difference(a, np.zeros(200))
    half = 1.96 * a.std(ddof=1) / 200**0.5
    assert d.mean == pytest.approx(a.mean()) and d.high - d.mean == pytest.approx(half, rel=0.15)
    assert np.isnan(paired_difference([1.0], [0.5]).low)


def test_configurations_survive_json_and_refuse_strangers():
    for name in PRESETS:
        config = preset(name)
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ValueError, match=r"anneal\.scale"):
        with_overrides(TrainConfig(), {"anneal.scal": 1})
    with pytest.raises(ValueError, match="lr"):
        with_overrides(TrainConfig(), {"lr": "fast"})
    with pytest.raises(ValueError):
        from_dict({**to_dict(TrainConfig()), "anneal": {"colour": 1}})
    with pytest.raises(ValueError, match="warmup"):
        TrainConfig(warmup=99)
    assert preset("seal-code").lr == 0.1 and not preset("seal-code").anneal.decay_weights and preset("paper").lr == 0.01


def command(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "train_cls.cli", *map(str, arguments)], capture_output=True, text=True, timeout=300, **kwargs
    )


def test_the_command_line_trains_evaluates_and_probes(tmp_path):
    flags = ["--epochs", "2", "--generations", "2", "--per-class", "20", "--only-classes", "0-4", "--validation", "50"]
    done = command("train", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    assert "generation 2" in done.stderr
    found = json.loads(command("evaluate", tmp_path / "run", "--json").stdout)
    assert 0 <= found["test"]["accuracy"] <= 1
    probed = command("probe", tmp_path / "run", "digits", "--only-classes", "5-9", "--per-class", "20", "--epochs", "5", "--json")
    assert json.loads(probed.stdout)["test accuracy"] > 0.2, probed.stderr
    shots = command("few-shot", tmp_path / "run", "digits", "--only-classes", "5-9", "--episodes", "10", "--json")
    assert json.loads(shots.stdout)["accuracy"] > 0.2, shots.stderr
    layers = json.loads(command("depth", tmp_path / "run", "--json").stdout)
    assert layers["layers"]["fc"] >= 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "{}/x", "--method", "seel"], "Near it: seal"),
        (["train", "{}/x", "--data", "nowhere.zip"], "nowhere.zip"),
        (["train", "{}/x", "--model", "resnet19"], "resnet18"),
        (["train", "{}/x", "--lr", "-1"], "lr"),
        (["train", "{}/x", "--set", "anneal.scale"], "name=value"),
        (["train", "{}/x", "--batch", "99999"], "Lower the batch"),
        (["train", "{}/x", "--set", "anneal.before=layr3"], "Did you mean 'layer3'?"),
        (["train", "{}/x", "--set", "anneal.share=1.5"], "anneal.share must lie in [0, 1]"),
        (["train", "{}/x", "--set", "anneal.scale=-1"], "anneal.scale must lie in [0, 100]"),
        (["train", "{}/x", "--epochs", "0"], "epochs must be positive"),
        (["evaluate", "{}/none"], "config.json"),
        (["resume", "{}"], "config.json"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([a.format(tmp_path) for a in arguments])
    told = capsys.readouterr().err
    assert left.value.code == 1 and said in told and told.count("\n") == 1, told
    assert not list(tmp_path.iterdir())


def test_a_mistake_ends_the_command_with_exit_code_one(tmp_path):
    done = command("resume", tmp_path)
    assert done.returncode == 1 and "config.json" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_reader_that_stops_early_gets_no_complaint():
    """`train-cls methods | head -1`, by a reader that is gone before the first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "train_cls.cli", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 141


def test_the_method_in_the_documentation_runs():
    """The example of docs/train_cls.md as it stands there: it disturbs the early layers' gradients in its window and nothing else."""
    text = (Path(__file__).parents[2] / "docs" / "train_cls.md").read_text()
    lines = text.split("## A method of your own")[1].split("\n## ")[0].splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
    names: dict = {}
    exec(code, names)
    model, optimizer, annealer = names["model"], names["optimizer"], names["annealer"]
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def changed() -> set[str]:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        before = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        return {name for name, p in model.named_parameters() if not torch.equal(before[name], p.grad)}

    early = {name for name, _ in model.named_parameters() if name.startswith(("conv1", "bn1", "layer1", "layer2"))}
    for step, wanted in ((999, set()), (1000, early), (1249, early), (1250, set()), (2000, early)):
        annealer.step = step
        assert changed() == wanted, step


def test_two_processes_share_a_batch(tmp_path):
    """Half the images each, gradients averaged: without batch norm, the weights of one process with the whole batch."""
    flags = [
        "--epochs",
        "1",
        "--generations",
        "1",
        "--method",
        "normal",
        "--model",
        "vgg16",
        "--size",
        "32",
        "--per-class",
        "4",
        "--batch",
        "10",
    ]
    flags += ["--set", "pad=0", "--lr", "0.001"]
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\nfrom train_cls.models.classifier import Dropout\nDropout.forward = lambda self, x: x\n"
        "from train_cls.cli import main\nmain(sys.argv[1:])\n"
    )
    alone = subprocess.run([sys.executable, script, "train", tmp_path / "one", *flags], capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stderr
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu", "--main_process_port", "29577"]
    import os

    both = subprocess.run(
        [*launch, script, "train", tmp_path / "two", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )
    assert both.returncode == 0, both.stderr
    ends = [checkpoint.load(checkpoint.latest(tmp_path / n / "checkpoints")).tensors["model"] for n in ("one", "two")]
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-5)
