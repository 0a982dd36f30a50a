import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config, tiny_edit, tiny_move, tiny_score

from dreamsa import train
from dreamsa.choices import MethodName, Schedule
from dreamsa.config import DistillConfig, EditConfig, LossConfig, ViewConfig
from dreamsa.distill.methods import METHODS
from dreamsa.distill.noise import consistent_noise, refreshed
from dreamsa.editing import learning_rate_factor
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.guidance.score_model import GuidanceFailed
from dreamsa.rendering.volume import Image
from dreamsa.train import new_training, sds_step


def steps(training, n, score=None):
    score = score or tiny_score()
    prompt = ViewPrompt(score, training.config.prompt)
    return [sds_step(training, score, prompt) for _ in range(n)]


def tensors(training):
    out = dict(training.scene.tensors())
    for i, p in enumerate(training.scene.parameters()):
        for name, value in training.optimizer.state.get(p, {}).items():
            out[f"{i}.{name}"] = torch.as_tensor(value)
    return out


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]


def test_descent_draws_what_the_score_model_wants():
    """A few dozen steps turn the middle of every view red."""
    training = new_training(tiny_config(steps=150))
    steps(training, 150)
    from dreamsa.rendering.cameras import orbit

    rgb = training.scene.view(orbit([0.0, 90.0, 180.0, 270.0]), 16, background=0.5).rgb
    middle, corner = rgb[:, :, 6:10, 6:10].mean((2, 3)), rgb[:, :, :2, :2].mean((2, 3))
    assert (middle[:, 0] > middle[:, 1] + 0.3).all()
    assert (corner - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("make", [tiny_config, tiny_edit, tiny_move])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 9, 11])
def test_resume_is_bit_identical(tmp_path, make, stop):
    """n steps unbroken == k steps, save, load into fresh objects, n - k steps; in mid-ascent and at
    its edges too."""
    whole = new_training(make())
    steps(whole, 12)
    first = new_training(make())
    steps(first, stop)
    second = new_training(make())
    second.load(first.save(tmp_path))
    steps(second, 12 - stop)
    assert_equal(tensors(whole), tensors(second))


METHOD_CALLS = {
    "sds": 2,
    "rescaled": 2,
    "csd": 2,
    "nfsd": 2,
    "ism": 2 + 1 + 2,
    "sdi": 2 * 2 + 2,
    "consistent": 2,
    "bridge": 2,
}
"""Noise predictions of a step, for two steps of inversion."""


def tiny_method(method="sds", schedule="uniform", **changes):
    falls = {"max_timestep": (0.98, 0.1)} if schedule != "uniform" else {}
    distillation = DistillConfig(method, 5.0, schedule, inversion_steps=2, **falls, **changes)
    return tiny_config(steps=8, distill=distillation, negative_prompt="blurry")


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        *((method, "uniform") for method in get_args(MethodName) if method != "dds"),
        *((method, "hifa") for method in ("ism", "sdi", "consistent")),
        *(("sds", schedule) for schedule in get_args(Schedule)[1:]),
    ],
)
def test_every_method_and_schedule_trains_and_resumes_exactly(tmp_path, method, schedule):
    """Past the point where `bridge` begins, too."""
    config = tiny_method(method, schedule)
    whole, first, second = (new_training(config) for _ in range(3))
    results = steps(whole, 8)
    assert all(r.unet_calls == METHOD_CALLS[method] and not r.skipped for r in results)
    assert all(math.isfinite(r.grad_norm) and r.grad_norm > 0 for r in results[:6])
    steps(first, 4)
    second.load(first.save(tmp_path))
    steps(second, 4)
    assert_equal(tensors(whole), tensors(second))
    assert all(bool(value.isfinite().all()) for value in tensors(whole).values())


@pytest.mark.parametrize("method", ["csd", "nfsd"])
def test_no_text_is_asked_apart_from_a_negative_prompt(method):
    training, score = new_training(tiny_method(method)), tiny_score()
    prompt = ViewPrompt(score, "a rabbit", "blurry")
    assert sds_step(training, score, prompt).unet_calls == 3


