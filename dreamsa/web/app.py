"""The web page: builds it and serves it.

Jobs belong to the server, not to a connection: reloading or closing the page, or opening a second
one, does not affect them. Input from the browser is untrusted: ids are looked up and prompts are
text.
"""

import os
import socket
import sys
import time
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError as error:
    raise ImportError(
        "The page needs gradio, which is not installed. Install it with: pip install 'dreamsa[web]'"
    ) from error

from dreamsa.diagnostics import doctor
from dreamsa.runs import RunError
from dreamsa.signals import stop_on_signals
from dreamsa.version import __version__
from dreamsa.web import markup
from dreamsa.web.client import add_endpoints
from dreamsa.web.controller import Controller, open_controller
from dreamsa.web.forms import CreateForm, EditForm
from dreamsa.web.guard import MAX_BODY, Guard
from dreamsa.web.panel import QUIET, SELECT_RUN, Panel, scroll_to

POLL_SECONDS = 1.5
FIRST_PORT = 7860
THEME = gr.themes.Default(
    primary_hue="violet",
    neutral_hue="zinc",
    font=("system-ui", "sans-serif"),  # no downloads
    font_mono=("ui-monospace", "monospace"),
).set(
    body_text_color_subdued="*neutral_600",
    layout_gap="10px",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)
HELP = f"""<div class="help"><h3>How it works</h3><ol>
<li><b>Create</b>: enter a prompt. Training starts from a small cloud and changes it until a
text-to-image model recognizes the prompt from all sides. Draft, Standard and Fine are a third, all
and twice the usual steps.</li>
<li><b>Edit</b>: select a run, enter a new prompt and choose how bold to be. Training resumes from
the run's scene on the new prompt; the run itself is never changed.</li>
<li><b>Gallery</b>: all runs, including those of the command line. Edits are below the run that they
were made from.</li></ol>
<h3>How bold an edit is</h3><ul>
<li><b>Careful</b> (plain) only descends from the scene as it is.</li>
<li><b>Balanced</b> (interpolate), the default, first moves the scene part of the way towards a
random one, so that it leaves the form that it has settled in, then descends. In the measurements of
this project it turned the most objects and colours into what was asked for.</li>
<li><b>Start over</b> (fresh) begins with a random scene.</li>
<li><b>Keep exactly</b>: the shape, for another colour, or the colours stay as they are, to the bit;
under Advanced, everything outside of a region does.</li>
<li>Under Advanced: <b>anneal</b> ascends on the new prompt for a fifth of the steps before it
descends, the method that this project began with; and all numbers of the methods.</li></ul>
<h3>What you get</h3><p>The object as a GLB, to rotate here and to open in browsers, Blender and
game engines; a turntable and twelve views; other formats under Export. After a run of the embedded
model a second model, which took no part in the training, says what it sees.</p>
<p>Jobs run on this server, one at a time per device, and continue when the page is closed. Stop
saves a job and Resume continues it from there; a stopped run can be edited and exported as it is.
Removed runs go to a trash folder. Enter in a prompt field starts a job.</p>
<p>dreamsa {__version__}. Nothing is sent, and nothing is downloaded.</p>
<h3>This machine</h3></div>"""


