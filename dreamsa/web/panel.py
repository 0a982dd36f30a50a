"""The panel, which shows one run and its actions.

Each browser tab polls. An update carries only the components whose content has changed since the
previous update of the tab.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import gradio as gr

from dreamsa.config import RunConfig
from dreamsa.editing import ascent_steps
from dreamsa.evaluation.verdict import verdict
from dreamsa.runs import Run, RunError
from dreamsa.web import commands, images, markup, pace
from dreamsa.web.controller import ERRORS, EXPORTS, Controller
from dreamsa.web.jobs import BUSY, Status

QUIET: Any = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""For quick events, which bypass gradio's queue so that a full one never blocks the display."""
EXCLUSIVE: Any = {"concurrency_id": "device", "concurrency_limit": 1}
"""For slow events, which run one at a time."""
UNCHECKED: Any = {"allow_custom_value": True}
"""For choices of runs, which the handlers check. Gradio keeps each session's choices without a
lock: two polls at a time can lose some, and gradio would then refuse a valid one."""
SELECT_RUN = """element.addEventListener('click', event => {
  const button = event.target.closest('button[data-run]');
  if (button) trigger('click', {run: button.dataset.run});
});
const filter = () => {
  const field = document.querySelector('#filter input, #filter textarea');
  const words = (field?.value ?? '').toLowerCase();
  for (const row of element.querySelectorAll('.run'))
    row.hidden = !row.textContent.toLowerCase().includes(words);
};
document.addEventListener('input', event => { if (event.target.closest('#filter')) filter(); });
new MutationObserver(filter).observe(element, {childList: true, subtree: true});"""

Parts = dict[str, tuple[Any, Callable[[], Any]]]
"""By name of a component: (what its content depends on, a function that returns the content)."""