def test_view_contrast_ends_and_perp_neg_lasts():
    config = tiny_method(view_contrast=2.0, view_contrast_until=0.5)
    calls = [r.unet_calls for r in steps(new_training(config), 8)]
    assert calls == [3] * 4 + [2] * 4
    config = replace(config, views=ViewConfig(perpendicular=2.0))
    training, score = new_training(config), tiny_score()
    prompt = ViewPrompt(score, "a rabbit", config=config.views)
    assert [sds_step(training, score, prompt).unet_calls for _ in range(8)] == [5] * 4 + [4] * 4


def test_consistent_takes_the_noise_of_its_cameras(monkeypatch):
    base = tiny_method("consistent", refresh=(0.3, 0.1))
    field = replace(base.field, blob_density=100.0, blob_radius=0.6)
    config = replace(base, field=field, camera=replace(base.camera, batch=2))
    seen = []
    monkeypatch.setitem(METHODS, "consistent", lambda at, _: seen.append(at) or at.noise)
    steps(new_training(config), 3)
    for step, at in enumerate(seen):
        cameras, age = train.draw_views(config, step, 1000).cameras, refreshed((0.3, 0.1), step, 8)
        angles = cameras.azimuth_deg, cameras.elevation_deg
        noise = consistent_noise(config.seed, age, *angles, torch.ones(2, 16, 16), 3)
        middle = (..., slice(6, 10), slice(6, 10))  # that the object covers
        assert torch.equal(at.noise[middle], noise[middle])
        assert not torch.isclose(at.noise[..., 0, 0], noise[..., 0, 0]).any()


@pytest.mark.parametrize(("start", "final"), [(1, 20), (5, 20), (50, 20), (7, 1), (1, 1)])
def test_sharpness_changes_geometrically_between_20_and_80_percent(start, final):
    """To the configured value exactly, from any other."""
    config = tiny_config(steps=100, field=replace(tiny_config().field, sharpness=final))
    path = [torch.tensor(float(start))]
    for step in range(100):
        path.append(torch.tensor(train.sharpened(config, step, path[-1].item())))
    found = torch.stack(path[1:])
    assert (found[:20] == start).all() and (found[79:] == final).all()
    growth = found[20:80].log().diff()
    torch.testing.assert_close(growth, growth[:1].expand(59), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("eta", "expected"), [(0.0, 16.0), (0.25, 8.0), (0.5, 4.0), (1.0, 1.0)])
def test_an_edit_moves_the_sharpness_too_so_that_a_fresh_one_starts_soft(eta, expected):
    field = replace(tiny_config().field, sharpness=16.0)
    config = tiny_config(field=field, edit=EditConfig("parent", eta=eta))
    assert train.sharpened(config, 0, 16.0) == pytest.approx(expected)
    assert train.sharpened(config, 1, 16.0) == 16.0
    training = new_training(config)
    training.scene.field.sharpness.fill_(16.0)
    steps(training, 1)
    assert training.scene.field.sharpness.item() == pytest.approx(expected)
    steps(training, 11)
    assert training.scene.field.sharpness.item() == 16.0


@pytest.mark.parametrize("stop", [1, 4, 9, 11])
def test_a_run_that_sharpens_resumes_exactly(tmp_path, stop):
    config = tiny_move(field=replace(tiny_config().field, sharpness=30.0))
    whole, first, second = (new_training(config) for _ in range(3))
    steps(whole, 12)
    steps(first, stop)
    second.load(first.save(tmp_path))
    steps(second, 12 - stop)
    assert_equal(tensors(whole), tensors(second))
    assert second.scene.field.sharpness.item() == 30.0


@pytest.mark.parametrize("bad", [{0}, {5, 6}])
def test_a_skipped_step_sharpens_once(tmp_path, bad):
    """Even if the run is saved and resumed between its two attempts."""
    config = tiny_move(field=replace(tiny_config().field, sharpness=30.0))
    whole, first, second = (new_training(config) for _ in range(3))
    for training in (whole, first):
        training.scene.field.sharpness.fill_(10.0)
    steps(whole, 7)
    steps(first, min(bad) + 1, Broken(bad))
    second.load(first.save(tmp_path))
    steps(second, 6 - min(bad) + len(bad), Broken({i for i in range(len(bad) - 1)}))
    assert second.step == 7
    assert torch.equal(whole.scene.field.sharpness, second.scene.field.sharpness)


