import json
from dataclasses import FrozenInstanceError, replace
from typing import Literal

import pytest
from pydantic import Field

from dreamsa.config import (
    CameraConfig,
    ControlConfig,
    DistillConfig,
    EditConfig,
    FieldConfig,
    HashGridConfig,
    ModelConfig,
    RenderConfig,
    RunConfig,
    ViewConfig,
    from_json,
    to_json,
)
from dreamsa.presets import preset
from dreamsa.settings import (
    described,
    names_of,
    parse_setting,
    read_overrides,
    settings,
    with_overrides,
)

WRONG = [
    ("steps", 0, "steps must be greater than or equal to 1, got 0"),
    ("steps", 1.5, "steps must be a valid integer"),
    ("steps", "many", "steps must be a valid integer"),
    ("seed", -1, "seed must be greater than or equal to 0"),
    ("turntable", 3, "turntable must be 0 or at least 8 frames, got 3"),
    ("prompt", 3, "prompt must be a valid string"),
    ("distill.guidance_scale", -3, "guidance_scale must be greater than or equal to 0, got -3"),
    ("distill.guidance_scale", float("nan"), "guidance_scale must be a finite number"),
    (
        "distill.max_timestep",
        [0.01, 0.01],
        "distill.min_timestep must be below distill.max_timestep",
    ),
    ("distill.max_timestep", [0.5], "distill.max_timestep"),
    ("distill.method", "vsd", "distill.method must be 'sds', 'rescaled', 'csd', 'nfsd', 'ism'"),
    ("distill.schedule", "hifa", "distill.max_timestep must fall for distill.schedule = hifa"),
    ("camera.opposite_pairs", True, "camera.opposite_pairs needs an even camera.batch, got 1"),
    ("field.sharpness", 0.5, "field.sharpness must be greater than or equal to 1, got 0.5"),
    ("loss.depth_variance", -1, "loss.depth_variance must be greater than or equal to 0"),
    ("camera.resolution", 4, "resolution must be greater than or equal to 8, got 4"),
    ("camera.elevation_deg", [90, -10], "camera.elevation_deg must be two ascending numbers"),
    (
        "field.backend",
        "cuda",
        "field.backend must be 'auto', 'torch', 'numba', 'triton' or 'tcnn', got 'cuda'",
    ),
    ("field.activation", "ReLU", "field.activation must be 'softplus' or 'exp'"),
    ("field.grid.finest", 4, "field.grid.finest must be at least coarsest = 16, got 4"),
    ("render.shading", "Albedo", "render.shading must be 'albedo'"),
    ("render.min_transmittance", 1, "min_transmittance must be less than 1"),
    ("render.kernels", "numba", "render.kernels must be 'auto' or 'torch'"),
    ("views.wording", "front", "views.wording must contain {prompt}"),
    (
        "model.dtype",
        "fp16",
        "model.dtype must be 'auto', 'float32', 'float16' or 'bfloat16', got 'fp16'",
    ),
    ("loss.entropy", float("inf"), "loss.entropy must be a finite number"),
    ("optimizer.lr", 0, "optimizer.lr must be greater than 0"),
    (
        "distill.guidance",
        3,
        "There is no setting 'distill.guidance'. Did you mean distill.guidance_scale",
    ),
    (
        "guidance_scale",
        3,
        "There is no setting 'guidance_scale'. Did you mean distill.guidance_scale",
    ),
    ("edit.scale", 3, "There is no setting 'edit.scale'"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_a_wrong_setting_is_one_sentence_from_overrides_and_from_json(name, value, says):
    config = preset("paper", "a rabbit")
    tree = to_json(config)
    *path, last = name.split(".")
    node = tree
    for part in path:
        node = node[part] or {}
    node[last] = value
    calls = [lambda: with_overrides(config, {name: value})]
    calls += [lambda: from_json(tree)] if "no setting" not in says else []
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert says in str(error.value)
        assert "\n" not in str(error.value)
        assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RunConfig("x", steps=0), "steps must be"),
        (lambda: RunConfig(), "The setting prompt is missing"),
        (lambda: RunConfig("x", colour=1), "There is no setting 'colour'"),
        (lambda: DistillConfig("sds", "high"), "distill.guidance_scale must be a valid number"),
        (lambda: DistillConfig(guidance=1.0), "There is no setting 'distill.guidance'"),
        (lambda: CameraConfig(batch=0), "camera.batch must be"),
        (lambda: HashGridConfig(levels=99), "field.grid.levels must be"),
        (lambda: FieldConfig(backend="cuda"), "field.backend must be"),
        (lambda: FieldConfig(blob_radius=9.0), "field.blob_radius must be at most 2 radius"),
        (lambda: RenderConfig(background="blue"), "render.background must be"),
        (lambda: ViewConfig(front_deg=90), "views.front_deg must be less than 90"),
        (lambda: ModelConfig(dtype="half"), "model.dtype must be"),
        (
            lambda: EditConfig("p", moments="Keep"),
            "edit.moments must be 'reset' or 'keep', got 'Keep'",
        ),
        (lambda: EditConfig("p", eta=1.5), "edit.eta must be less than or equal to 1, got 1.5"),
        (lambda: EditConfig("p", ascent_steps=-1), "edit.ascent_steps must be"),
        (lambda: EditConfig("p", eta=0.5, moments="keep"), "needs a plain edit"),
        (lambda: ControlConfig("melt"), "edit.control.kind must be"),
        (lambda: ControlConfig("noise", {"hair": 1.0}), "edit.control.displacement"),
        (
            lambda: ControlConfig("noise", {"grid": -1.0}),
            "must be greater than or equal to 0, got -1",
        ),
        (lambda: replace(preset("toybox", "x"), seed=-1), "seed must be"),
        (
            lambda: with_overrides(preset("toybox", "x"), {"edit": {"parent": "p", "eta": 7}}),
            "edit.eta must be",
        ),
    ],
)
def test_settings_are_validated_at_construction(make, says):
    with pytest.raises(ValueError) as error:
        make()
    assert says in str(error.value)