def serve(
    host: str,
    port: int | None,
    runs: Path | str | None,
    share: bool,
    open_browser: bool,
    hosts: Collection[str] = (),
    models: Collection[str] = (),
) -> int:
    """Serve until SIGINT or SIGTERM, then save and stop all jobs; returns the signal's number.

    Jobs that were waiting or running when an earlier server was killed are queued again.

    Args:
        hosts: Further names of this server, such as a proxy's.
        models: Further models that the page offers.
    """
    port = free_port(host, port)
    signals = stop_on_signals()
    with TemporaryDirectory(prefix="dreamsa-web-", ignore_cleanup_errors=True) as private:
        os.environ["GRADIO_TEMP_DIR"] = private  # else a folder that all users of a machine share
        controller = open_controller(runs, Path(private) / "exports", models)
        page, address = launch(
            controller,
            [*hosts, *([".gradio.live"] if share else [])],
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=open_browser,
        )
        folder = controller.manager.folder
        print(f"The page is at {address}   (runs: {folder}; Ctrl-C saves and stops)", flush=True)
        if host in ("0.0.0.0", "::"):
            known = ", ".join(f"http://{name}:{port}" for name in _addresses())
            print(f"All of this network can use it, also at {known or 'this machine'}.", flush=True)
        controller.manager.restore()
        while not signals:
            time.sleep(0.2)
        ended = controller.manager.close()
        page.close(verbose=False)
    if not ended:  # a step takes longer than the time to wait; its thread cannot be ended otherwise
        print("dreamsa: a job did not stop in time; its last checkpoint is kept.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(128 + signals[0])
    return signals[0]


def free_port(host: str, wanted: int | None) -> int:
    """The port to listen on: as wanted, else the first free one from 7860.

    Raises:
        OSError: The wanted one is taken, or the address is not one of this machine.
    """
    tried = range(FIRST_PORT, FIRST_PORT + 100) if wanted is None else [wanted]
    found = next((port for port in tried if _is_free(host, port)), None)
    if found is not None:
        return found
    if wanted is None:
        raise OSError(f"The ports from {FIRST_PORT} to {tried[-1]} are taken. Name one: --port N.")
    following = range(wanted + 1, min(wanted + 100, 65536))
    other = next((port for port in following if _is_free(host, port)), None)
    hint = f"{other} is free: dreamsa web --port {other}" if other else "Name another with --port."
    raise OSError(f"Port {wanted} on {host} is taken or not allowed. {hint}")


def _is_free(host: str, port: int) -> bool:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except (OSError, OverflowError):
        return False
    return True


def _addresses() -> list[str]:
    """This machine's addresses in its network."""
    try:
        return socket.gethostbyname_ex(socket.gethostname())[2]
    except OSError:
        return []


def launch(
    controller: Controller, hosts: Collection[str] = (), **options: Any
) -> tuple[gr.Blocks, str]:
    """Serve the page from threads of this process; returns it and its address.

    `options` are those of gradio's `launch`; `hosts` are further names of this server.

    Raises:
        OSError: The port is taken. ValueError: There is no such port.
    """
    port = options.get("server_port")
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"--port must lie in [1, 65535], got {port}.")
    local = ["127.0.0.1", "localhost", "::1"]  # gradio asks itself once, never through a proxy
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), *local]))
    controller.exports.mkdir(parents=True, exist_ok=True)
    page = build(controller)
    page.queue(max_size=16, default_concurrency_limit=1)  # for exports and test runs only
    _, address, shared = page.launch(
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        footer_links=["api", "settings"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        allowed_paths=[str(controller.exports)],
        max_file_size=MAX_BODY,
        strict_cors=True,
        app_kwargs={"middleware": [Middleware(Guard, hosts=hosts)]},
        theme=THEME,
        css_paths=Path(__file__).with_name("app.css"),
        **options,
    )
    return page, shared or address


def _editable_or_skip(controller: Controller, run_id: str | None) -> Any:
    """The run if it can be edited, else no change."""
    try:
        return run_id if controller.manager.status(run_id).editable else gr.skip()
    except RunError:
        return gr.skip()


def build(controller: Controller) -> gr.Blocks:
    with gr.Blocks(title="dreamsa", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(
            "<header><h1>dreamsa</h1>"
            "<p>Turn words into 3-D objects, and change them with more words.</p></header>"
        )
        strip = gr.HTML(elem_id="strip")
        followed = gr.State(None)
        with gr.Row(elem_classes="split"):
            with (
                gr.Column(scale=5, min_width=280, elem_id="forms"),
                gr.Tabs(selected="create") as tabs,
            ):
                with gr.Tab("Create", id="create"):
                    create_form = CreateForm(controller.models)
                with gr.Tab("Edit", id="edit") as edit_tab:
                    edit_form = EditForm()
                with gr.Tab("Gallery", id="gallery"):
                    words = "Edits are below the run they were made from. Select a run to show it."
                    gr.HTML(markup.hint(words))
                    gr.Textbox(
                        placeholder="Filter: words of a prompt, an id or a state",
                        show_label=False,
                        container=False,
                        elem_id="filter",
                    )
                    tree = gr.HTML(js_on_load=SELECT_RUN, elem_id="tree")
                with gr.Tab("Help", id="help") as help_tab:
                    gr.HTML(HELP)
                    facts = gr.HTML(elem_id="doctor")
            with gr.Column(scale=6, min_width=280, elem_id="panel"):
                panel = Panel(controller, strip, tree, edit_form.parent)
        panel.wire(page, gr.Timer(POLL_SECONDS))
        create_form.wire(panel, page)
        edit_form.wire(panel)
        # the Edit tab takes the run that is shown, once: a parent chosen there stays
        edit_tab.select(
            lambda run_id, followed: (
                gr.skip() if run_id == followed else _editable_or_skip(controller, run_id),
                run_id,
            ),
            [panel.run, followed],
            [panel.parent, followed],
            **QUIET,
        )
        panel.branch.click(
            lambda run_id: (gr.Tabs(selected="edit"), run_id),
            panel.run,
            [tabs, panel.parent],
            **QUIET,
        ).then(None, js=scroll_to("forms"), **QUIET)
        help_tab.select(lambda: markup.facts_table(doctor()), None, facts, **QUIET)
        add_endpoints(controller)
    return page
