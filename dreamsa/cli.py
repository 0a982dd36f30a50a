"""The command line: parse, call the API, print. Heavy modules are imported inside the commands, so that --help is quick.

Exit codes: 0 done; 1 refused or failed, with one sentence on stderr; 2 the command line itself is wrong; 3 the hours of a
comparison or benchmark are over and the same command goes on; 130 stopped by Ctrl-C and 143 by SIGTERM, all saved.
"""

import json as json_module
import os
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, Parameter

from dreamsa import __version__

if TYPE_CHECKING:
    from dreamsa.api import Job
    from dreamsa.config import RunConfig

app = App(
    name="dreamsa",
    version=__version__,
    help="Turn words into 3-D objects, and change them with more words.\n\n"
    'Start with:  dreamsa generate "a rabbit"   then:  dreamsa edit a-rabbit "a purple rabbit"',
)
toybox = App(name="toybox", help="The embedded world and the models trained on it.")
app.command(toybox)
benchmark = App(name="benchmark", help="Long measurements that can be run in pieces.")
app.command(benchmark)

QUIET_LIBRARIES = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""What keeps other libraries' notes and bars out of our output."""

Escape = Literal["auto", "anneal", "plain", "fresh", "noise", "interpolate", "regularizers"]
Preset = Literal["toybox", "paper", "sd"]


