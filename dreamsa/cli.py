"""The command line: parse, call the API, print. Heavy modules are imported inside the commands, so
that --help is quick.

Exit codes: 0 done; 1 refused or failed, with one sentence on stderr; 2 wrong command line; 3 the
hours of a comparison or benchmark are over and the same command continues it; 129, 130 and 143
stopped by SIGHUP, Ctrl-C and SIGTERM, saved.
"""

import json as json_module
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import App, Parameter

from dreamsa.choices import (
    ASCENT_SCALE,
    ESCAPES,
    MESH_FACES,
    MESH_RESOLUTION,
    TEXTURE_SIZE,
    TURNTABLE_FRAMES,
    TURNTABLE_RESOLUTION,
    Channel,
    ColourMode,
    EscapeName,
    Format,
    Keep,
    Moments,
    PresetName,
)
from dreamsa.commands.benchmark import benchmark, speed
from dreamsa.commands.follow import follow
from dreamsa.commands.models import models
from dreamsa.commands.options import (
    Anyway,
    Arms,
    AscentSteps,
    Device,
    DryRun,
    Hours,
    Json,
    JudgeName,
    Mesh,
    Name,
    Quiet,
    RunName,
    Runs,
    Scale,
    Seed,
    Seeds,
    Set,
    Steps,
    Workers,
)
from dreamsa.commands.output import StopAfter, one_line_json, overrides, print_facts, print_lines
from dreamsa.commands.toybox import toybox
from dreamsa.text import printable
from dreamsa.version import __version__

if TYPE_CHECKING:
    from cyclopts import CycloptsError

    from dreamsa.config import RunConfig

app = App(
    name="dreamsa",
    version=__version__,
    help="Turn words into 3-D objects, and change them with more words.\n\n"
    'Start with:  dreamsa generate "a rabbit"\n\nthen:  dreamsa edit a-rabbit "a purple rabbit"'
    "\n\n--debug, with any command, shows the traceback of an error. --install-completion lets "
    "the shell complete commands.",
    help_format="plaintext",  # parsing Markdown doubles the time of --help
)
app.command(toybox)
app.command(models)
app.command(benchmark)
app.command(speed, name="bench", show=False)
app.register_install_completion_command()

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # spinning threads slow down runs side by side
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Set before torch and other libraries load, unless the user has set them."""


@app.command
def generate(
    prompt: str = "",
    *,
    preset: PresetName | None = None,
    config: Annotated[
        Path | None, Parameter(help="A config.json, such as a run's, instead of a preset.")
    ] = None,
    model: Annotated[
        str | None,
        Parameter(help="toybox, sd15, sd21, a folder, a .safetensors file or a Hub id."),
    ] = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = None,
    mesh: Mesh = None,
    name: Name = None,
    anyway: Anyway = False,
    set_: Set = None,
    runs: Runs = None,
    json: Json = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Turn a prompt into a 3-D object.

    Example: dreamsa generate "a rabbit" --seed 1

    Parameters
    ----------
    prompt
        The object, e.g. "a rabbit".
    preset
        draft, standard, fine: a third, all or twice the model's usual steps. toybox: the embedded
        model, minutes on a CPU. paper, sd: Stable Diffusion on a GPU.
    """
    from dreamsa import api
    from dreamsa.config import read_config

    given = {"steps": steps, "seed": seed, "device": device, "mesh": mesh} | overrides(set_)
    whole = read_config(config) if config else None
    if whole and preset:
        raise ValueError(
            f"--config {config} and --preset {preset} both give a whole configuration. Leave "
            "one out."
        )
    chosen = api.generation(prompt, preset, model, given, whole)
    expected = _expected(chosen, runs, dry_run, anyway)
    if expected is None:
        return
    job = api.generate(config=chosen, name=name, anyway=anyway, runs=runs)
    follow(job, json, quiet, expected)


