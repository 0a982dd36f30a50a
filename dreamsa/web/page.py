"""The page. Thin: a form is read, the job manager or the API is called, and what they say is shown.

Every tab of the browser looks at one run, by polling; nothing that takes long hangs on a connection, so that a reload, a second
tab or a closed one change nothing. What the browser sends is a wish: ids are looked up, prompts are text.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The page needs gradio, which is not installed. Install it with: pip install 'dreamsa[web]'") from error

from dreamsa import __version__, api
from dreamsa.config import ASCENDING, DEFAULT_ESCAPE, EDIT_STEPS, PRESETS, RunConfig, preset
from dreamsa.guidance.stable_diffusion import KNOWN_MODELS, TOYBOX, ModelConfig, vocabulary
from dreamsa.runs import RunError
from dreamsa.web import commands, markup, pace, pictures
from dreamsa.web.desk import EXPORTS, Desk, make_config, open_desk, whole
from dreamsa.web.jobs import Status

POLL_SECONDS = 1.5
QUEUE = 16
"""Exports and probes that may wait; jobs have a queue of their own, as long."""
LARGEST_UPLOAD = "1mb"
"""The page asks for no files; this bounds what can be sent all the same."""
ERRORS = (ValueError, RuntimeError, OSError)
"""What becomes a sentence on the page."""
EDIT_PRESETS = {"Quick": 1 / 3, "Standard": 1.0, "Long": 2.0}
"""Of an edit's usual steps; a fifth of them ascends."""
ESCAPE_NOTES = {
    "interpolate": "interpolate: move towards a random scene, then descend",
    "auto": "auto: resume; interpolate if the scene is not on its way after a while",
    "anneal": "anneal: ascend on the new prompt, then descend",
    "plain": "plain: descend only",
    "fresh": "fresh: start from scratch",
    "noise": "noise: one random displacement, then descend",
}
KEEP_RUN_CLICK = """element.addEventListener('click', event => {
  const button = event.target.closest('button[data-run]');
  if (button) trigger('click', {run: button.dataset.run});
});"""
TO_PANEL = "() => { if (innerWidth < 700) document.getElementById('panel').scrollIntoView({behavior: 'smooth'}); }"
TO_FORMS = "() => { if (innerWidth < 700) document.getElementById('forms').scrollIntoView({behavior: 'smooth'}); }"
FREE: Any = {"allow_custom_value": True}
"""For choices of runs. Gradio keeps each session's choices by reading, changing and writing them without a lock, so that two polls at a time
can lose some, and would then refuse what the browser rightly offers. We look up what is chosen ourselves."""
QUIET: Any = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""For what is quick: not queued, so that a full queue keeps nobody from looking."""


@dataclass
class Panel:
    """The components on the right, which show the run that is looked at."""

    strip: gr.HTML
    card: gr.HTML
    note: gr.HTML
    stop: gr.Button
    go_on: gr.Button
    branch: gr.Button
    sheet: gr.Image
    turntable: gr.HTML
    slider: gr.ImageSlider
    compared: gr.Dropdown
    curve: gr.HTML
    cli: gr.Code
    python: gr.Code
    kind: gr.Dropdown
    export: gr.Button
    exported: gr.File
    tree: gr.HTML
    parent: gr.Dropdown


def look(desk: Desk, panel: Panel, run_id: str | None, compared: str | None, parent: str | None, was: dict[str, Any]) -> dict[Any, Any]:
    """What has to change on a page that looks at `run_id` and last saw `was`: {component: update}, and under "was" what it sees now."""
    manager = desk.manager
    rows = desk.listing()
    try:
        status = manager.status(run_id)
    except RunError:
        run_id = manager.current()
        status = manager.status(run_id) if run_id else None
    active = []
    for name in manager.active():
        try:
            active.append(manager.status(name))
        except RunError:
            continue
    finished = [(f"{row.prompt} ({row.id})", row.id) for row, _, _, editable in rows if editable]
    ids = [value for _, value in finished]
    chosen = parent if parent in ids else (run_id if run_id in ids else (ids[0] if ids else None))
    strip = markup.strip(active)
    tree = (tuple((row.id, row.state, bool(picture)) for row, _, picture, _ in rows), run_id)
    parts: dict[str, tuple[Any, Callable[[], Any]]] = {
        "strip": (strip, lambda: strip),
        "tree": (tree, lambda: markup.tree([row[:3] for row in rows], run_id)),
        "parent": (ids, lambda: gr.Dropdown(choices=finished, value=chosen)),
    }
    try:
        if status is not None:
            parts |= _parts_of_run(desk, status, None if was.get("run") != run_id else (compared or ""), finished)
        updates = {getattr(panel, name): make() for name, (token, make) in parts.items() if was.get(name) != token}
        now = {name: token for name, (token, _) in parts.items()} | {"run": run_id}
    except ERRORS as error:  # a file of the run is damaged; whoever looks should know which
        updates, now = {panel.card: markup.message(_sentence(error), bad=True)}, {"run": run_id}
    return updates | {"was": now, "run": run_id}


def _parts_of_run(
    desk: Desk, status: Status, compared: str | None, finished: list[tuple[str, str]]
) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """(what it depends on, how to make it) of each component that shows the run; `compared` None means the run's own parent."""
    run = desk.manager.find(status.id)
    record, config = run.record, pace.config_of(run)
    ascent = config.edit.ascent_steps if config.edit and config.edit.escape in ASCENDING else 0
    others = [(label, name) for label, name in finished if name != run.id]
    there = [name for _, name in others]
    if compared is None:
        compared = record["parent"] if record["parent"] in there else ""
    before = desk.manager.find(compared) if compared in there and status.state == "finished" else None
    sheet = run.path / "contact_sheet.png"
    if status.state != "finished" or not sheet.is_file():
        sheet = status.preview
    facts = f"{run.id}, seed {config.seed}, {config.model.model}, {record['device']}, hash grid {record['backend']}"
    if record["parent"]:
        facts += f", {config.edit.escape if config.edit else 'edited'} from {record['parent']}"
    if record.get("decision"):
        facts += f": {record['decision']}"
    card = markup.card(status, ascent, record["lineage"], facts)
    looks = (run.id, status.state == "finished", before.id if before else "")
    metrics = run.path / "metrics.jsonl"
    measured = (run.id, metrics.stat().st_mtime_ns if metrics.is_file() else 0)

    def turntable() -> str:
        if before is not None:
            both = pictures.side_by_side(before, run)
            if both is not None:
                words = f"turntables of {before.prompt} and {status.prompt}, in step"
                return markup.animation(pictures.data_uri(both), words, (before.prompt, status.prompt))
        one = pictures.turntable(run) if status.state == "finished" else None
        return markup.animation(pictures.data_uri(one) if one else None, f"turntable of {status.prompt}")

    def slider() -> Any:
        pair = pictures.before_and_after(before, run) if before is not None else None
        return gr.ImageSlider(value=pair, visible=pair is not None)

    return {
        "card": (card, lambda: card),
        "note": (run.id, lambda: ""),
        "stop": ((status.state, run.id), lambda: gr.Button(interactive=status.state in ("queued", "running"))),
        "go_on": (status.state, lambda: gr.Button(interactive=status.state in ("created", "stopped", "failed"))),
        "branch": (status.state, lambda: gr.Button(interactive=status.state == "finished")),
        "sheet": (
            str(sheet or ""),
            lambda: gr.Image(
                value=pictures.read(sheet) if sheet else None,
                visible=sheet is not None,
                label="Twelve views" if status.state == "finished" else f"Step {status.step}",
            ),
        ),
        "turntable": (looks, turntable),
        "slider": (looks, slider),
        "compared": (
            (run.id, tuple(there), status.state == "finished"),
            lambda: gr.Dropdown(
                choices=[("nothing", ""), *others], value=compared if compared in there else "", visible=status.state == "finished"
            ),
        ),
        "curve": (measured, lambda: markup.curve(run.metrics(), ascent, status.steps)),
        "cli": (run.id, lambda: commands.command_line(run, desk.manager.folder)),
        "python": (run.id, lambda: commands.python_code(run, desk.manager.folder)),
        "exported": (run.id, lambda: gr.File(value=None, visible=False)),
    }