Runs = Annotated[Path | None, Parameter(name="--runs", help="Folder that holds runs. Default: $DREAMSA_RUNS or ./runs.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON lines on stdout instead of text.")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", help="Print only the run's folder at the end.")]
DryRun = Annotated[bool, Parameter(name="--dry-run", negative="", help="Check everything, print the configuration, run nothing.")]
Set = Annotated[list[str] | None, Parameter(name="--set", negative="", help="Change a setting: --set sds.guidance_scale=30. Repeatable.")]
Seed = Annotated[int | None, Parameter(help="Seed of everything random. Default: 0, or the parent's.")]
Steps = Annotated[int | None, Parameter(help="Optimizer steps. Default: the preset's.")]
JudgeName = Annotated[str | None, Parameter(name="--judge", help="toybox, a CLIP model's folder, or its Hub id.")]
Arms = Annotated[str, Parameter(help="all, or letters of A to G with commas.")]
Seeds = Annotated[int, Parameter(help="How many seeds.")]
Workers = Annotated[int | None, Parameter(help="Processes. Default: one per core.")]
Hours = Annotated[float | None, Parameter(help="Save and leave after this time; the same command goes on.")]


@app.command
def generate(
    prompt: str = "",
    *,
    preset: Preset | None = None,
    config: Annotated[Path | None, Parameter(help="A config.json, such as another run's, instead of a preset.")] = None,
    model: Annotated[str | None, Parameter(help="toybox, a folder, a .safetensors file or a Hub id.")] = None,
    steps: Steps = None,
    seed: Seed = None,
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
        What to make, e.g. "a rabbit".
    preset
        toybox: the embedded model, minutes on a CPU. paper, sd: Stable Diffusion on a GPU.
    """
    from dreamsa import api
    from dreamsa.config import preset as preset_config
    from dreamsa.config import read_config

    chosen = read_config(config) if config else preset_config(preset or ("toybox" if model in (None, "toybox") else "sd"), prompt)
    chosen = api.with_overrides(chosen, _overrides(set_, prompt=prompt or None, steps=steps, seed=seed, **{"model.model": model}))
    if dry_run:
        return _print_config(api.check(chosen)[0])
    _follow(api.generate(config=chosen, runs=runs), json, quiet)


@app.command
def edit(
    run: str,
    prompt: str,
    *,
    escape: Escape | None = None,
    steps: Steps = None,
    ascent_steps: Annotated[
        int | None, Parameter(help="How many of the steps ascend; implies --escape anneal, whose default is a fifth.")
    ] = None,
    scale: Annotated[float, Parameter(help="S: factor on the learning rate while ascending.")] = 0.01,
    eta: Annotated[float, Parameter(help="Share of the way towards a random scene, for interpolate and auto.")] = 0.6,
    moments: Literal["reset", "keep"] = "reset",
    preset: Preset | None = None,
    seed: Seed = None,
    set_: Set = None,
    runs: Runs = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Change a finished object with a new prompt.

    Example: dreamsa edit a-rabbit-7f3a "a purple rabbit"

    Parameters
    ----------
    run
        The parent: a run's id, the beginning of one, or its folder. It is never written to.
    prompt
        What it should become.
    escape
        How to leave the parent's local minimum: interpolate (the default: move part of the way towards a random scene first), auto (resume, and interpolate
        if the scene is not on its way after a while), anneal (ascend first), plain (descend only), fresh (from scratch), noise
        (one random displacement), regularizers (a control: ascend the opacity regulariser).
    moments
        Whether the optimizer forgets what it gathered on the parent's prompt.
    """
    from dreamsa import api

    job = api.edit(
        run, prompt, escape=escape, steps=steps, ascent_steps=ascent_steps, scale=scale, eta=eta, moments=moments,
        name=preset, seed=seed, overrides=_overrides(set_), runs=runs,
    )  # fmt: skip
    _follow(job, json, quiet)


@app.command
def resume(run: str, *, runs: Runs = None, json: Json = False, quiet: Quiet = False) -> None:
    """Go on with a stopped run, exactly where it was.

    Parameters
    ----------
    run
        A run's id, the beginning of one, or its folder.
    """
    from dreamsa import api

    _follow(api.resume(run, runs=runs), json, quiet)


@app.command
def render(
    run: str, *, frames: int = 60, resolution: int = 256, channel: Literal["rgb", "depth", "normal"] = "rgb", runs: Runs = None
) -> None:
    """Write a run's turntable (mp4, webp) and contact sheet anew, at any size.

    Parameters
    ----------
    frames
        Pictures around the object, 8 to 1000.
    resolution
        Side of a picture in pixels, even, 16 to 2048.
    channel
        depth and normal write turntable-depth and turntable-normal instead.
    """
    from dreamsa import api

    written = api.render(run, frames=frames, resolution=resolution, channel=channel, runs=runs)
    for path in written:
        print(path)
    if not any(path.suffix == ".mp4" for path in written):
        raise SystemExit(1)  # the warning on stderr says why


@app.command
def export(
    run: str,
    *,
    format: Literal["glb", "obj", "ply", "stl"] = "glb",
    out: Path | None = None,
    resolution: int = 128,
    faces: int = 20_000,
    texture: int = 1024,
    colour: Literal["texture", "vertex"] = "texture",
    scale: float = 1.0,
    unlit: bool = True,
    runs: Runs = None,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", help="Print only the file.")] = False,
) -> None:
    """Write a finished object as a mesh that opens in other programs.

    Example: dreamsa export a-rabbit-7f3a --format glb

    Parameters
    ----------
    run
        A run's id, the beginning of one, or its folder.
    format
        glb: one file with its texture, for browsers, Blender, game engines. obj: with MTL and PNG beside it. ply: colours
        per vertex. stl: shape only, for printing.
    out
        File, or folder that is there. Default: mesh.FORMAT in the run's folder; obj: mesh-obj/mesh.obj. NAME.zip packs an obj.
    resolution
        Cells along the object's longest side, 16 to 512.
    faces
        Most faces; 0 keeps all that marching cubes makes.
    texture
        Side of the texture in texels, 64 to 4096.
    colour
        A texture, or colours per vertex (quicker; Blender shows them only once they are wired to the material).
    scale
        Written units per world unit; an object is about 1 long. Slicers read an STL as millimetres: --scale 100 is 10 cm.
    unlit
        glb: show the colours as they are; --no-unlit lets viewers light them as a matte surface.
    """
    from dreamsa import api

    def stage(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    path = api.export(
        run, format=format, out=out, resolution=resolution, texture=texture, faces=faces or None, colour=colour,
        scale=scale, unlit=unlit, stage=stage, runs=runs,
    )  # fmt: skip
    print(path)


@app.command(name="evaluate")
def evaluate_(run: str, *, judge: JudgeName = None, runs: Runs = None, json: Json = False) -> None:
    """Let the judge look at a finished run from eight sides; an edit is measured against its parent too.

    Writes RUN/evaluation.json and RUN/evaluation.png.

    Example: dreamsa evaluate a-purple-rabbit
    """
    from dreamsa.evaluate.scores import evaluate_run

    _print_facts(evaluate_run(run, judge=judge, runs=runs), json)


@app.command
def compare(
    run: str,
    prompt: str,
    *,
    arms: Arms = "all",
    seeds: Seeds = 3,
    steps: Steps = None,
    ascent_steps: Annotated[int | None, Parameter(help="How many of the steps ascend, in arms that do. Default: a fifth.")] = None,
    scale: Annotated[float, Parameter(help="S: factor on the learning rate while ascending.")] = 0.01,
    judge: JudgeName = None,
    out: Annotated[Path | None, Parameter(help="Folder of the comparison. Default: RUNS/comparisons/PARENT-PROMPT.")] = None,
    workers: Workers = None,
    hours: Hours = None,
    set_: Set = None,
    runs: Runs = None,
) -> None:
    """Edit a run in several ways at equal UNet calls from the same parent, and write one report that opens from disk.

    Arms: A plain resume, optimizer moments kept; B plain resume, moments reset; C from scratch; D ascent, then descent (ours);
    E a random displacement and F an interpolation to a random scene (Perturb-and-Revise), both as far as D has moved; G ascent of
    the regularisers only; H an interpolation by eta; I auto. With the parent's own prompt and --set it is a repair. What has finished is not run again: after a stop the same command goes on.

    Example: dreamsa compare a-rabbit "a purple rabbit" --arms B,D,E --seeds 3
    """
    from dreamsa.evaluate.compare import compare as run_comparison

    stop = _StopAfter(hours)
    lines = run_comparison(
        run, prompt, arms=arms, seeds=seeds, steps=steps, ascent_steps=ascent_steps, scale=scale, judge=judge, out=out, workers=workers,
        overrides=_overrides(set_), runs=runs, stop=stop,
    )  # fmt: skip
    _tell(lines, stop)


@benchmark.command(name="edits")
def benchmark_edits_(
    out: Path,
    *,
    arms: Arms = "all",
    seeds: Seeds = 3,
    judge: JudgeName = None,
    workers: Workers = None,
    hours: Hours = None,
    smoke: Annotated[bool, Parameter(negative="", help="The same machinery in a minute; its numbers mean nothing.")] = False,
    set_: Set = None,
) -> None:
    """Edit toybox objects in 30 ways of five kinds with every arm, and write one report that opens from disk.

    What has finished is not run again: run it in pieces with --hours 2 until it exits with 0.

    Example: dreamsa benchmark edits runs/benchmark --hours 2
    """
    from dreamsa.evaluate.benchmark import benchmark_edits, new_benchmark

    stop = _StopAfter(hours)
    _tell(benchmark_edits(new_benchmark(out, arms, seeds, judge, _overrides(set_), smoke), workers=workers, stop=stop), stop)


@app.command(name="list")
def list_(*, runs: Runs = None, json: Json = False) -> None:
    """List all runs as a tree: edits stand under the run they were made from."""
    from dreamsa import api

    records = [{**run.record, "status": run.status} for run in api.runs(runs)]
    if json:
        print(json_module.dumps(records))
        return
    from rich.console import Console
    from rich.tree import Tree

    if not records:
        print('No runs yet. Start with: dreamsa generate "a rabbit"')
        return
    tree = Tree("runs", hide_root=True)
    nodes: dict[str, Tree] = {}
    for record in records:
        from rich.markup import escape as plain

        line = f"[bold]{record['id']}[/bold]  {plain(record['prompt'])}  [dim]{record['status']} {record['step']}/{record['steps']}[/dim]"
        nodes[record["id"]] = nodes.get(record["parent"], tree).add(line)
    Console(highlight=False).print(tree)


@app.command
def show(run: str, *, runs: Runs = None, json: Json = False) -> None:
    """Show one run: prompt, lineage, status, device, newest numbers, files."""
    from dreamsa import api

    _print_facts(api.show(run, runs), json)


@app.command
def prompts(prompt: str, *, json: Json = False) -> None:
    """Print the exact text that each view is asked for with."""
    from dreamsa import api

    _print_facts(api.prompts(prompt), json)


@app.command
def doctor(*, json: Json = False) -> None:
    """Show what this machine has: device, backends, versions, models, and how to build tiny-cuda-nn."""
    from dreamsa import api

    _print_facts(api.doctor(), json)


@app.command
def web(
    *,
    host: Annotated[str, Parameter(help="Address to listen at. 0.0.0.0 lets the whole network in.")] = "127.0.0.1",
    port: Annotated[int | None, Parameter(help="Default: the first free one from 7860.")] = None,
    runs: Runs = None,
    share: Annotated[bool, Parameter(negative="", help="Ask gradio for a public link: anybody who knows it can use this machine.")] = False,
    open_: Annotated[bool, Parameter(name="--open", negative="", help="Open the page in the browser.")] = False,
) -> None:
    """Start the web page: create, edit, compare and export. Jobs go on when it is closed; Ctrl-C saves and stops them."""
    from dreamsa.web.page import serve

    raise SystemExit(128 + serve(host, port, runs, share, open_))


@app.command
def bench(*, steps: int = 30, set_: Set = None, json: Json = False) -> None:
    """Time one step of score distillation and its parts, and the hash grid against the usual torch one."""
    from dreamsa.evaluate.bench import bench as run_bench

    _print_facts(run_bench(steps, _overrides(set_)), json)


@toybox.command
def sheet(out: Path = Path("toybox.png")) -> None:
    """Draw every object of the toybox from six sides."""
    from dreamsa.toybox.sheet import world_sheet

    print(world_sheet(out))


@toybox.command
def train(
    folder: Path,
    *,
    stage: Literal["all", "pictures", "text", "autoencoder", "diffusion", "judge"] = "all",
    steps: int | None = None,
    pictures: int = 20_000,
    seed: int = 0,
    device: str = "auto",
    start: Path | None = None,
) -> None:
    """Train the embedded models from nothing, or go on where an earlier call stopped.

    Parameters
    ----------
    folder
        Where everything is kept; the finished models appear in FOLDER/toybox-sd and FOLDER/toybox-clip.
    stage
        One stage, or all of them in order.
    steps
        Optimizer steps of the stage; default: the recipe's.
    start
        A folder that holds a finished toybox-sd and toybox-clip, such as assets: keep its autoencoder, train the rest further.
    """
    from dreamsa.toybox.recipe import train_toybox

    for line in train_toybox(folder, stage, steps, pictures, seed, device, start):
        print(line, flush=True)


@toybox.command
def evaluate(
    model: str = "toybox", *, per_object: int = 12, guidance: float = 5.0, seed: int = 0, sheet: Path | None = None, json: Json = False
) -> None:
    """Let the judge name the text-to-image model's own pictures: object, colour and view.

    Parameters
    ----------
    per_object
        Pictures per object; colours and views are drawn at random.
    sheet
        Also write the pictures as one PNG.
    """
    from dreamsa.toybox.evaluate import evaluate_model

    _print_facts(evaluate_model(model, per_object, guidance, seed, sheet), json)


def _overrides(pairs: list[str] | None, **given: Any) -> dict[str, Any]:
    """--set pairs and the flags that stand for settings, as one dictionary. Values are JSON where they can be, else text."""
    from dreamsa.config import parse_setting

    return {key: value for key, value in given.items() if value is not None} | dict(map(parse_setting, pairs or []))


def _print_config(config: "RunConfig") -> None:
    from dreamsa.config import to_json

    print(json_module.dumps(to_json(config), indent=2))


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json_module.dumps(facts))
        return
    for line in _lines(facts):
        print(line)


def _lines(facts: dict[str, Any], indent: str = "") -> Iterable[str]:
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            yield f"{indent}{key}"
            yield from _lines(value, indent + "  ")
        elif value is not None:
            yield f"{indent}{key:<{width}}  {value}"


def _follow(job: "Job", as_json: bool, quiet: bool) -> None:
    """Show a job's progress to its end. A first Ctrl-C or SIGTERM saves and says how to go on."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    from dreamsa.api import stop_on_signals

    if int(os.environ.get("RANK", "0")) > 0:  # under `accelerate launch` one process talks
        job.wait()
        return
    signals, run = stop_on_signals(), job.run
    try:
        for _ in _shown(job, as_json, quiet):
            if signals:
                break
    finally:
        job.stop()
    if signals and run.status != "finished":
        print(f"Stopped at step {run.record['step']}; everything is saved. Go on with: dreamsa resume {run.id}", file=sys.stderr)
        raise SystemExit(128 + signals[0])
    decision = run.record.get("decision")
    if as_json:
        print(
            json_module.dumps({"event": "finished", "run": run.id, "path": str(run.path), **({"decision": decision} if decision else {})})
        )
    elif quiet:
        print(run.path)
    else:
        if decision:
            print(f"auto {decision}.", file=sys.stderr)
        print(f'{run.path}\n  turntable.mp4, turntable.webp, contact_sheet.png\nChange it:  dreamsa edit {run.id} "..."')


def _shown(job: "Job", as_json: bool, quiet: bool) -> Iterable[Any]:
    if as_json:
        for progress in job:
            facts = {**progress.result._asdict(), "event": "step", "steps": progress.steps, "eta_seconds": round(progress.eta_seconds, 1)}
            print(json_module.dumps({**facts, "run": job.run.id, "preview": str(progress.preview or "")}), flush=True)
            yield progress
        return
    if quiet:
        yield from job
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    console.print(
        f"run [bold]{job.run.id}[/bold], device {job.run.record['device']}, hash grid {job.run.record['backend']}", highlight=False
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("load", total=None, note="")
        shown = None
        for progress in job:
            note = f"{progress.seconds_per_step * 1000:.0f} ms/step, {progress.eta_seconds:.0f} s left"
            bar.update(task, description=progress.phase, completed=progress.step, total=progress.steps, note=note)
            if progress.preview != shown:
                shown = progress.preview
                if not console.is_terminal:
                    console.print(f"step {progress.step}/{progress.steps} {progress.phase}, {note}, preview {shown}", highlight=False)
            yield progress


class _StopAfter:
    """Whether it is time to save and leave: after a signal, or after some hours."""

    def __init__(self, hours: float | None) -> None:
        from dreamsa.api import stop_on_signals

        if hours is not None and not 0 < hours <= 10_000:
            raise ValueError(f"hours must lie in (0, 10000], got {hours:g}.")
        self.signals = stop_on_signals()
        self.deadline = None if hours is None else time.monotonic() + 3600 * hours

    def __call__(self) -> bool:
        return bool(self.signals) or (self.deadline is not None and time.monotonic() > self.deadline)


def _tell(lines: Iterable[str], stop: _StopAfter) -> None:
    """Print what a comparison says as it comes; after a stop, how to go on."""
    for line in lines:
        print(line, flush=True)
    if stop():
        print("Stopped; everything is saved. The same command goes on.", file=sys.stderr)
        raise SystemExit(128 + stop.signals[0] if stop.signals else 3)


def fail(message: str) -> NoReturn:
    """One sentence on stderr, exit code 1."""
    print(f"dreamsa: {message}", file=sys.stderr)
    raise SystemExit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Users' mistakes are one sentence; --debug shows where any error came from."""
    tokens = sys.argv[1:] if arguments is None else arguments
    for name, value in QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    warnings.showwarning = lambda message, *_, **__: print(f"dreamsa: warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    try:
        app(tokens)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if debug:
            raise
        fail(" ".join(str(error).split()) or type(error).__name__)


if __name__ == "__main__":
    main()