@pytest.mark.parametrize("method", ["csd", "nfsd"])
@pytest.mark.parametrize("changes", [{"distill.view_contrast": 25.0}, {"views.perpendicular": 2.0}])
def test_settings_that_a_method_would_ignore_are_refused(method, changes):
    config = with_overrides(RunConfig("a rabbit"), {"distill.method": method})
    with pytest.raises(ValueError, match=f"method = {method} does not use .* set both to 0"):
        with_overrides(config, changes)
    with_overrides(RunConfig("a rabbit"), changes)


def test_section_sds_of_schemas_1_and_2_is_translated():
    sds = {"guidance_scale": 30.0, "max_timestep": [0.9, 0.5], "max_grad_norm": 2.0}
    found = from_json({"prompt": "a rabbit", "sds": sds})
    expected = DistillConfig(guidance_scale=30.0, max_timestep=(0.9, 0.5), max_grad_norm=2.0)
    assert found == RunConfig("a rabbit", distill=expected)
    assert "sds" not in to_json(found)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"sds": {}, "distill": {}}, "There is no setting 'sds'"),
        ({"sds": {"guidance": 1}}, "There is no setting 'distill.guidance'"),
        ({"sds": 3}, "distill must be"),
    ],
)
def test_section_sds_is_read_in_place_of_distill_only(tree, says):
    with pytest.raises(ValueError) as error:
        from_json({"prompt": "a rabbit", **tree})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tree", [None, 3, [], "x"])
def test_a_configuration_is_an_object(tree):
    with pytest.raises(ValueError, match="must be an object"):
        from_json(tree)


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        preset("toybox", "x").steps = 3


def test_every_setting_has_a_name_that_overrides_accept():
    config = preset("sd", "a rabbit")
    tree = json.loads(json.dumps(to_json(config)))
    for name in names_of(config):
        node = tree
        for part in name.split("."):
            node = node[part]
        assert with_overrides(config, {name: node}) == config


def test_a_setting_is_read_as_json_where_it_can_be():
    assert parse_setting("distill.max_timestep=[0.9, 0.5]") == ("distill.max_timestep", [0.9, 0.5])
    assert parse_setting("device=cpu") == ("device", "cpu")
    assert parse_setting("views.wording={prompt}, {view}=x") == (
        "views.wording",
        "{prompt}, {view}=x",
    )
    with pytest.raises(ValueError, match="A setting is written name=value"):
        parse_setting("steps")


@settings("inner")
class Inner:
    rate: float = Field(default=0.1, gt=0, le=1)
    """Learning
    rate."""
    kind: Literal["a", "b"] = "a"
    """Which one."""


@settings()
class Outer:
    count: int = Field(default=2, ge=1)
    """How many."""
    inner: Inner = Field(default_factory=Inner)
    flag: bool = False
    name: str | None = None
    more: dict[str, int] = Field(default_factory=dict)


def test_settings_are_described_by_their_docstrings_and_ranges():
    assert list(described(Outer(count=3))) == [
        ("count", 3, "whole number at least 1", "How many."),
        ("inner.rate", 0.1, "number more than 0, at most 1", "Learning rate."),
        ("inner.kind", "a", "a, b", "Which one."),
        ("flag", False, "true, false", ""),
        ("name", None, "text or null", ""),
        ("more", {}, "object", ""),
    ]


FILES = {
    "f.json": '{"count": 5, "inner": {"rate": 0.5}, "more": {"a": 1}}',
    "f.toml": "count = 5\n[inner]\nrate = 0.5\n[more]\na = 1\n",
    "f.yaml": "count: 5\ninner: {rate: 0.5}\nmore: {a: 1}\n",
    "F.YML": "count: 5\ninner:\n  rate: 5e-1\nmore:\n  a: 1\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_partial_file_of_any_format_changes_what_it_names(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    found = with_overrides(Outer(flag=True), read_overrides(tmp_path / name, Outer()))
    assert found == Outer(count=5, inner=Inner(rate=0.5), flag=True, more={"a": 1})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("f.json", '{"inner": {"rat": 1}}', "no setting 'inner.rat'. Did you mean inner.rate"),
        ("f.toml", "cont = 1", "no setting 'cont'. Did you mean count?"),
        ("f.yaml", "inner: {kind: {x: 1}}", "inner.kind must be 'a' or 'b'"),
        ("f.yaml", "inner: 3", "inner must be"),
        ("f.yaml", "- count", "must hold settings by name, got list"),
        ("f.yaml", "", "must hold settings by name, got NoneType"),
        ("f.yaml", "a: [", "is not YAML"),
        ("f.toml", "count = ", "is not TOML"),
        ("f.json", "{", "is not JSON"),
        ("f.ini", "count = 1", "must end in .json, .toml, .yaml, .yml"),
        ("none.json", None, "cannot be read: No such file"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, name, text, says):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        with_overrides(Outer(), read_overrides(tmp_path / name, Outer()))
    assert says in str(error.value) and "\n" not in str(error.value)