@app.command
def edit(
    run: RunName,
    prompt: str,
    *,
    escape: Annotated[
        EscapeName | None,
        Parameter(
            help="How to leave the parent's local minimum. "
            + " ".join(f"{name}: {row.sentence}." for name, row in ESCAPES.items())
            + " The numbers below override it."
        ),
    ] = None,
    eta: Annotated[
        float | None,
        Parameter(help="Fraction of the way towards a random scene before the first step, 0 to 1."),
    ] = None,
    ascent_steps: AscentSteps = None,
    scale: Scale = ASCENT_SCALE,
    moments: Annotated[
        Moments,
        Parameter(help="Whether the optimizer's moments are reset; only plain can keep them."),
    ] = "reset",
    strength: Annotated[
        float | None,
        Parameter(
            help="How much to change, 0 to 1, in place of --escape and --eta: eta is the strength, "
            "and the steps grow from a quarter of the usual number to one and a half times."
        ),
    ] = None,
    keep: Annotated[
        Keep | None,
        Parameter(help="Keep the shape, to recolour, or the colours, bit for bit."),
    ] = None,
    region: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="Change only this: box:x0,y0,z0,x1,y1,z1 or sphere:x,y,z,radius in world units, "
            "repeatable, or auto, where the model's predictions for the two prompts differ. "
            "z is up, the front +x.",
        ),
    ] = None,
    grow: Annotated[
        float,
        Parameter(help="Margin around the region into which new parts may grow, world units."),
    ] = 0.0,
    outside: Annotated[
        bool, Parameter(negative="", help="Change what lies outside of the region instead.")
    ] = False,
    steps: Steps = None,
    preset: PresetName | None = None,
    seed: Seed = None,
    device: Device = None,
    mesh: Mesh = None,
    name: Name = None,
    anyway: Anyway = False,
    set_: Set = None,
    runs: Runs = None,
    json: Json = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Change an object with a new prompt; the run it is made from is never written to.

    Examples:
    dreamsa edit a-rabbit-7f3a "a purple rabbit" --keep shape
    dreamsa edit a-mug "an orange mug" --region box:-0.6,0.2,-0.6,0.6,0.6,0.6 --grow 0.05

    With --dry-run it also writes an image of the region.

    Parameters
    ----------
    prompt
        What the object should become.
    preset
        draft, standard, fine: a third, all or twice the usual steps of an edit; or the preset whose
        number of steps an edit takes.
    """
    from dreamsa import api
    from dreamsa.runs import find_run, runs_folder

    found = find_run(run, runs_folder(runs))
    options: dict[str, Any] = {
        "escape": escape,
        "eta": eta,
        "ascent_steps": ascent_steps,
        "scale": scale,
        "moments": moments,
        "strength": strength,
        "keep": keep,
        "region": region or (),
        "grow": grow,
        "outside": outside,
        "steps": steps,
        "preset": preset,
    }
    changes = {"seed": seed, "device": device, "mesh": mesh} | overrides(set_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the edit itself warns of an unfinished parent
        planned = api.edit_config(found, prompt, **options, changes=changes)
    expected = _expected(planned, runs, dry_run, anyway)
    if dry_run:
        _, image = api.preview_edit(found, prompt, **options, changes=changes, runs=runs)
        if image is not None:
            print(f"The region: {image}", file=sys.stderr)
    if expected is None:
        return
    job = api.edit(found, prompt, **options, overrides=changes, name=name, anyway=anyway, runs=runs)
    follow(job, json, quiet, expected)


@app.command
def resume(run: RunName, *, runs: Runs = None, json: Json = False, quiet: Quiet = False) -> None:
    """Continue a stopped run exactly where it was."""
    from dreamsa import api

    follow(api.resume(run, runs=runs), json, quiet)


@app.command
def render(
    run: RunName,
    *,
    frames: Annotated[
        int, Parameter(help="Images around the object, 8 to 1000.")
    ] = TURNTABLE_FRAMES,
    resolution: Annotated[
        int, Parameter(help="Side of an image in pixels, even, 16 to 2048.")
    ] = TURNTABLE_RESOLUTION,
    channel: Annotated[
        Channel,
        Parameter(help="depth and normal write turntable-depth and turntable-normal instead."),
    ] = "rgb",
    out: Annotated[
        Path | None, Parameter(help="Folder for the files. Default: the run's own.")
    ] = None,
    runs: Runs = None,
) -> None:
    """Write a run's turntable (mp4, webp) and contact sheet again, at any size."""
    from dreamsa import api

    written = api.render(
        run,
        frames=frames,
        resolution=resolution,
        channel=channel,
        out=out,
        stage=_say,
        runs=runs,
    )
    for path in written:
        print(path)
    if not any(path.suffix == ".mp4" for path in written):
        raise SystemExit(1)  # a warning on stderr has said why