def build(desk: Desk) -> gr.Blocks:
    """The page over a desk."""
    manager = desk.manager
    with gr.Blocks(title="dreamsa", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        watched, was = gr.State(None), gr.State({})
        gr.HTML("<header><h1>dreamsa</h1><p>Turn words into 3-D objects, and change them with more words.</p></header>")
        strip = gr.HTML(elem_id="strip")
        with gr.Row(elem_classes="split"):
            with gr.Column(scale=5, min_width=280, elem_id="forms"), gr.Tabs(selected="create") as tabs:
                with gr.Tab("Create", id="create"):
                    create = _create_form()
                with gr.Tab("Edit", id="edit"):
                    change = _edit_form()
                with gr.Tab("Gallery", id="gallery"):
                    gr.HTML("<p class='hint'>Edits stand under what they were made from. Choose one to see it here.</p>")
                    tree = gr.HTML(js_on_load=KEEP_RUN_CLICK, elem_id="tree")
                with gr.Tab("Help", id="help") as help_tab:
                    gr.HTML(HELP)
                    doctor = gr.HTML(elem_id="doctor")
            with gr.Column(scale=6, min_width=280, elem_id="panel"):
                panel = _panel(strip, tree, change["parent"])
        timer = gr.Timer(POLL_SECONDS)
        seen = [watched, panel.compared, panel.parent, was]
        shown = [watched, was, *vars(panel).values()]

        def refresh(run_id: str | None, compared: str | None, parent: str | None, before: dict[str, Any]) -> dict[Any, Any]:
            found = look(desk, panel, run_id, compared, parent, before)
            updates = {key: value for key, value in found.items() if key not in ("was", "run")}
            # A poll that began before a click and ends after it must not take back what the click chose.
            return {**updates, was: found["was"], **({watched: found["run"]} if found["run"] != run_id else {})}

        def enter() -> dict[Any, Any]:
            current = manager.current()
            return {**refresh(current, None, None, {}), watched: current}

        def answer(note: gr.HTML, act: Callable[..., tuple[str | None, str]]) -> Callable[..., dict[Any, Any]]:
            """A handler that does `act`, then says in `note` how it went, and looks at the run it names."""

            def handle(*inputs: Any) -> dict[Any, Any]:
                *given, run_id, compared, parent, before = inputs
                try:
                    aim, words = act(*given, run_id)
                    said = markup.message(words)
                except ERRORS as error:
                    aim, said = None, markup.message(_sentence(error), bad=True)
                desk.forget_listing()
                return {**refresh(aim or run_id, compared, parent, before), note: said, watched: aim or run_id}

            return handle

        def generate(*inputs: Any) -> tuple[str, str]:
            *form, _ = inputs
            return desk.generate(make_config(*form)), "Started; it goes on even if this page is closed."

        def edit(*inputs: Any) -> tuple[str, str]:
            parent, prompt, escape, steps, ascent, scale, eta, moments, seed, _ = inputs
            if not parent:
                raise RunError("There is no finished run to edit yet. Create one first.")
            how = {"escape": escape, "steps": whole(steps, "steps"), "seed": whole(seed, "seed"), "moments": moments}
            how |= {"ascent_steps": whole(ascent, "ascent steps"), "scale": 0.01 if scale is None else scale, "eta": eta}
            return desk.edit(parent, prompt, **how), "Started; the run it was made from stays as it is."

        def stop(run_id: str) -> tuple[None, str]:
            manager.stop(run_id)
            return None, "Stopping. What was done is saved first."

        def go_on(run_id: str) -> tuple[str, str]:
            return desk.resume(run_id), "Going on where it was."

        def pick(
            run_id: str | None, compared: str | None, parent: str | None, before: dict[str, Any], event: gr.EventData
        ) -> dict[Any, Any]:
            try:
                chosen = manager.find(getattr(event, "run", None)).id
            except RunError as error:
                return {panel.note: markup.message(_sentence(error), bad=True)}
            return {**refresh(chosen, compared, parent, before), watched: chosen}

        started: Any = {"outputs": shown, **QUIET}
        gr.on(
            [create["start"].click, create["prompt"].submit],
            answer(create["note"], generate), [*create["form"], *seen], [*shown, create["note"]], **QUIET,
        ).then(None, js=TO_PANEL, **QUIET)  # fmt: skip
        gr.on(
            [change["start"].click, change["prompt"].submit],
            answer(change["note"], edit), [*change["form"], *seen], [*shown, change["note"]], **QUIET,
        ).then(None, js=TO_PANEL, **QUIET)  # fmt: skip
        panel.stop.click(answer(panel.note, stop), seen, **started)
        panel.go_on.click(answer(panel.note, go_on), seen, **started)
        tree.click(pick, seen, **started).then(None, js=TO_PANEL, **QUIET)
        panel.compared.input(refresh, seen, **started)
        timer.tick(refresh, seen, **started)
        page.load(enter, None, **started)
        panel.branch.click(lambda run_id: (gr.Tabs(selected="edit"), run_id), watched, [tabs, panel.parent], **QUIET).then(
            None, js=TO_FORMS, **QUIET
        )
        _wire_forms(desk, page, create, change)
        _wire_export(desk, panel, watched)
        help_tab.select(lambda: markup.facts_table(api.doctor()), None, doctor, **QUIET)
        _wire_client(desk)
    return page


def _create_form() -> dict[str, Any]:
    words = vocabulary(ModelConfig())
    known = (
        f"<details class='hint'><summary>What the embedded model knows</summary><p>{markup.text(', '.join(words['objects']))}; "
        f"in {markup.text(', '.join(words['colours']))}. For anything else choose a bigger model.</p></details>"
        if words
        else ""
    )
    usual = preset("toybox", "").steps
    prompt = gr.Textbox(label="What to make", placeholder="a rabbit", max_lines=3, max_length=1000, autofocus=True, elem_id="prompt")
    gr.HTML(known)
    model = gr.Dropdown(
        [TOYBOX, *KNOWN_MODELS], value=TOYBOX, label="Model", allow_custom_value=True, info="toybox is embedded; or a folder, or a Hub id"
    )
    with gr.Row(elem_classes="pair"):
        steps = gr.Number(usual, label="Steps", precision=0, minimum=1, min_width=100, elem_id="steps")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100)
    with gr.Accordion("Advanced", open=False):
        name = gr.Dropdown(["auto", *PRESETS], value="auto", label="Preset", info="auto: toybox for the embedded model, sd for others")
        negative = gr.Textbox(label="Negative prompt", max_lines=2, max_length=1000)
        guidance = gr.Number(None, label="Guidance scale", info="Empty: the preset's", minimum=0)
        settings = gr.Textbox(
            label="Other settings", lines=2, max_length=5000, placeholder="optimizer.lr=0.01", info="name=value, one a line"
        )
    with gr.Row(elem_classes="actions"):
        start = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
        probe = gr.Button("Probe", elem_id="probe", min_width=80)
    time_line = gr.HTML(elem_id="estimate")
    note = gr.HTML(elem_id="create-note")
    return {
        "prompt": prompt, "start": start, "probe": probe, "time": time_line, "note": note, "name": name, "model": model, "steps": steps,
        "form": [prompt, name, model, steps, seed, negative, guidance, settings],
    }  # fmt: skip


