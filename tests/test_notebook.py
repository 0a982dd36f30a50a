"""The notebook of the documentation in its short form, and runs as notebooks show them."""

import ast
import json
from pathlib import Path

from tiny import tiny_config, tiny_score

from dreamsa import api, job

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "first-hour.ipynb"


def execute(source: str, scope: dict) -> object:
    """Run a cell; returns the value of its last expression."""
    cell = ast.parse(source)
    last = cell.body.pop() if isinstance(cell.body[-1], ast.Expr) else None
    exec(compile(cell, str(NOTEBOOK), "exec"), scope)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), scope) if last else None


def test_every_cell_of_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DREAMSA_RUNS", str(tmp_path))
    cells = [
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    scope: dict = {}
    values = [execute(cell.replace("SHORT = False", "SHORT = True"), scope) for cell in cells]
    shown = [value._repr_html_() for value in values if isinstance(value, api.Run)]
    assert len(shown) == 2
    assert all("a rabbit" in html or "a purple rabbit" in html for html in shown)
    printed = capsys.readouterr().out
    assert "turntable.webp" in printed
    assert "mesh.stl" in printed
    assert "Did you mean 'a rabbit'?" in printed


def test_a_notebook_shows_the_mesh_or_else_the_turntable_and_nothing_from_elsewhere(
    tmp_path, monkeypatch
):
    import trimesh

    monkeypatch.setattr(job.StableDiffusion, "load", lambda config, device: tiny_score())
    config = tiny_config(steps=1, turntable=8, prompt="a rabbit")
    run = api.generate(config=config, runs=tmp_path).wait()
    assert '<img src="data:image/webp;base64,' in run._repr_html_()
    trimesh.creation.box().export(run.path / "mesh.glb")
    html = run._repr_html_()
    assert "<iframe srcdoc=" in html
    assert "src=&quot;http" not in html