@app.command
def export(
    run: RunName,
    *,
    format: Format = "glb",
    out: Path | None = None,
    resolution: int = MESH_RESOLUTION,
    faces: int = MESH_FACES,
    texture: int = TEXTURE_SIZE,
    colour: ColourMode = "texture",
    scale: float = 1.0,
    unlit: bool = True,
    runs: Runs = None,
    quiet: Quiet = False,
) -> None:
    """Write an object as a mesh that opens in other programs.

    Example: dreamsa export a-rabbit-7f3a --format glb

    Parameters
    ----------
    format
        glb: one file with its texture, for browsers, Blender, game engines. obj: with MTL and PNG
        beside it. ply: colours per vertex. stl: shape only, for printing.
    out
        A file, or an existing folder. Default: mesh.FORMAT in the run's folder; obj:
        mesh-obj/mesh.obj. NAME.zip packs an obj.
    resolution
        Cells along the object's longest side, 16 to 512.
    faces
        Maximum number of faces; 0 keeps all faces of marching cubes.
    texture
        Side of the texture in texels, 64 to 4096.
    colour
        A texture, or colours per vertex (quicker; Blender needs them wired to the material).
    scale
        Written units per world unit; an object is about 1 long. Slicers read an STL as millimetres:
        --scale 100 is 10 cm.
    unlit
        glb: show the colours without lighting; --no-unlit lets viewers light a matte surface.
    """
    from dreamsa import api, outputs

    path = api.export(
        run,
        format=format,
        out=out,
        resolution=resolution,
        texture=texture,
        faces=faces or None,
        colour=colour,
        scale=scale,
        unlit=unlit,
        stage=outputs.silent if quiet else _say,
        runs=runs,
    )
    print(path)


@app.command
def evaluate(
    run: RunName, *, judge: JudgeName = None, runs: Runs = None, json: Json = False
) -> None:
    """Let a judge name a finished run from eight sides; an edit is also compared with its parent.

    Writes RUN/evaluation.json and RUN/evaluation.png.

    Example: dreamsa evaluate a-purple-rabbit
    """
    from dreamsa.evaluation import scores

    print_facts(scores.evaluate(run, judge=judge, runs=runs), json)


@app.command
def compare(
    run: RunName,
    prompt: str,
    *,
    arms: Arms = "all",
    seeds: Seeds = 3,
    steps: Steps = None,
    ascent_steps: AscentSteps = None,
    scale: Scale = ASCENT_SCALE,
    judge: JudgeName = None,
    out: Annotated[
        Path | None, Parameter(help="Folder. Default: RUNS/comparisons/PARENT-PROMPT.")
    ] = None,
    workers: Workers = None,
    hours: Hours = None,
    set_: Set = None,
    runs: Runs = None,
) -> None:
    """Edit a run by several methods at equal UNet calls from the same parent, and write one report
    that opens from disk.

    With the parent's own prompt and --set it is a repair. Finished trials are not run again: after
    a stop the same command continues.

    Example: dreamsa compare a-rabbit "a purple rabbit" --arms plain,ascent,noise-matched --seeds 3
    """
    from dreamsa.studies.compare import compare as run_comparison

    stop = StopAfter(hours)
    lines = run_comparison(
        run,
        prompt,
        arms=arms,
        seeds=seeds,
        steps=steps,
        ascent_steps=ascent_steps,
        scale=scale,
        judge=judge,
        out=out,
        workers=workers,
        overrides=overrides(set_),
        runs=runs,
        stop=stop,
    )
    print_lines(lines, stop)


