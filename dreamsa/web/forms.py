"""The forms that create and edit runs."""

import json
from collections.abc import Callable, Sequence
from typing import Any, get_args

import gradio as gr

from dreamsa.choices import DEFAULT_ESCAPE, ESCAPES, PRESETS, EscapeName, Moments
from dreamsa.config import TOYBOX, EditConfig, ModelConfig, RunConfig
from dreamsa.device import resolve_device
from dreamsa.guidance.stable_diffusion import vocabulary
from dreamsa.presets import edit_length, preset
from dreamsa.runs import RunError
from dreamsa.settings import with_overrides
from dreamsa.web import markup, pace
from dreamsa.web.controller import ERRORS, Controller, make_config
from dreamsa.web.jobs import sentence
from dreamsa.web.panel import EXCLUSIVE, QUIET, UNCHECKED, Panel, scroll_to, turntable_of

LENGTHS = {"Quick": 1 / 3, "Standard": 1.0, "Long": 2.0}
"""Multiples of the usual number of steps of an edit."""
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
            info="toybox (embedded), or a Hub id",
        )
        with gr.Row(elem_classes="pair"):
            self.steps = gr.Number(default.steps, label="Steps", elem_id="steps", **COUNT)
            self.seed = gr.Number(default.seed, label="Seed", **COUNT)
        with gr.Accordion("Advanced", open=False):
            self.preset = gr.Dropdown(
                ["auto", *PRESETS],
                value="auto",
                label="Preset",
                info="auto: toybox for the embedded model, sd for others",
            )
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
        self.values = [self.prompt, self.preset, self.model, self.steps, self.seed]
        self.values += [negative, self.guidance, settings]

    def wire(self, panel: Panel, page: gr.Blocks) -> None:
        controller = panel.controller

        def generate(*inputs: Any) -> tuple[str, str]:
            run_id = controller.generate(make_config(*inputs[:-1]))
            return run_id, "Started. The job continues if this page is closed."

        def estimate(*values: Any) -> str:
            return _estimate(controller, lambda: make_config(*values))

        def probe(*values: Any) -> tuple[Any, str]:
            try:
                config = make_config("a rabbit", *values[1:])
                return markup.hint(pace.estimate(controller.probe(config), config.steps)), ""
            except ERRORS as error:
                return gr.skip(), markup.message(error)

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
    """The form that edits a run. Choosing an escape sets its numbers."""

    def __init__(self) -> None:
        run, default = preset(TOYBOX, ""), EditConfig("")
        steps, _ = edit_length(run)
        self.parent = gr.Dropdown(
            [], label="Run to edit", elem_id="parent", info="It is not changed.", **UNCHECKED
        )
        self.image = gr.HTML(elem_id="parent-picture")
        self.prompt = gr.Textbox(
            label="New prompt", placeholder="a purple rabbit", elem_id="edit-prompt", **PROMPT
        )
        self.escape = gr.Radio(
            [(f"{name}: {row.sentence}", name) for name, row in ESCAPES.items()],
            value=DEFAULT_ESCAPE,
            label="How much to change",
            elem_id="escape",
        )
        self.length = gr.Radio([*LENGTHS], value="Standard", label="Length", elem_classes="short")
        with gr.Row(elem_classes="pair"):
            self.steps = gr.Number(steps, label="Steps", elem_id="edit-steps", **COUNT)
            self.ascent_steps = gr.Number(
                _ascent_steps(DEFAULT_ESCAPE, steps),
                label="Ascent steps",
                elem_id="edit-ascent",
                **COUNT,
            )
        with gr.Accordion("Advanced", open=False):
            self.eta = gr.Slider(
                0,
                1,
                ESCAPES[DEFAULT_ESCAPE].eta,
                label="eta: fraction of the way towards a random scene",
                elem_id="edit-eta",
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
                label="Optimizer moments (only a plain edit can keep them)",
                elem_id="edit-moments",
                elem_classes="short",
            )
            self.seed = gr.Number(run.seed, label="Seed", elem_id="edit-seed", **COUNT)
        self.start = gr.Button("Edit", variant="primary", elem_id="edit")
        self.duration = gr.HTML(elem_id="edit-estimate")
        self.note = gr.HTML(elem_id="edit-note")
        self.numbers = [self.eta, self.ascent_steps, self.scale, self.moments]
        self.values = [self.parent, self.prompt, self.escape, self.steps, *self.numbers, self.seed]

    def wire(self, panel: Panel) -> None:
        controller, find = panel.controller, panel.controller.manager.find

        def config(parent: str | None) -> RunConfig:
            return pace.config_of(find(parent)) if parent else preset(TOYBOX, "")

        def edit(*inputs: Any) -> tuple[str, str]:
            parent, prompt, *values, _ = inputs
            if not parent:
                raise RunError("There is no finished run to edit yet. Create one first.")
            names = "escape", "steps", "eta", "ascent_steps", "scale", "moments", "seed"
            options = {k: v for k, v in zip(names, values, strict=True) if v is not None}
            run_id = controller.edit(parent, prompt, **options)
            return run_id, "Started. The parent run is not changed."

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

        def lengths(parent: str | None, escape: EscapeName, length: str) -> tuple[int, int]:
            steps = round(edit_length(config(parent))[0] * LENGTHS[length])
            return steps, _ascent_steps(escape, steps)

        _wire_start(self, panel, edit)
        self.parent.change(show_parent, self.parent, [self.image, self.seed], **QUIET)
        inputs = [self.parent, self.steps]
        gr.on([part.change for part in inputs], estimate, inputs, self.duration, **QUIET)
        inputs = [self.parent, self.escape, self.length]
        self.length.input(lengths, inputs, [self.steps, self.ascent_steps], **QUIET)
        # in the browser: an answer of the server could undo what the user types meanwhile
        chosen = [self.escape, self.steps]
        self.escape.input(None, chosen, self.numbers, js=_numbers_js(), **QUIET)
        self.steps.input(None, chosen, self.ascent_steps, js=_ascent_js(), **QUIET)


