"""The forms that create and edit runs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import gradio as gr

from dreamsa.choices import (
    BOLDNESS,
    DEFAULT_ESCAPE,
    ESCAPES,
    LENGTHS,
    PRESETS,
    EscapeName,
    LengthName,
    Moments,
)
from dreamsa.config import TOYBOX, EditConfig, ModelConfig, RunConfig
from dreamsa.device import resolve_device
from dreamsa.guidance.vocabulary import UnknownWords, vocabulary
from dreamsa.presets import edit_length, preset
from dreamsa.runs import RunError
from dreamsa.settings import with_overrides
from dreamsa.web import markup, pace
from dreamsa.web.controller import ERRORS, Controller, make_config
from dreamsa.web.jobs import sentence
from dreamsa.web.panel import EXCLUSIVE, QUIET, UNCHECKED, Panel, scroll_to, turntable_of

PROMPT: Any = {"max_lines": 3, "max_length": 1000}
COUNT: Any = {"precision": 0, "minimum": 0, "min_width": 90}
"""Number fields always have a value: gradio turns an empty one into 0 when it becomes visible."""


class CreateForm:
    """The form that creates a run; `values` are the arguments of `make_config`."""

    def __init__(self, models: Sequence[str]) -> None:
        default = preset(TOYBOX, "")
        self.prompt = gr.Textbox(
            label="Prompt", placeholder="a rabbit", autofocus=True, elem_id="prompt", **PROMPT
        )
        if words := vocabulary(ModelConfig()):
            known = f"{', '.join(words['objects'])}; in {', '.join(words['colours'])}."
            gr.HTML(
                "<details class='hint'><summary>Vocabulary of the embedded model</summary>"
                f"<p>{markup.text(known)} Other prompts need another model.</p></details>"
            )
        self.model = gr.Dropdown(
            list(models),
            value=TOYBOX,
            label="Model",
            info="toybox (embedded); sd15 and sd21, once downloaded",
        )
        self.preset = gr.Dropdown(
            [(name.capitalize() if name in LENGTHS else name, name) for name in PRESETS],
            value="standard",
            label="Preset",
            elem_id="preset",
            info="Draft, Standard, Fine: a third, all or twice the usual steps of the model",
        )
        with gr.Row(elem_classes="pair"):
            self.steps = gr.Number(default.steps, label="Steps", elem_id="steps", **COUNT)
            self.seed = gr.Number(default.seed, label="Seed", **COUNT)
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            negative = gr.Textbox(label="Negative prompt", **PROMPT)
            self.guidance = gr.Number(
                default.distill.guidance_scale, label="Guidance scale", minimum=0
            )
            settings = gr.Textbox(
                label="Other settings",
                info="One name=value per line",
                placeholder="optimizer.lr=0.01",
                lines=2,
                max_length=5000,
            )
        with gr.Row(elem_classes="actions"):
            self.start = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
            self.probe = gr.Button("Measure speed", elem_id="probe", min_width=80)
        self.duration = gr.HTML(elem_id="estimate")
        self.note = gr.HTML(elem_id="create-note")
        self.anyway = gr.Button("Make it anyway", elem_id="anyway", visible=False)
        self.values = [self.prompt, self.preset, self.model, self.steps, self.seed]
        self.values += [negative, self.guidance, settings]

    def wire(self, panel: Panel, page: gr.Blocks) -> None:
        controller = panel.controller

        def generate(anyway: bool, *inputs: Any) -> str:
            return controller.generate(make_config(*inputs), anyway)

        def estimate(*values: Any) -> str:
            return _estimate(controller, lambda: make_config(*values))

        def probe(*values: Any) -> tuple[Any, str]:
            return _probe(controller, lambda: make_config("a rabbit", *values[1:]))

        def defaults(preset_name: str, model: str) -> Any:
            try:
                config = make_config("", preset_name, model)
                return config.steps, config.distill.guidance_scale
            except ERRORS:
                return gr.skip(), gr.skip()

        _wire_start(self, panel, generate)
        page.load(estimate, self.values, self.duration, **QUIET)
        timed = [part.change for part in self.values if part not in (self.prompt, self.seed)]
        gr.on(timed, estimate, self.values, self.duration, **QUIET)
        models, numbers = [self.preset, self.model], [self.steps, self.guidance]
        gr.on([part.input for part in models], defaults, models, numbers, **QUIET)
        outputs = [self.duration, self.note]
        self.probe.click(probe, self.values, outputs, api_visibility="private", **EXCLUSIVE)


class EditForm:
    """The form that edits a run. How bold it is sets the method, and a method sets its numbers."""

    def __init__(self) -> None:
        run, default = preset(TOYBOX, ""), EditConfig("")
        steps, _ = edit_length(run)
        row = ESCAPES[DEFAULT_ESCAPE]
        self.parent = gr.Dropdown(
            [], label="Run to edit", elem_id="parent", info="It is not changed.", **UNCHECKED
        )
        self.image = gr.HTML(elem_id="parent-picture")
        self.prompt = gr.Textbox(
            label="New prompt", placeholder="a purple rabbit", elem_id="edit-prompt", **PROMPT
        )
        self.bold = gr.Radio(
            [(words, escape) for words, escape in BOLDNESS.items()],
            value=DEFAULT_ESCAPE,
            label="How bold",
            elem_id="bold",
            elem_classes="short",
        )
        self.keep = gr.Radio(
            [("Nothing", ""), ("The shape", "shape"), ("The colours", "colour")],
            value="",
            label="Keep exactly",
            elem_id="edit-keep",
            elem_classes="short",
        )
        self.length = gr.Radio(
            [(name.capitalize(), name) for name in LENGTHS],
            value="standard",
            label="Length",
            elem_classes="short",
        )
        self.steps = gr.Number(steps, label="Steps", elem_id="edit-steps", **COUNT)
        with gr.Accordion("Advanced", open=False, elem_id="edit-advanced"):
            self.escape = gr.Radio(
                [(f"{name}: {row.sentence}", name) for name, row in ESCAPES.items()],
                value=DEFAULT_ESCAPE,
                label="Method",
                elem_id="escape",
            )
            self.eta = gr.Slider(
                0,
                1,
                row.eta,
                label="eta: fraction of the way towards a random scene",
                elem_id="edit-eta",
                visible=row.eta > 0,
            )
            with gr.Row(elem_classes="pair", visible=row.ascends) as self.ascent:
                self.ascent_steps = gr.Number(
                    _ascent_steps(DEFAULT_ESCAPE, steps),
                    label="Ascent steps",
                    elem_id="edit-ascent",
                    **COUNT,
                )
                self.scale = gr.Number(
                    default.scale,
                    label="S: factor on the learning rate while ascending",
                    minimum=0,
                    elem_id="edit-scale",
                )
            self.moments = gr.Radio(
                [*get_args(Moments)],
                value=default.moments,
                label="Optimizer moments",
                elem_id="edit-moments",
                elem_classes="short",
                visible=DEFAULT_ESCAPE == "plain",
            )
            self.region = gr.Textbox(
                label="Region",
                info="Change only this; one per line",
                placeholder="box:x0,y0,z0,x1,y1,z1, sphere:x,y,z,radius or auto",
                lines=2,
                max_length=2000,
                elem_id="edit-region",
            )
            self.seed = gr.Number(run.seed, label="Seed", elem_id="edit-seed", **COUNT)
        with gr.Row(elem_classes="actions"):
            self.start = gr.Button("Edit", variant="primary", elem_id="edit", min_width=120)
            self.probe = gr.Button("Measure speed", elem_id="edit-probe", min_width=80)
        self.duration = gr.HTML(elem_id="edit-estimate")
        self.note = gr.HTML(elem_id="edit-note")
        self.anyway = gr.Button("Do it anyway", elem_id="edit-anyway", visible=False)
        self.numbers = [self.eta, self.ascent_steps, self.scale, self.moments]
        self.values = [self.parent, self.prompt, self.escape, self.steps, *self.numbers, self.seed]
        self.values += [self.keep, self.region]

    def wire(self, panel: Panel) -> None:
        controller, find = panel.controller, panel.controller.manager.find

        def config(parent: str | None) -> RunConfig:
            return pace.config_of(find(parent)) if parent else preset(TOYBOX, "")

        def edit(anyway: bool, *inputs: Any) -> str:
            parent, prompt, *values, keep, region = inputs
            if not parent:
                raise RunError("There is no run to edit yet. Create one first.")
            names = "escape", "steps", "eta", "ascent_steps", "scale", "moments", "seed"
            options = {k: v for k, v in zip(names, values, strict=True) if v is not None}
            options |= {"keep": keep or None, "region": (region or "").split()}
            return controller.edit(parent, prompt, anyway=anyway, **options)

        def estimate(parent: str | None, steps: float | None) -> str:
            if not parent:
                return ""
            changes = {"steps": int(steps or 1)}
            return _estimate(controller, lambda: with_overrides(config(parent), changes))

        def show_parent(parent: str | None) -> tuple[str, Any]:
            try:
                return turntable_of(find(parent)), config(parent).seed
            except ERRORS:
                return "", gr.skip()

        def lengths(parent: str | None, escape: EscapeName, length: LengthName) -> tuple[int, int]:
            steps, _ = edit_length(config(parent), name=length)
            return steps, _ascent_steps(escape, steps)

        def fields(escape: EscapeName) -> tuple[Any, ...]:
            row = ESCAPES[escape]
            return (
                gr.Slider(visible=row.eta > 0),
                gr.Row(visible=row.ascends),
                gr.Radio(visible=escape == "plain"),
            )

        def probe(parent: str | None) -> tuple[Any, str]:
            return _probe(controller, lambda: replace(config(parent), edit=None))

        _wire_start(self, panel, edit)
        self.parent.change(show_parent, self.parent, [self.image, self.seed], **QUIET)
        inputs = [self.parent, self.steps]
        gr.on([part.change for part in inputs], estimate, inputs, self.duration, **QUIET)
        inputs = [self.parent, self.escape, self.length]
        self.length.input(lengths, inputs, [self.steps, self.ascent_steps], **QUIET)
        # in the browser: an answer of the server could undo what the user types meanwhile
        chosen = [self.escape, self.steps]
        bold = [self.bold, self.steps]
        self.bold.input(None, bold, [self.escape, *self.numbers], js=_bold_js(), **QUIET)
        self.escape.input(None, chosen, [self.bold, *self.numbers], js=_method_js(), **QUIET)
        shown = [self.eta, self.ascent, self.moments]
        self.escape.change(fields, self.escape, shown, **QUIET)
        outputs = [self.duration, self.note]
        self.probe.click(probe, self.parent, outputs, api_visibility="private", **EXCLUSIVE)
        self.steps.input(None, chosen, self.ascent_steps, js=_ascent_js(), **QUIET)


def _wire_start(form: CreateForm | EditForm, panel: Panel, start: Callable[..., str]) -> None:
    """Wire a form to `start`, which takes whether to go on anyway and the form's values and returns
    the new run's id. The user is asked about unknown words."""

    def handler(anyway: bool) -> Callable[..., dict[Any, Any]]:
        def act(*inputs: Any) -> tuple[str, str]:
            return start(anyway, *inputs[:-1]), ""  # the card says what happens

        def handle(*inputs: Any) -> dict[Any, Any]:
            updates, error = answer(*inputs)
            if isinstance(error, UnknownWords):
                updates[form.note] = markup.message(ValueError(error.problem))
            return {**updates, form.anyway: gr.Button(visible=isinstance(error, UnknownWords))}

        answer = panel.answered(form.note, act)
        return handle

    inputs, outputs = [*form.values, *panel.inputs], [*panel.outputs, form.note, form.anyway]
    for triggers, anyway in (
        ([form.start.click, form.prompt.submit], False),
        ([form.anyway.click], True),
    ):
        gr.on(triggers, handler(anyway), inputs, outputs, **QUIET).then(
            None, js=scroll_to("panel"), **QUIET
        )