def test_the_same_seed_is_the_same_scene_and_another_is_not():
    a, b, c = (new_training(tiny_config(seed=s)) for s in (1, 1, 2))
    for training in (a, b, c):
        steps(training, 3)
    assert_equal(tensors(a), tensors(b))
    assert not torch.equal(a.scene.field.table, c.scene.field.table)


def test_two_views_at_once_equal_the_sum_of_two_processes(monkeypatch):
    """The share of each process, added up, is the update of one process with both views."""
    config = tiny_config(camera=replace(tiny_config().camera, batch=2))
    together = new_training(config)
    steps(together, 1)
    gathered = []
    for rank in range(2):
        training = new_training(config)
        processes = train.Processes(rank, 2)
        monkeypatch.setattr(
            train.Processes,
            "sum_",
            lambda self, gradients: gathered.append([g.clone() for g in gradients]),
        )
        sds_step(training, tiny_score(), ViewPrompt(tiny_score(), "x"), processes)
    for p, a, b in zip(together.scene.parameters(), *gathered, strict=True):
        torch.testing.assert_close(p.grad, a + b, atol=1e-6, rtol=1e-4)


def test_views_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="camera.batch = 3 cannot be split over 2 processes"):
        train.Processes(0, 2).share(3, "camera.batch")


class Broken:
    """Returns NaN at the calls `bad`."""

    def __init__(self, bad, factor=1.0):
        self.inner, self.bad, self.calls, self.factor = tiny_score(), bad, -1, factor
        self.alpha_bar, self.embed, self.encode = (
            self.inner.alpha_bar,
            self.inner.embed,
            self.inner.encode,
        )

    def predict_noise(self, noisy, *args):
        self.calls += 1
        factor = math.nan if self.calls in self.bad else self.factor
        return tuple(factor * eps for eps in self.inner.predict_noise(noisy, *args))


@pytest.mark.parametrize("bad", [{0}, {1}, {4, 5, 6}])
@pytest.mark.parametrize("make", [tiny_config, tiny_edit, tiny_move])
def test_a_skipped_step_is_repeated_with_other_random_numbers_and_counted(make, bad):
    training = new_training(make())
    results = steps(training, 8 + len(bad), Broken(bad))
    assert [r.step for r in results if not r.skipped] == list(range(8))
    assert [r.step for r in results if r.skipped] == [min(bad)] * len(bad)
    assert (training.step, training.annealer.step, training.skipped) == (8, 8, len(bad))
    assert all(bool(p.isfinite().all()) for p in training.scene.parameters())
    first, again = (train.draw_views(training.config, 3, 1000, retry) for retry in (0, 1))
    assert not torch.equal(first.jitter, again.jitter)


def test_a_run_that_resumes_after_a_skipped_step_repeats_no_event(tmp_path):
    """Saved between the skipped first attempt, which has moved the scene, and the second one."""
    whole, first = new_training(tiny_move()), new_training(tiny_move())
    steps(whole, 5, Broken({0}))
    steps(first, 1, Broken({0}))
    second = new_training(tiny_move())
    second.load(first.save(tmp_path))
    steps(second, 4)
    assert_equal(tensors(whole), tensors(second))


@pytest.mark.parametrize("n", [2, 40])
def test_guidance_that_is_never_finite_ends_the_run(n):
    training = new_training(tiny_config(steps=n))
    with pytest.raises(GuidanceFailed, match="skipped 10 times in a row"):
        list(train.train(training, Broken(set(range(1000))), ViewPrompt(tiny_score(), "x")))
    assert training.step == 0


class Interrupting(Broken):
    """Raises in the middle of a step: where a Ctrl-C would land."""

    def predict_noise(self, *args):
        if self.calls + 1 in self.bad:
            raise KeyboardInterrupt
        return super().predict_noise(*args)


def test_a_step_can_be_saved_until_its_update_begins_and_not_inside_it(tmp_path):
    whole, first = new_training(tiny_move()), new_training(tiny_move())
    steps(whole, 5)
    with pytest.raises(KeyboardInterrupt):
        steps(first, 5, Interrupting({2}))
    second = new_training(tiny_move())
    second.load(first.save(tmp_path))
    steps(second, 5 - second.step)
    assert_equal(tensors(whole), tensors(second))

    def interrupt(*_):
        raise KeyboardInterrupt

    first.optimizer.register_step_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        steps(first, 1)
    with pytest.raises(AssertionError, match="half-done"):
        first.save(tmp_path)