def _edit_form() -> dict[str, Any]:
    steps, ascent = EDIT_STEPS["toybox"]
    parent = gr.Dropdown([], label="Run to change", elem_id="parent", info="It is never written to.", **FREE)
    picture = gr.HTML(elem_id="parent-picture")
    prompt = gr.Textbox(label="What it should become", placeholder="a purple rabbit", max_lines=3, max_length=1000, elem_id="edit-prompt")
    escape = gr.Radio([(note, name) for name, note in ESCAPE_NOTES.items()], value=DEFAULT_ESCAPE, label="How to leave the present minimum")
    length = gr.Radio([*EDIT_PRESETS], value="Standard", label="Length", elem_classes="short")
    with gr.Row(elem_classes="pair"):
        total = gr.Number(steps, label="Steps", precision=0, minimum=1, min_width=90, elem_id="edit-steps")
        climb = gr.Number(ascent, label="of which ascend", interactive=False, precision=0, minimum=0, min_width=90, elem_id="edit-ascent")
        scale = gr.Number(0.01, label="S while ascending", minimum=0, min_width=90, step=0.001)
    with gr.Accordion("Advanced", open=False):
        eta = gr.Slider(0, 1, 0.6, label="eta, share of the way towards a random scene (interpolate, auto)")
        moments = gr.Radio(["reset", "keep"], value="reset", label="Optimizer's moments (plain alone can keep them)", elem_classes="short")
        seed = gr.Number(None, label="Seed", precision=0, minimum=0, info="Empty: the parent's")
    start = gr.Button("Edit", variant="primary", elem_id="edit")
    time_line = gr.HTML(elem_id="edit-estimate")
    note = gr.HTML(elem_id="edit-note")
    return {
        "prompt": prompt, "start": start, "time": time_line, "note": note, "parent": parent, "picture": picture, "escape": escape,
        "length": length, "steps": total, "ascent": climb, "form": [parent, prompt, escape, total, climb, scale, eta, moments, seed],
    }  # fmt: skip