@app.command(name="list")
def list_(*, runs: Runs = None, json: Json = False) -> None:
    """List all runs as a tree: edits below the run they were made from."""
    from dreamsa.runs import branches, damaged_runs, list_runs, runs_folder

    folder = runs_folder(runs)
    tree = [
        (branch, branch.run.record, branch.run.status) for branch in branches(list_runs(folder))
    ]
    damaged = damaged_runs(folder)
    if json:
        rows = [
            {**record, "id": branch.run.id, "status": status} for branch, record, status in tree
        ]
        broken = [
            {"id": path.parent.name, "status": "damaged", "path": str(path), "error": why}
            for path, why in damaged
        ]
        print(one_line_json(rows + broken))
        return
    for branch, record, status in tree:
        indent = "    " * (branch.depth - 1) + ("└── " if branch.depth else "")
        line = f"{branch.run.id}  {record['prompt']}  {status} {record['step']}/{record['steps']}"
        print(indent + printable(line))
    for _, why in damaged:
        print(f"damaged  {printable(why)}")
    if not tree and not damaged:
        print('No runs yet. Start with: dreamsa generate "a rabbit"')


@app.command
def show(run: RunName, *, runs: Runs = None, json: Json = False) -> None:
    """Show one run: prompt, lineage, status, device, newest numbers."""
    from dreamsa import api

    print_facts(api.show(run, runs), json)


@app.command
def rm(
    *names: Annotated[str, Parameter(help="Ids, their beginnings, or folders.")],
    anyway: Annotated[bool, Parameter(negative="", help="Also parents of other runs.")] = False,
    runs: Runs = None,
) -> None:
    """Move runs into the folder .trash beside them, from which they can be moved back."""
    from dreamsa.runs import find_run, runs_folder
    from dreamsa.trash import check, remove

    if not names:
        raise ValueError("Name the runs to remove, e.g. dreamsa rm a-rabbit-7f3a.")
    found = [find_run(name, runs_folder(runs)) for name in names]
    for run in found:
        check(run, anyway, [other.id for other in found])
    for run in found:
        target = remove(run, anyway=True)
        command = shlex.join(["mv", str(target), str(run.path)])
        print(f"{run.id} is in the trash. To bring it back: {command}")


@app.command
def examples(*, runs: Runs = None) -> None:
    """Copy the shipped examples into the folder of runs; those that are there stay as they are."""
    from dreamsa.runs import runs_folder
    from dreamsa.web.examples import install

    folder = runs_folder(runs)
    copied = install(folder, always=True)
    for run in copied:
        print(run.path)
    if not copied:
        print(f"All examples are in {folder} already.", file=sys.stderr)


@app.command
def prompts(prompt: str, *, json: Json = False) -> None:
    """Print the exact text that each view is conditioned on."""
    from dreamsa import api

    print_facts(api.prompts(prompt), json)


@app.command
def doctor(*, json: Json = False) -> None:
    """Show this machine's device, backends, versions, models, and how to build tiny-cuda-nn."""
    from dreamsa import diagnostics

    print_facts(diagnostics.doctor(), json)


@app.command
def demo(*, runs: Runs = None, seed: int = 0, steps: Steps = None) -> None:
    """Generate "a rabbit", edit it to "a purple rabbit", and write a page with both:
    RUNS/demo.html."""
    from dreamsa.demo import make_demo
    from dreamsa.runs import runs_folder

    for line in make_demo(runs_folder(runs), seed, steps):
        print(line, flush=True)