class Panel:
    """The components that show a run, and those elsewhere that are updated with them."""

    def __init__(
        self, controller: Controller, strip: gr.HTML, tree: gr.HTML, parent: gr.Dropdown
    ) -> None:
        self.controller = controller
        self.strip, self.tree, self.parent = strip, tree, parent
        self.run = gr.State(None)
        """Id of the run shown."""
        self.shown = gr.State({})
        """What the content of each component depended on at the previous update."""
        fixed: Any = {"interactive": False}
        hidden: Any = {"visible": False, **fixed}
        self.card = gr.HTML("<p class='hint'>No runs yet. Create one.</p>", elem_id="card")
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop", elem_id="stop", min_width=80, **fixed)
            self.resume = gr.Button("Resume", elem_id="continue", min_width=80, **fixed)
            self.branch = gr.Button("Edit this", elem_id="branch", min_width=80, **fixed)
            self.bin = gr.Button("Remove", elem_id="remove", min_width=80, **fixed)
        self.note = gr.HTML(elem_id="note")
        self.model = gr.Model3D(
            label="The object: drag to rotate, scroll to zoom",
            elem_id="model",
            height=380,
            clear_color=(0.7, 0.7, 0.7, 1.0),
            camera_position=(60, 75, 2.1),
            interactive=False,
            visible="hidden",  # not False: gradio draws only what comes after the viewer is there
        )
        self.download = gr.DownloadButton(
            "Download the object (GLB)", elem_id="download", visible=False
        )
        with gr.Accordion("Export and download", open=False), gr.Row(elem_classes="actions"):
            kinds = [(label, kind) for kind, label in EXPORTS.items()]
            self.kind = gr.Dropdown(
                kinds, value="glb", label="Format", min_width=160, scale=3, elem_id="kind"
            )
            self.export = gr.Button("Export", elem_id="export", min_width=90, scale=1)
        self.exported = gr.File(label="Exported", elem_id="exported", **hidden)
        self.turntable = gr.HTML(elem_id="turntable")
        self.slider = gr.ImageSlider(
            label="Before and after, same camera",
            elem_id="slider",
            buttons=["fullscreen"],
            **hidden,
        )
        self.sheet = gr.Image(
            label="Views",
            elem_id="sheet",
            alt_text="views of the object",
            buttons=["download", "fullscreen"],
            **hidden,
        )
        self.compared = gr.Dropdown(
            [], label="Compare with", elem_id="compared", visible=False, **UNCHECKED
        )
        with gr.Accordion("Details", open=False, elem_id="details"):
            self.curve = gr.HTML(elem_id="curve")
        code: Any = {"wrap_lines": True, "max_lines": 8, **fixed}
        with gr.Accordion("Repeat this run", open=False):
            self.cli = gr.Code(None, "shell", label="Command line", elem_id="cli", lines=2, **code)
            self.python = gr.Code(None, "python", label="Python", elem_id="python", lines=4, **code)

    @property
    def inputs(self) -> list[Any]:
        return [self.run, self.compared, self.parent, self.shown]

    @property
    def outputs(self) -> list[Any]:
        return [part for part in vars(self).values() if isinstance(part, gr.components.Component)]

    def wire(self, page: gr.Blocks, timer: gr.Timer) -> None:
        manager = self.controller.manager

        def stop(run_id: str) -> tuple[None, str]:
            manager.stop(run_id)
            return None, ""  # the badge says what happens

        def resume(run_id: str) -> tuple[str, str]:
            return self.controller.resume(run_id), ""

        def remove(run_id: str) -> tuple[str | None, str]:
            place = self.controller.remove(run_id)
            self.controller.forget_listing()
            return manager.current(), f"Removed. To bring it back, move {place} beside the runs."

        def select(event: gr.EventData, _: Any, *inputs: Any) -> dict[Any, Any]:
            try:
                status = manager.status(getattr(event, "run", None))
            except RunError as error:
                return {self.note: markup.message(error)}
            updates = {**self.update(status.id, *inputs), self.run: status.id}
            return updates | ({self.parent: status.id} if status.editable else {})

        updates: Any = {"inputs": self.inputs, "outputs": self.outputs, **QUIET}
        self.stop.click(self.answer(self.note, stop), **updates)
        self.resume.click(self.answer(self.note, resume), **updates)
        self.bin.click(self.answer(self.note, remove), **updates)
        self.tree.click(select, **updates).then(None, js=scroll_to("panel"), **QUIET)
        self.compared.input(self.update, **updates)
        timer.tick(self.update, **updates)
        page.load(lambda: self.update(None, None, None, {}), None, self.outputs, **QUIET)
        self.export.click(
            self._write_export,
            [self.run, self.kind],
            [self.export, self.exported, self.note],
            api_visibility="private",
            show_progress="hidden",
            **EXCLUSIVE,
        )

    def _write_export(self, run_id: str | None, kind: str) -> Iterator[dict[Any, Any]]:
        """Export a run, showing each stage; the button cannot be pressed meanwhile."""
        stages: Queue[str | None] = Queue()
        with ThreadPoolExecutor(1) as pool:
            export = self.controller.export
            written = pool.submit(export, run_id or "", kind, stages.put)
            written.add_done_callback(lambda _: stages.put(None))
            yield {self.export: gr.Button("Exporting", interactive=False)}
            while (stage := stages.get()) is not None:
                yield {self.note: markup.message(f"Exporting: {stage}")}
        done = {self.export: gr.Button("Export", interactive=True)}
        try:
            path = str(written.result())
            yield {**done, self.exported: gr.File(value=path, visible=True), self.note: ""}
        except ERRORS as error:
            yield {**done, self.note: markup.message(error)}

    def answer(
        self, note: gr.HTML, act: Callable[..., tuple[str | None, str]]
    ) -> Callable[..., dict[Any, Any]]:
        """The handler of `answered` without the error."""
        handle = self.answered(note, act)
        return lambda *inputs: handle(*inputs)[0]

    def answered(
        self, note: gr.HTML, act: Callable[..., tuple[str | None, str]]
    ) -> Callable[..., tuple[dict[Any, Any], Exception | None]]:
        """A handler that calls `act`, shows its message in `note`, and updates the panel. It also
        returns the error, if there was one.

        Its inputs are the event's own, then those of an update. `act` takes the event's own and the
        id of the run shown; it returns the id of the run to show (None for the same) and a message.
        """

        def handle(*inputs: Any) -> tuple[dict[Any, Any], Exception | None]:
            *own, run_id, compared, parent, shown = inputs
            failure: Exception | None = None
            try:
                target, reply = act(*own, run_id)
            except ERRORS as error:
                target, reply, failure = None, error, error
            self.controller.forget_listing()
            run_id = target or run_id
            updates = self.update(run_id, compared, parent, shown)
            return {**updates, note: markup.message(reply), self.run: run_id}, failure

        return handle

    def update(
        self, run_id: str | None, compared: str | None, parent: str | None, shown: dict[str, Any]
    ) -> dict[Any, Any]:
        """New content, by component, of a page that shows `run_id`.

        Args:
            compared: Id of the run to compare with, as selected.
            parent: Id of the run to edit, as selected.
            shown: The state that the previous update left in `self.shown`.
        """
        manager = self.controller.manager
        try:
            status = manager.status(run_id)
        except RunError:
            current = manager.current()
            status = manager.status(current) if current else None
        selected = status.id if status else None
        parts = page_parts = _page_parts(self.controller, selected, parent)
        try:
            if status is not None:
                compared = compared or "" if shown.get("run") == selected else None
                parts = page_parts | _run_parts(self.controller, status, compared)
            updates = self._changes(parts, shown)
        except ERRORS as error:  # a file of the run is damaged
            parts = page_parts
            updates = self._changes(parts, shown)
            updates[self.card] = markup.message(error)
        updates[self.shown] = {"run": selected, **{name: part[0] for name, part in parts.items()}}
        if selected != run_id:  # else left alone: a poll must not undo a selection made meanwhile
            updates[self.run] = selected
        return updates

    def _changes(self, parts: Parts, shown: dict[str, Any]) -> dict[Any, Any]:
        changed = {name: get for name, (state, get) in parts.items() if shown.get(name) != state}
        return {getattr(self, name): get() for name, get in changed.items()}


