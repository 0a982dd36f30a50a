"""What the page's server answers to its polls."""

import pytest
from tiny import tiny_config, tiny_score

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'dreamsa[web]'")

import gradio as gr

from dreamsa import api, job
from dreamsa.web.controller import Controller
from dreamsa.web.jobs import JobManager
from dreamsa.web.panel import Panel


@pytest.fixture
def panel(tmp_path, monkeypatch):
    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    folder = tmp_path / "runs"
    controller = Controller(JobManager(folder), folder / "exports")
    with gr.Blocks():
        yield Panel(controller, gr.HTML(), gr.HTML(), gr.Dropdown([], allow_custom_value=True))
    controller.manager.close()


def finished_run(panel, **changes) -> str:
    config = tiny_config(steps=1, turntable=0, **changes)
    panel.controller.forget_listing()
    return api.generate(config=config, runs=panel.controller.manager.folder).wait().id


def sent(update) -> dict:
    return update._constructor_args[0]


def test_a_poll_never_undoes_a_choice_that_was_made_while_it_was_on_its_way(panel):
    old = finished_run(panel)
    first = panel.update(old, None, None, {})
    assert sent(first[panel.parent])["value"] == old
    new = finished_run(panel, seed=3)
    # sent before the user chose `new`, answered after it
    poll = panel.update(old, "", old, first[panel.shown])
    assert new in [run_id for _, run_id in sent(poll[panel.parent])["choices"]]
    assert "value" not in sent(poll[panel.parent])
    assert "value" not in sent(poll[panel.compared])


def test_a_choice_that_has_vanished_is_replaced(panel):
    run = finished_run(panel)
    update = panel.update(run, "gone", "gone", {"run": run})
    assert sent(update[panel.parent])["value"] == run
    assert sent(update[panel.compared])["value"] == ""