def _panel(strip: gr.HTML, tree: gr.HTML, parent: gr.Dropdown) -> Panel:
    card = gr.HTML("<p class='hint'>Nothing to see yet. Create something.</p>", elem_id="card")
    with gr.Row(elem_classes="actions"):
        stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=80)
        go_on = gr.Button("Continue", interactive=False, elem_id="continue", min_width=80)
        branch = gr.Button("Edit this", interactive=False, elem_id="branch", min_width=80)
    note = gr.HTML(elem_id="note")
    turntable = gr.HTML(elem_id="turntable")
    slider = gr.ImageSlider(
        label="Before and after, the same camera", visible=False, elem_id="slider", interactive=False, buttons=["fullscreen"]
    )
    sheet = gr.Image(
        label="Views", visible=False, interactive=False, elem_id="sheet", alt_text="views of the object", buttons=["download", "fullscreen"]
    )
    compared = gr.Dropdown([], label="Compare with", visible=False, elem_id="compared", **FREE)
    curve = gr.HTML(elem_id="curve")
    with gr.Accordion("What was done", open=False):
        cli = gr.Code(language="shell", label="Command line", elem_id="cli", interactive=False, wrap_lines=True, lines=2, max_lines=8)
        python = gr.Code(language="python", label="Python", elem_id="python", interactive=False, wrap_lines=True, lines=4, max_lines=8)
    with gr.Accordion("Export and download", open=False), gr.Row(elem_classes="actions"):
        kind = gr.Dropdown(
            [(label, name) for name, label in EXPORTS.items()], value="glb", label="Format", min_width=160, scale=3, elem_id="kind"
        )
        export = gr.Button("Export", elem_id="export", min_width=90, scale=1)
    exported = gr.File(label="Exported", visible=False, interactive=False, elem_id="exported")
    return Panel(
        strip, card, note, stop, go_on, branch, sheet, turntable, slider, compared, curve, cli, python, kind, export, exported, tree, parent
    )