def scroll_to(elem_id: str) -> str:
    """JavaScript that scrolls to an element where the page has one column."""
    element = f"document.getElementById('{elem_id}')"
    return f"() => {{ if (innerWidth < 700) {element}.scrollIntoView({{behavior: 'smooth'}}); }}"


def turntable_of(run: Run) -> str:
    """A run's turntable as HTML; empty if it has none."""
    return markup.animation(images.turntable(run), f"turntable of {run.prompt}")


def _finished(controller: Controller) -> list[tuple[str, str]]:
    """(label, id) of each run that can be compared."""
    return _labelled(controller, lambda status: status.state == "finished")


def _editable(controller: Controller) -> list[tuple[str, str]]:
    """(label, id) of each run that can be edited: also stopped ones, from their checkpoint."""
    return _labelled(controller, lambda status: status.editable)


def _labelled(controller: Controller, chosen: Callable[[Status], bool]) -> list[tuple[str, str]]:
    def label(one: Status) -> str:
        end = "" if one.state == "finished" else f", {one.state} at {one.step}/{one.steps}"
        return f"{one.prompt} ({one.id}{end})"

    statuses = (row[0] for row in controller.listing().rows)
    return [(label(one), one.id) for one in statuses if chosen(one)]


def _page_parts(controller: Controller, selected: str | None, parent: str | None) -> Parts:
    rows, damaged, failures, _ = controller.listing()
    strip = markup.strip(controller.manager.active_statuses(), failures)
    editable = _editable(controller)
    lines = [(status.id, status.state, bool(thumbnail)) for status, _, thumbnail in rows]
    return {
        "strip": (strip, lambda: strip),
        "tree": ((lines, damaged, selected), lambda: markup.tree(rows, selected, damaged)),
        "parent": (editable, lambda: _choice(editable, parent, selected)),
    }


