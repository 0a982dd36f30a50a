import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny import tiny_auto, tiny_config, tiny_edit, tiny_repair, tiny_score

from dreamsa import auto, train
from dreamsa.config import EditConfig, LossConfig
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.render.volume import View
from dreamsa.train import new_training, rate_factor, sds_step


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
    from dreamsa.render.cameras import orbit

    rgb = training.scene.look(orbit([0.0, 90.0, 180.0, 270.0]), 16, background=0.5).rgb
    middle, corner = rgb[:, :, 6:10, 6:10].mean((2, 3)), rgb[:, :, :2, :2].mean((2, 3))
    assert (middle[:, 0] > middle[:, 1] + 0.3).all()
    assert (corner - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("make", [tiny_config, tiny_edit, tiny_auto, tiny_repair])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 9, 11])
def test_resume_is_bit_identical(tmp_path, make, stop, monkeypatch):
    """n steps unbroken == k steps, save, load into fresh objects, n - k steps; in mid-ascent and at its edges too, and across auto's way back."""
    monkeypatch.setattr(auto, "preference", lambda *_: -0.02)  # as the parent: not on its way
    whole = new_training(make())
    steps(whole, 12)
    first = new_training(make())
    steps(first, stop)
    first.save(tmp_path / "00000001")
    second = new_training(make())
    second.load(tmp_path / "00000001")
    steps(second, 12 - stop)
    assert_equal(tensors(whole), tensors(second))


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
        monkeypatch.setattr(train.Processes, "sum_", lambda self, gradients: gathered.append([g.clone() for g in gradients]))
        sds_step(training, tiny_score(), ViewPrompt(tiny_score(), "x"), processes)
    for p, a, b in zip(together.scene.parameters(), *gathered, strict=True):
        torch.testing.assert_close(p.grad, a + b, atol=1e-6, rtol=1e-4)


def test_views_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="camera.batch = 3 cannot be split over 2 processes"):
        train.Processes(0, 2).share(3, "camera.batch")


class Broken:
    """Returns NaN at the steps it is told to."""

    def __init__(self, bad, factor=1.0):
        self.inner, self.bad, self.calls, self.factor = tiny_score(), bad, -1, factor
        self.alpha_bar, self.embed, self.encode = self.inner.alpha_bar, self.inner.embed, self.inner.encode

    def predict_noise(self, noisy, *args):
        self.calls += 1
        out = self.inner.predict_noise(noisy, *args)
        return out * (math.nan if self.calls in self.bad else self.factor)


@pytest.mark.parametrize("bad", [{0}, {1}, {4, 5, 6}])
def test_a_step_with_nan_guidance_is_skipped_and_counted(bad):
    training = new_training(tiny_config())
    results = steps(training, 8, Broken(bad))
    assert [r.step for r in results if r.skipped] == sorted(bad)
    assert training.skipped == len(bad)
    assert all(bool(p.isfinite().all()) for p in training.scene.parameters())


def test_a_skipped_step_changes_nothing():
    training = new_training(tiny_config())
    before = {k: v.clone() for k, v in training.scene.state_dict().items()}
    steps(training, 1, Broken({0}))
    assert all(torch.equal(before[k], v) for k, v in training.scene.state_dict().items())


def test_phases_are_told_and_the_learning_rate_is_scaled():
    results = steps(new_training(tiny_edit()), 8)
    assert [r.phase for r in results] == ["ascend"] * 5 + ["descend"] * 3


def test_ascent_moves_uphill_and_by_no_more_than_its_budget():
    """Adam moves a parameter by about lr a step: an ascent's displacement is at most S * lr * steps."""
    training = new_training(tiny_edit(optimizer=replace(tiny_config().optimizer, warmup=0)))
    before = training.scene.field.table.detach().clone()
    steps(training, 5)
    moved = (training.scene.field.table - before).abs().max().item()
    assert 0 < moved <= 0.1 * 1e-2 * 5 * 1.5


def test_regularizers_descend_while_score_distillation_ascends():
    """Ascending the opacity loss too would blow density up and look like an escape."""

    class Silent(Broken):
        def predict_noise(self, noisy, timesteps, *args):  # exactly the noise that was added: no gradient from the score
            rng = train.generator_for(self.seed, self.step, "noise")
            self.step += 1
            return torch.randn(noisy.shape, generator=rng)

    opacities = []
    for weight in (0.0, 5.0):
        config = tiny_edit(loss=LossConfig(opacity=weight), edit=replace(tiny_edit().edit, ascent_steps=11, scale=1.0))
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


@pytest.mark.parametrize("escape", ["noise", "interpolate"])
def test_controls_move_each_group_by_the_norm_they_are_given(escape):
    """Noise and interpolation can be matched to what an ascent has moved; a group that is not named stays."""
    norms = {"grid": 0.5, "mlp": 0.2}
    for given in (norms, {"grid": 0.5}):
        training = new_training(tiny_edit(edit=EditConfig("parent", escape, displacement=given)))
        assert moved(training, begun(training)) == pytest.approx({"grid": 0.5, "mlp": given.get("mlp", 0.0)}, rel=1e-5)