def test_a_ctrl_c_in_a_step_takes_effect_after_it():
    class Signalling(Broken):
        def predict_noise(self, *args):
            if self.calls == 1:
                signal.raise_signal(signal.SIGINT)
            return super().predict_noise(*args)

    training, before = new_training(tiny_config()), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(train.train(training, Signalling(set()), ViewPrompt(tiny_score(), "x")))
    assert (training.step, training.in_step) == (3, False)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_skipped_step_changes_nothing():
    training = new_training(tiny_config())
    before = {k: v.clone() for k, v in training.scene.state_dict().items()}
    steps(training, 1, Broken({0}))
    assert all(torch.equal(before[k], v) for k, v in training.scene.state_dict().items())


def test_phases_are_told_and_the_learning_rate_is_scaled():
    results = steps(new_training(tiny_edit()), 8)
    assert [r.phase for r in results] == ["ascend"] * 5 + ["descend"] * 3


def test_ascent_moves_uphill_and_by_no_more_than_its_budget():
    """Adam moves a parameter by about lr a step: an ascent's displacement is at most S * lr *
    steps."""
    training = new_training(tiny_edit(optimizer=replace(tiny_config().optimizer, warmup=0)))
    before = training.scene.field.table.detach().clone()
    steps(training, 5)
    moved = (training.scene.field.table - before).abs().max().item()
    assert 0 < moved <= 0.1 * 1e-2 * 5 * 1.5


def test_regularizers_descend_while_score_distillation_ascends():
    """Ascending the opacity loss too would blow density up and look like an escape."""

    class Silent(Broken):
        def predict_noise(self, noisy, timesteps, texts):
            """Exactly the noise that was added: no gradient from the score."""
            rng = train.generator_for(self.seed, self.step, "noise")
            self.step += 1
            return (torch.randn(noisy.shape, generator=rng),) * len(texts)

    opacities = []
    for weight in (0.0, 5.0):
        config = tiny_edit(
            loss=LossConfig(opacity=weight),
            edit=replace(tiny_edit().edit, ascent_steps=11, scale=1.0),
        )
        training, score = new_training(config), Silent(set())
        score.seed, score.step = config.seed, 0
        steps(training, 11, score)
        opacities.append(training.scene.density(torch.zeros(1, 3)).item())
    assert opacities[1] < opacities[0]


def moved(training, start):
    return train.displacement(training.optimizer, start)


def begun(training):
    """The parameters before and after what happens ahead of the first step."""
    start = {p: p.detach().clone() for p in training.scene.parameters()}
    training.annealer.begin()
    return start


def test_an_edit_moves_by_eta_towards_another_random_scene():
    other = new_training(tiny_config(seed=tiny_config().seed + 1)).scene.field.table
    for eta in (0.0, 0.3, 1.0):
        training = new_training(tiny_config(edit=EditConfig("parent", eta=eta)))
        start = begun(training)
        table = training.scene.field.table
        torch.testing.assert_close(table - start[table], eta * (other - start[table]))


def test_moving_and_ascending_compose():
    training = new_training(tiny_config(edit=EditConfig("parent", eta=0.5, ascent_steps=3)))
    moved_by = moved(training, begun(training))
    assert moved_by["grid"] > 0
    assert [r.phase for r in steps(training, 5)] == ["ascend"] * 3 + ["descend"] * 2


def test_only_the_distillation_gradient_changes_its_sign():
    """Whatever a rule calls its steps: the sign is a function of the configuration and the step."""
    image = Image(
        torch.zeros(1, 3, 2, 2),
        torch.full((1, 2, 2), 0.3),
        torch.zeros(1, 2, 2),
        torch.zeros(()),
        torch.zeros(()),
        0,
    )
    sparse = 2 * (0.3**2 + 0.01) ** 0.5
    config = tiny_edit(loss=LossConfig(opacity=2.0))
    assert [train.distillation_sign(config, step) for step in (0, 4, 5, 11)] == [-1, -1, 1, 1]
    for distillation in (5.0, -5.0):
        loss = train.objective(config, 0, torch.tensor(distillation), image)
        assert float(loss) == pytest.approx(distillation + sparse)