def _probe(controller: Controller, make: Callable[[], RunConfig]) -> tuple[Any, str]:
    """Time a few steps; returns the expected duration, and an error if it failed."""
    try:
        config = make()
        return markup.hint(pace.estimate(controller.probe(config), config.steps)), ""
    except ERRORS as error:
        return gr.skip(), markup.message(error)


def _ascent_steps(escape: EscapeName, steps: int) -> int:
    return edit_length(preset(TOYBOX, ""), steps)[1] if ESCAPES[escape].ascends else 0


def _ascent_js() -> str:
    """JavaScript: an escape and the steps -> the ascent steps."""
    steps, ascent = edit_length(preset(TOYBOX, ""))
    ascending = json.dumps([name for name, row in ESCAPES.items() if row.ascends])
    count = f"Math.round(steps * {ascent / steps})"
    return f"(escape, steps) => {ascending}.includes(escape) ? {count} : 0"


def _bold_js() -> str:
    """JavaScript: how bold and the steps -> the method and its numbers."""
    return f"(bold, steps) => [bold, ...({_numbers_js()})(bold, steps)]"


def _method_js() -> str:
    """JavaScript: a method and the steps -> how bold it is, if it has a word, and its numbers."""
    plain = json.dumps([*BOLDNESS.values()])
    bold = f"{plain}.includes(escape) ? escape : null"
    return f"(escape, steps) => [{bold}, ...({_numbers_js()})(escape, steps)]"


def _numbers_js() -> str:
    """JavaScript: an escape and the steps -> eta, ascent steps, scale, moments."""
    default = EditConfig("")
    etas = json.dumps({name: row.eta for name, row in ESCAPES.items()})
    rest = json.dumps([default.scale, default.moments])
    return f"(escape, steps) => [{etas}[escape], ({_ascent_js()})(escape, steps), ...{rest}]"


def _estimate(controller: Controller, make: Callable[[], RunConfig]) -> str:
    """The expected duration of a configuration, or what is wrong with it."""
    try:
        config = make()
        device = str(resolve_device(config.device))
        return markup.hint(pace.expectation(config, device, controller.manager.folder))
    except ERRORS as error:
        return markup.hint(sentence(error))