def test_interpolation_moves_on_the_straight_line_to_another_random_scene():
    training = new_training(tiny_edit(edit=EditConfig("parent", "interpolate", displacement={"grid": 1e-4})))
    start = begun(training)
    other = new_training(tiny_config(seed=training.config.seed + 1)).scene.field.table
    table = training.scene.field.table
    there, step = (other - start[table]).flatten(), (table - start[table]).flatten()
    assert torch.nn.functional.cosine_similarity(there, step, dim=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("escape", "norms", "says"), [("anneal", {"grid": 1.0}, "is for noise and interpolate"), ("noise", {"hair": 1.0}, "grid, mlp, background"),
                                  ("noise", {"grid": -1.0}, "at least 0")]
)  # fmt: skip
def test_displacements_that_cannot_be_are_refused(escape, norms, says):
    with pytest.raises(ValueError, match=says):
        EditConfig("parent", escape, displacement=norms)


def test_what_ascends_and_what_descends_in_each_phase():
    """The annealer negates the whole objective in both ascents."""
    view = View(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 0.3), torch.zeros(1, 2, 2), torch.zeros(()), 0)
    loss, score = LossConfig(opacity=2.0), torch.tensor(5.0)
    sparse = (0.3**2 + 0.01) ** 0.5
    values = {phase: float(train.objective(phase, score, view, loss, 0.0)) for phase in ("descend", "ascend", "ascend regularizers")}
    assert values == pytest.approx({"descend": 5 + 2 * sparse, "ascend": 5 - 2 * sparse, "ascend regularizers": sparse})


def test_the_control_of_the_regularizers_knows_nothing_of_the_prompt_and_grows_opaque():
    config = tiny_edit(edit=EditConfig("parent", "regularizers", ascent_steps=5, scale=1.0))
    one, other, before = (new_training(config) for _ in range(3))
    results = steps(one, 5)
    steps(other, 5, Broken({99}, factor=-3.0))
    assert [r.phase for r in results] == ["ascend regularizers"] * 5
    assert_equal(tensors(one), tensors(other))
    point = torch.full((1, 3), 0.3)
    assert one.scene.density(point).item() > before.scene.density(point).item()
    steps(one, 1)
    assert one.annealer.phase == "descend"


def test_occupancy_is_looked_at_in_full_at_every_phase_switch(monkeypatch):
    """Cells that were empty for the old prompt must be able to fill for the new one."""
    full = []
    monkeypatch.setattr(train.Scene, "refresh", lambda self, seed, step, full: full_steps.append((step, full)))
    full_steps = full
    steps(new_training(tiny_edit()), 8)
    assert [step for step, whole in full if whole] == [0, 5]
    assert [step for step, whole in full if not whole] == [4]


def test_every_loss_term_reaches_the_gradient():
    """dreamfusionacc computes its entropy loss and never adds it."""
    grads = {}
    for name in ("none", "opacity", "entropy", "orientation"):
        loss = LossConfig() if name == "none" else LossConfig(**{name: 10.0})
        training = new_training(tiny_config(loss=loss))
        training.step = 6
        training.scene.refresh(0, 0, full=True)
        steps(training, 1)
        grads[name] = training.scene.field.out.weight.grad.clone()
    for name in ("opacity", "entropy", "orientation"):
        assert not torch.allclose(grads["none"], grads[name]), name


def test_logged_numbers_are_signed():
    down, up = steps(new_training(tiny_config()), 1)[0], steps(new_training(tiny_edit()), 1)[0]
    assert down.grad_norm == pytest.approx(up.grad_norm, rel=1e-5)
    assert down.phase != up.phase


def test_warm_up_starts_again_at_each_reset():
    config = tiny_edit()
    config = replace(config, optimizer=replace(config.optimizer, decay=1.0))
    factors = [rate_factor(config, s) for s in (0, 4, 5, 11)]
    assert factors == pytest.approx([0.02, 0.1, 0.02, 0.14])
    assert rate_factor(replace(config, edit=replace(config.edit, escape="plain", moments="keep")), 0) == 1.0


def test_the_rate_falls_by_a_cosine_where_it_is_asked_to():
    config = replace(tiny_config(), steps=100)
    config = replace(config, optimizer=replace(config.optimizer, warmup=0, decay=0.1))
    assert [rate_factor(config, s) for s in (0, 50, 100)] == pytest.approx([1.0, 0.55, 0.1])


PROCESSES = """
import sys, torch
sys.path.insert(0, {tests!r})
from dataclasses import replace
from tiny import tiny_config, tiny_score
from dreamsa.guidance.prompts import ViewPrompt
from dreamsa.train import Processes, new_training, sds_step
config = tiny_config(camera=replace(tiny_config().camera, batch=2))
training, processes = new_training(config), Processes.current()
for _ in range(3):
    sds_step(training, tiny_score(), ViewPrompt(tiny_score(), "x"), processes)
from safetensors.torch import save_file
save_file(dict(training.scene.state_dict()), sys.argv[1] + f"/{{processes.count}}-{{processes.rank}}.safetensors")
"""


def test_accelerate_launch_on_two_processes_is_one_process_with_both_views(tmp_path):
    from safetensors.torch import load_file

    script = tmp_path / "work.py"
    script.write_text(PROCESSES.format(tests=os.path.dirname(__file__)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29631"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    for command in ([sys.executable], launch):
        done = subprocess.run([*command, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, *two = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    for name in one:
        assert torch.equal(two[0][name], two[1][name])
        torch.testing.assert_close(one[name], two[0][name], atol=2e-4, rtol=1e-3)