def _choice(
    choices: list[tuple[str, str]], chosen: str | None, default: str | None, **changes: Any
) -> gr.Dropdown:
    """A dropdown with new choices. It keeps what is chosen in the browser as long as that is among
    them: the user may have chosen another since `chosen` was sent here."""
    ids = [run_id for _, run_id in choices]
    if chosen not in ids:
        changes["value"] = default if default in ids else next(iter(ids), None)
    return gr.Dropdown(choices=choices, **changes)


def _facts(run_id: str, record: dict[str, Any], config: RunConfig, parent: str) -> str:
    facts = f"{run_id}, seed {config.seed}, {config.model.model}, {record['device']}"
    edit = f", {config.edit.escape} from {parent}" if config.edit else ""
    return f"{facts}, hash grid {record['backend']}{edit}"


def _run_parts(controller: Controller, status: Status, compared: str | None) -> Parts:
    """The parts that show a run; `compared` None means the run's own parent."""
    manager, state, finished = controller.manager, status.state, status.state == "finished"
    run = manager.find(status.id)
    record, config = run.record, pace.config_of(run)
    parent = controller.listing().ids.get(record["parent"] or "", record["parent"] or "")
    ascent = ascent_steps(config)
    facts, says = _facts(run.id, record, config, parent), verdict(run) if finished else ""
    card = markup.card(status, ascent, record["lineage"], facts, says)

    others = [choice for choice in _finished(controller) if choice[1] != run.id]
    ids = [run_id for _, run_id in others]
    chosen, default = compared, parent if compared is None and parent in ids else ""
    compared = compared if compared in ids else default
    before = manager.find(compared) if compared and finished else None
    views = (run.id, finished, compared)
    sheet = run.path / "contact_sheet.png"
    pictured = sheet.is_file() and state not in BUSY
    image = sheet if pictured else status.preview
    metrics = run.path / "metrics.jsonl"
    logged = metrics.stat().st_mtime_ns if metrics.is_file() else 0

    def turntable() -> str:
        both = images.side_by_side(before, run) if before else None
        if before is None or both is None:
            return turntable_of(run) if finished else ""
        alt = f"turntables of {before.prompt} and {run.prompt}, in step"
        return markup.animation(images.data_uri(both), alt, (before.prompt, run.prompt))

    def slider() -> gr.ImageSlider:
        pair = images.before_and_after(before, run) if before else None
        return gr.ImageSlider(value=pair, visible=pair is not None)

    def enabled(*states: str) -> Callable[[], gr.Button]:
        return lambda: gr.Button(interactive=state in states)

    model = controller.model(run)
    modelled = (run.id, model.stat().st_mtime_ns if model else 0)
    return {
        "card": (card, lambda: card),
        "note": ((run.id, state), lambda: ""),
        "stop": ((state, run.id), enabled("queued", "running")),
        "resume": (state, enabled("created", "stopped", "failed")),
        "branch": (status.editable, lambda: gr.Button(interactive=status.editable)),
        "bin": (state, enabled("created", "stopped", "failed", "finished")),
        "model": (
            modelled,
            lambda: gr.Model3D(
                value=str(model) if model else None, visible=True if model else "hidden"
            ),
        ),
        "download": (
            modelled,
            lambda: gr.DownloadButton(
                value=str(model) if model else None, visible=model is not None
            ),
        ),
        "sheet": (
            (str(image or ""), image.stat().st_mtime_ns if image else 0),
            lambda: gr.Image(
                value=images.read_png(image) if image else None,
                visible=image is not None,
                label="Twelve views" if pictured else f"Step {status.step}",
            ),
        ),
        "turntable": (views, turntable),
        "slider": (views, slider),
        "compared": (
            (run.id, ids, finished),
            lambda: _choice([("nothing", ""), *others], chosen, default, visible=finished),
        ),
        "curve": ((run.id, logged), lambda: markup.curve(run.metrics(), ascent, status.steps)),
        "cli": (run.id, lambda: commands.command_line(run, manager.folder)),
        "python": (run.id, lambda: commands.python_code(run, manager.folder)),
        "exported": (run.id, lambda: gr.File(value=None, visible=False)),
    }