def _wire_forms(desk: Desk, page: gr.Blocks, create: dict[str, Any], change: dict[str, Any]) -> None:
    def line(config: Callable[[], RunConfig]) -> str:
        try:
            made = config()
            words = pace.estimate(desk.measured(made), made.steps)
        except ERRORS as error:
            words = _sentence(error)
        return f"<p class='hint'>{markup.text(words)}</p>"

    def create_line(*form: Any) -> str:
        return line(lambda: make_config(*form))

    def edit_line(parent: str | None, steps: float | None) -> str:
        if not parent:
            return ""
        return line(lambda: api.with_overrides(desk.manager.find(parent).config, {"steps": whole(steps or 1, "steps")}))

    def probe(*form: Any) -> tuple[Any, str]:
        try:
            config = make_config("a rabbit", *form[1:])
            words = f"<p class='hint'>{markup.text(pace.estimate(desk.probe(config), config.steps))}</p>"
            return words, ""
        except ERRORS as error:
            return gr.skip(), markup.message(_sentence(error), bad=True)

    def usual_steps(name: str, model: str) -> Any:
        try:
            return make_config("", name, model).steps
        except ERRORS:
            return gr.skip()

    def show_parent(parent: str | None) -> str:
        try:
            run = desk.manager.find(parent)
        except RunError:
            return ""
        made = pictures.turntable(run)
        return markup.animation(pictures.data_uri(made) if made else None, f"turntable of {run.prompt}")

    def lengths(parent: str | None, length: str) -> tuple[Any, Any]:
        name = "toybox"
        if parent:
            name = "toybox" if pace.config_of(desk.manager.find(parent)).model.model == TOYBOX else "paper"
        return tuple(round(count * EDIT_PRESETS[length]) for count in EDIT_STEPS[name])  # pyright: ignore[reportReturnType]

    def ascends(escape: str) -> Any:
        climbs = escape in ("anneal", "noise")
        said = {DEFAULT_ESCAPE: "Edit", "anneal": "Edit with annealing"}.get(escape, f"Edit ({escape})")
        return gr.Number(interactive=climbs), gr.Button(said)

    form, timed = create["form"], [create["name"], create["model"], create["steps"], *create["form"][5:]]
    page.load(create_line, form, create["time"], **QUIET)
    gr.on([part.change for part in timed], create_line, form, create["time"], **QUIET)
    gr.on([create["name"].input, create["model"].input], usual_steps, [create["name"], create["model"]], create["steps"], **QUIET)
    create["probe"].click(
        probe, form, [create["time"], create["note"]], concurrency_id="device", concurrency_limit=1, api_visibility="private"
    )
    change["parent"].change(show_parent, change["parent"], change["picture"], **QUIET)
    gr.on([change["parent"].change, change["steps"].change], edit_line, [change["parent"], change["steps"]], change["time"], **QUIET)
    change["length"].input(lengths, [change["parent"], change["length"]], [change["steps"], change["ascent"]], **QUIET)
    change["escape"].input(ascends, change["escape"], [change["ascent"], change["start"]], **QUIET)