@app.command
def web(
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on. 0.0.0.0 admits the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int | None, Parameter(help="Default: the first free one from 7860.")] = None,
    runs: Runs = None,
    share: Annotated[
        bool,
        Parameter(
            negative="",
            help="Create a public link of gradio's: anybody who has it can use this machine.",
        ),
    ] = False,
    open_: Annotated[
        bool, Parameter(name="--open", negative="", help="Open the page in the browser.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        Parameter(
            negative="", help="A further name of this server, such as a proxy's. Repeatable."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        Parameter(negative="", help="A further model that the page offers. Repeatable."),
    ] = None,
) -> None:
    """Start the web page: create, edit, compare and export. Jobs continue when it is closed; Ctrl-C
    saves and stops them."""
    from dreamsa.web.app import serve

    raise SystemExit(128 + serve(host, port, runs, share, open_, allow_host or (), model or ()))


def _say(stage: str) -> None:
    """Show a stage of slow work: in place on a terminal, the first of a series in a log."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{stage}", end="", file=sys.stderr, flush=True)
    elif not stage.startswith("pictures") or " 4/" in stage:
        print(stage, file=sys.stderr, flush=True)


def _expected(config: "RunConfig", runs: Path | None, dry_run: bool, anyway: bool) -> str | None:
    """How long a configuration will take, in a line; None if it is not to be run, because it was
    only to be printed or the user has declined.

    Raises:
        ValueError: It cannot run, or would take days on this CPU and nobody agrees.
    """
    from dreamsa.guidance.hub import cpu_hours
    from dreamsa.job import check
    from dreamsa.runs import runs_folder
    from dreamsa.web import pace

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself warns
        config, facts = check(config, anyway)
    expected = pace.expectation(config, facts["device"], runs_folder(runs))
    hours = cpu_hours(config.model, config.steps) if facts["device"] == "cpu" else None
    if hours is not None:
        expected = f"On this CPU it takes at least {pace.duration(3600 * hours)}."
    if dry_run:
        from dreamsa.config import to_json

        print(expected, file=sys.stderr)
        print(json_module.dumps(to_json(config), indent=2))
        return None
    if hours is None or anyway:
        return expected
    if not sys.stdin.isatty():
        raise ValueError(f"{expected} Use --device cuda on a machine with a GPU, or add --anyway.")
    agreed = input(f"{expected} Start it? [y/N] ").strip().lower() in ("y", "yes")
    return expected if agreed else None


def _usage_error(error: "CycloptsError") -> str:
    """A wrong command line in words; rich would take brackets for markup."""
    from cyclopts import UnusedCliTokensError

    words = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError) and error.command_chain:
        verb = error.command_chain[0]
        rest = [str(token) for token in error.unused_tokens or []]
        if verb in ("generate", "edit", "compare"):
            words = f"There are words left over: {' '.join(rest)}. Put the prompt in quotes."
    return f"dreamsa: {words}".replace("[", r"\[")


def fail(message: str) -> NoReturn:
    """One sentence on stderr, exit code 1."""
    print(f"dreamsa: {printable(message)}", file=sys.stderr)
    raise SystemExit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Errors are one sentence; --debug shows the traceback."""
    tokens = sys.argv[1:] if arguments is None else arguments
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.showwarning = lambda message, *_, **__: print(
        f"dreamsa: warning: {printable(message)}", file=sys.stderr
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    try:
        app(tokens, error_formatter=_usage_error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of a pipe has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, ValueError | RuntimeError | OSError | ImportError)
        words = [str(error)] if known and str(error) else [f"{type(error).__name__}: {error}"]
        words += getattr(error, "__notes__", [])
        words += [] if known else ["This is a bug of dreamsa; --debug shows where."]
        fail(" ".join(" ".join(words).split()))


if __name__ == "__main__":
    main()