def _wire_start(
    form: CreateForm | EditForm, panel: Panel, act: Callable[..., tuple[str | None, str]]
) -> None:
    gr.on(
        [form.start.click, form.prompt.submit],
        panel.answer(form.note, act),
        [*form.values, *panel.inputs],
        [*panel.outputs, form.note],
        **QUIET,
    ).then(None, js=scroll_to("panel"), **QUIET)


def _ascent_js() -> str:
    """JavaScript: an escape and the steps -> the ascent steps."""
    steps, ascent = edit_length(preset(TOYBOX, ""))
    ascending = json.dumps([name for name, row in ESCAPES.items() if row.ascends])
    return f"(escape, steps) => {ascending}.includes(escape) ? Math.round(steps * {ascent / steps}) : 0"


def _numbers_js() -> str:
    """JavaScript: an escape and the steps -> eta, ascent steps, scale, moments."""
    default = EditConfig("")
    etas = json.dumps({name: row.eta for name, row in ESCAPES.items()})
    rest = json.dumps([default.scale, default.moments])
    return f"(escape, steps) => [{etas}[escape], ({_ascent_js()})(escape, steps), ...{rest}]"


def _ascent_steps(escape: EscapeName, steps: int) -> int:
    return edit_length(preset(TOYBOX, ""), steps)[1] if ESCAPES[escape].ascends else 0


def _estimate(controller: Controller, make: Callable[[], RunConfig]) -> str:
    """The expected duration of a configuration, or what is wrong with it."""
    try:
        config = make()
        device = str(resolve_device(config.device))
        found = pace.measured(config, device, controller.manager.runs())
        return markup.hint(pace.estimate(found, config.steps))
    except ERRORS as error:
        return markup.hint(sentence(error))