def _wire_export(desk: Desk, panel: Panel, watched: gr.State) -> None:
    def hand_out(run_id: str | None, kind: str) -> dict[Any, Any]:
        try:
            return {panel.exported: gr.File(value=str(desk.export(run_id or "", kind)), visible=True), panel.note: ""}
        except ERRORS as error:
            return {panel.note: markup.message(_sentence(error), bad=True)}

    panel.export.click(
        hand_out, [watched, panel.kind], [panel.exported, panel.note],
        concurrency_id="device", concurrency_limit=1, api_visibility="private",
    )  # fmt: skip


def _wire_client(desk: Desk) -> None:
    """The same for programs: gradio_client calls these by name."""

    def told(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except ERRORS as error:
            raise gr.Error(_sentence(error), print_exception=False) from error

    def state(run_id: str) -> dict[str, Any]:
        status = desk.manager.status(run_id)
        return {**vars(status), "preview": None}

    def generate(prompt: str, steps: int | None = None, seed: int | None = None, model: str = TOYBOX, settings: str = "") -> str:
        """Queue a generation; returns the run's id."""
        return told(lambda: desk.generate(make_config(prompt, "auto", model, steps, seed, settings=settings)))

    def edit(
        run: str, prompt: str, escape: str | None = None, steps: int | None = None, ascent_steps: int | None = None, scale: float = 0.01
    ) -> str:
        """Queue an edit of a finished run; returns the new run's id."""
        return told(lambda: desk.edit(run, prompt, escape=escape, steps=steps, ascent_steps=ascent_steps, scale=scale))

    def status(run: str) -> dict:
        """State, step, phase and time left of a run."""
        return told(lambda: state(run))

    def runs() -> list[str]:
        """Ids of all runs, oldest first."""
        return [run.id for run in desk.manager.runs()]

    def stop(run: str) -> str:
        """Save and stop a run."""
        told(lambda: desk.manager.stop(run))
        return run

    def resume(run: str) -> str:
        """Go on with a stopped run."""
        return told(lambda: desk.resume(run))

    for quick in (generate, edit, status, runs, stop, resume):
        gr.api(quick, api_name=quick.__name__, queue=False)

    def export(run: str, format: str = "glb") -> str:
        """Make a file to download; returns its path below the server's folder of exports."""
        return told(lambda: str(desk.export(run, format).relative_to(desk.exports)))

    gr.api(export, api_name="export", concurrency_id="device", concurrency_limit=1)


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


HELP = f"""<div class="help"><h3>How it goes</h3><ol>
<li><b>Create</b>: name an object. A small random cloud becomes it, pulled by what the text-to-image model wants to see from every side.</li>
<li><b>Edit</b>: choose a finished run and say what it should become. With <i>anneal</i> the first steps go uphill on the new
prompt at S times the learning rate, so that the object melts a little, and then down again.</li>
<li><b>Gallery</b>: all runs, edits under what they were made from; those made at the command line as well.</li></ol>
<p>Jobs run here, one at a time, and go on when the page is closed. Stop saves; Continue goes on exactly there. Whether annealing
beats plain resuming is measured, not assumed: see docs/measurements.md. Enter in a prompt starts; Tab walks through everything.</p>
<p>dreamsa {__version__}. Nothing leaves this machine, and nothing is loaded from elsewhere, unless a model of the Hub is asked for.</p>
<h3>This machine</h3></div>"""


def launch(
    desk: Desk, host: str = "127.0.0.1", port: int | None = None, share: bool = False, browser: bool = False
) -> tuple[gr.Blocks, str]:
    """Serve the page from threads of this process; returns it and its address.

    Raises:
        OSError: The port is taken.
    """
    desk.exports.mkdir(parents=True, exist_ok=True)
    page = build(desk)
    page.queue(max_size=QUEUE, default_concurrency_limit=1)
    _, address, shared = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        footer_links=["api", "settings"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        allowed_paths=[str(desk.exports)],
        max_file_size=LARGEST_UPLOAD,
        theme=_theme(),
        css_paths=Path(__file__).with_name("page.css"),
    )
    return page, shared or address


def _theme() -> gr.themes.Base:
    fonts: Any = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # the system's own: nothing is fetched
    return gr.themes.Default(primary_hue="violet", neutral_hue="zinc", **fonts).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        layout_gap="10px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
    )


def serve(
    host: str = "127.0.0.1", port: int | None = None, runs: Path | str | None = None, share: bool = False, browser: bool = False
) -> int:
    """Serve until SIGINT or SIGTERM, then save and stop what runs; returns the signal's number."""
    signals = api.stop_on_signals()
    desk = open_desk(runs)
    page, address = launch(desk, host, port, share, browser)
    print(f"The page is at {address}   (runs: {desk.manager.folder}; Ctrl-C saves and stops)", flush=True)
    while not signals:
        time.sleep(0.2)
    desk.manager.close()
    page.close(verbose=False)
    return signals[0]