def test_a_rule_of_another_name_leaves_the_regularizers_descending():
    ends = []
    for phase in ("ascend", "melt"):
        config = tiny_edit(loss=LossConfig(opacity=5.0))
        (rule,) = train.rules_for(config)
        training = new_training(config, method=train.Method([replace(rule, phase=phase)]))
        assert steps(training, 3)[0].phase == phase
        ends.append(tensors(training))
    assert_equal(*ends)


def test_the_occupancy_grid_is_rebuilt_at_every_phase_switch(monkeypatch):
    """Cells that were empty for the old prompt must be able to fill for the new one."""
    full = []
    monkeypatch.setattr(
        train.Scene, "refresh", lambda self, seed, step, full: full_steps.append((step, full))
    )
    full_steps = full
    steps(new_training(tiny_edit()), 8)
    assert [step for step, whole in full if whole] == [0, 5]
    assert [step for step, whole in full if not whole] == [4]


def test_every_loss_term_reaches_the_gradient():
    """dreamfusionacc computes its entropy loss and never adds it."""
    grads = {}
    terms = ("opacity", "entropy", "orientation", "depth_variance")
    for name in ("none", *terms):
        loss = LossConfig() if name == "none" else LossConfig(**{name: 10.0})
        training = new_training(tiny_config(loss=loss))
        training.annealer.step = 6
        training.scene.refresh(0, 0, full=True)
        steps(training, 1)
        grads[name] = training.scene.field.out.weight.grad.clone()
    for name in terms:
        assert not torch.allclose(grads["none"], grads[name]), name


def test_logged_numbers_are_signed():
    down, up = steps(new_training(tiny_config()), 1)[0], steps(new_training(tiny_edit()), 1)[0]
    assert down.grad_norm == pytest.approx(up.grad_norm, rel=1e-5)
    assert down.phase != up.phase


def test_warm_up_starts_again_at_each_reset():
    config = tiny_edit()
    config = replace(config, optimizer=replace(config.optimizer, decay=1.0))
    factor = learning_rate_factor(config)
    assert [factor(s) for s in (0, 4, 5, 11)] == pytest.approx([0.02, 0.1, 0.02, 0.14])
    kept = replace(config, edit=EditConfig("parent", moments="keep"))
    assert learning_rate_factor(kept)(0) == 1.0


def test_the_rate_falls_by_a_cosine_to_its_decay():
    config = replace(tiny_config(), steps=100)
    factor = learning_rate_factor(
        replace(config, optimizer=replace(config.optimizer, warmup=0, decay=0.1))
    )
    assert [factor(s) for s in (0, 50, 100)] == pytest.approx([1.0, 0.55, 0.1])


def test_rates_outside_a_step_are_the_configuration_s():
    """Warm-up, cosine and ascent hold inside optimizer.step() only."""
    training = new_training(tiny_edit())
    for _ in range(7):
        steps(training, 1)
        assert [g["lr"] for g in training.optimizer.param_groups] == [1e-2, 1e-2]
    assert training.annealer.rates["grid"] == pytest.approx(
        1e-2 * learning_rate_factor(training.config)(6)
    )


PROCESSES = """
import sys, torch
sys.path.insert(0, {tests!r})
from dataclasses import replace
from tiny import tiny_config, tiny_score
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.device import Processes
from dreamsa.train import new_training, sds_step
config = tiny_config(camera=replace(tiny_config().camera, batch=2))
training, processes = new_training(config), Processes.current()
for _ in range(3):
    sds_step(training, tiny_score(), ViewPrompt(tiny_score(), "x"), processes)
from safetensors.torch import save_file
name = f"{{processes.count}}-{{processes.rank}}.safetensors"
save_file(dict(training.scene.state_dict()), sys.argv[1] + "/" + name)
"""


def test_accelerate_launch_on_two_processes_is_one_process_with_both_views(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(PROCESSES.format(tests=os.path.dirname(__file__)))
    options = (
        "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
    launch += ["--main_process_port", "29631"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    for command in ([sys.executable], launch):
        done = subprocess.run(
            [*command, str(script), str(tmp_path)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, *two = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    for name in one:
        assert torch.equal(two[0][name], two[1][name])
        torch.testing.assert_close(one[name], two[0][name], atol=2e-4, rtol=1e-3)
