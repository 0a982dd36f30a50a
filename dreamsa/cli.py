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
import time
import warnings
from collections.abc import Generator, Iterable
from contextlib import closing
from math import isfinite
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
    Stage,
)
from dreamsa.text import printable
from dreamsa.version import __version__

if TYPE_CHECKING:
    from dreamsa.job import Job
    from dreamsa.runs import Run

app = App(
    name="dreamsa",
    version=__version__,
    help="Turn words into 3-D objects, and change them with more words.\n\n"
    'Start with:  dreamsa generate "a rabbit"\n\nthen:  dreamsa edit a-rabbit "a purple rabbit"',
    help_format="plaintext",  # parsing Markdown doubles the time of --help
)
toybox = App(name="toybox", help="The embedded world and the models trained on it.")
app.command(toybox)
benchmark = App(
    name="benchmark", help="Measurements that take long; the same command continues them."
)
app.command(benchmark)

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # spinning threads slow down runs side by side
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Set before torch and other libraries load, unless the user has set them."""

RunName = Annotated[str, Parameter(help="A run's id, the beginning of one, or its folder.")]
Runs = Annotated[
    Path | None,
    Parameter(name="--runs", help="Folder that holds runs. Default: $DREAMSA_RUNS or ./runs."),
]
Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON lines on stdout instead of text.")
]
Quiet = Annotated[
    bool, Parameter(name=["--quiet", "-q"], negative="", help="Print only the resulting path.")
]
Set = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        help="Change a setting: --set distill.guidance_scale=30. Repeatable.",
    ),
]
Seed = Annotated[
    int | None, Parameter(help="Seed of all random numbers. Default: 0, or the parent's.")
]
Steps = Annotated[int | None, Parameter(help="Optimizer steps. Default: the preset's.")]
AscentSteps = Annotated[
    int | None,
    Parameter(
        help="Number of steps at the start that ascend. Default where an edit ascends: a fifth."
    ),
]
Scale = Annotated[float, Parameter(help="S: factor on the learning rate while ascending.")]
JudgeName = Annotated[
    str | None, Parameter(name="--judge", help="toybox, a CLIP model's folder, or its Hub id.")
]
Arms = Annotated[
    str, Parameter(help="all, or names with commas: plain,ascent,interpolate. See docs/edits.md.")
]
Methods = Annotated[str, Parameter(help="all, or names with commas: sds,pairs.")]
Seeds = Annotated[int, Parameter(help="Number of seeds.")]
Workers = Annotated[int | None, Parameter(help="Processes. Default: one per core.")]
Hours = Annotated[
    float | None, Parameter(help="Save and exit after this time; the same command continues.")
]


@app.command
def generate(
    prompt: str = "",
    *,
    preset: PresetName | None = None,
    config: Annotated[
        Path | None, Parameter(help="A config.json, such as a run's, instead of a preset.")
    ] = None,
    model: Annotated[
        str | None, Parameter(help="toybox, a folder, a .safetensors file or a Hub id.")
    ] = None,
    steps: Steps = None,
    seed: Seed = None,
    set_: Set = None,
    runs: Runs = None,
    json: Json = False,
    quiet: Quiet = False,
    dry_run: Annotated[
        bool,
        Parameter(
            name="--dry-run", negative="", help="Check and print the configuration; run nothing."
        ),
    ] = False,
) -> None:
    """Turn a prompt into a 3-D object.

    Example: dreamsa generate "a rabbit" --seed 1

    Parameters
    ----------
    prompt
        The object, e.g. "a rabbit".
    preset
        toybox: the embedded model, minutes on a CPU. paper, sd: Stable Diffusion on a GPU.
    """
    from dreamsa import api, presets
    from dreamsa.config import read_config, to_json
    from dreamsa.job import check
    from dreamsa.settings import with_overrides

    if config and preset:
        raise ValueError(
            f"--config {config} and --preset {preset} both give a whole configuration. Leave "
            "one out."
        )
    name = preset or presets.usual_preset(model)
    chosen = read_config(config) if config else presets.preset(name, prompt)
    given = {"prompt": prompt or None, "steps": steps, "seed": seed, "model.model": model}
    chosen = with_overrides(chosen, _overrides(set_, given))
    if dry_run:
        print(json_module.dumps(to_json(check(chosen)[0]), indent=2))
        return
    _follow(api.generate(config=chosen, runs=runs), json, quiet)


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
    set_: Set = None,
    runs: Runs = None,
    json: Json = False,
    quiet: Quiet = False,
    dry_run: Annotated[
        bool,
        Parameter(
            name="--dry-run",
            negative="",
            help="Check and print the configuration, and write an image of the region; run "
            "nothing.",
        ),
    ] = False,
) -> None:
    """Change a finished object with a new prompt; the run it is made from is never written to.

    Examples:
    dreamsa edit a-rabbit-7f3a "a purple rabbit" --keep shape
    dreamsa edit a-mug "an orange mug" --region box:-0.6,0.2,-0.6,0.6,0.6,0.6 --grow 0.05

    Parameters
    ----------
    prompt
        What the object should become.
    preset
        The preset whose number of steps an edit takes.
    """
    from dreamsa import api

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
        "seed": seed,
        "overrides": _overrides(set_),
        "runs": runs,
    }
    if dry_run:
        from dreamsa.config import to_json

        config, image = api.preview_edit(run, prompt, **options)
        print(json_module.dumps(to_json(config), indent=2))
        if image is not None:
            print(f"The region: {image}", file=sys.stderr)
        return
    _follow(api.edit(run, prompt, **options), json, quiet)


@app.command
def resume(run: RunName, *, runs: Runs = None, json: Json = False, quiet: Quiet = False) -> None:
    """Continue a stopped run exactly where it was."""
    from dreamsa import api

    _follow(api.resume(run, runs=runs), json, quiet)


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
    runs: Runs = None,
) -> None:
    """Write a run's turntable (mp4, webp) and contact sheet again, at any size."""
    from dreamsa import api

    written = api.render(run, frames=frames, resolution=resolution, channel=channel, runs=runs)
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
    """Write a finished object as a mesh that opens in other programs.

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
    from dreamsa import api

    def stage(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

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
        stage=stage,
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

    _print_facts(scores.evaluate(run, judge=judge, runs=runs), json)


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

    stop = _StopAfter(hours)
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
        overrides=_overrides(set_),
        runs=runs,
        stop=stop,
    )
    _print_lines(lines, stop)


@benchmark.command(name="edits")
def benchmark_edits(
    out: Path,
    *,
    arms: Arms = "all",
    seeds: Seeds = 3,
    judge: JudgeName = None,
    workers: Workers = None,
    hours: Hours = None,
    smoke: Annotated[
        bool,
        Parameter(negative="", help="The same program in a minute; its numbers are meaningless."),
    ] = False,
    set_: Set = None,
) -> None:
    """Edit toybox objects in 30 edits of five kinds with every arm, and write one report that opens
    from disk.

    Finished trials are not run again: run it in pieces with --hours 2 until it exits with 0.

    Example: dreamsa benchmark edits runs/benchmark --hours 2
    """
    from dreamsa.studies.edit_benchmark import benchmark_edits as run_benchmark
    from dreamsa.studies.edit_benchmark import new_benchmark

    stop = _StopAfter(hours)
    chosen = new_benchmark(out, arms, seeds, judge, _overrides(set_), smoke)
    _print_lines(run_benchmark(chosen, workers=workers, stop=stop), stop)


@benchmark.command(name="distillation")
def benchmark_distillation(
    out: Path,
    *,
    methods: Methods = "all",
    objects: Annotated[
        str | None,
        Parameter(help="Objects in natural colours: none, or rabbit,car. Default: all 23."),
    ] = None,
    colours: Annotated[
        str | None, Parameter(help='none, or "purple rabbit,red car". Default: twelve.')
    ] = None,
    seeds: Seeds = 3,
    steps: Steps = None,
    latents: Annotated[
        bool,
        Parameter(
            negative="", help="Optimize one latent per view instead, without a NeRF: minutes."
        ),
    ] = False,
    judge: JudgeName = None,
    workers: Workers = None,
    hours: Hours = None,
    quick: Annotated[
        bool,
        Parameter(negative="", help="The same program in a minute; its numbers are meaningless."),
    ] = False,
    set_: Set = None,
) -> None:
    """Generate toybox objects by several methods of score distillation, measure them against the
    true objects, and write one report that opens from disk.

    Finished trials are not run again: run it in pieces with --hours 2 until it exits with 0.

    Example: dreamsa benchmark distillation runs/distillation --methods sds,pairs --hours 2
    """
    from dreamsa.studies.distillation import benchmark_distillation as run_benchmark
    from dreamsa.studies.distillation import new_benchmark
    from dreamsa.studies.latents import STEPS, benchmark_latents

    stop = _StopAfter(hours)
    steps = STEPS if latents and steps is None else steps
    chosen = new_benchmark(
        out, methods, objects, colours, seeds, steps, judge, _overrides(set_), quick
    )
    run = benchmark_latents if latents else run_benchmark
    _print_lines(run(chosen, workers=workers, stop=stop), stop)


@benchmark.command(name="speed")
def benchmark_speed(*, steps: int = 30, set_: Set = None, json: Json = False) -> None:
    """Time one step of score distillation and its parts, two runs side by side, and the hash grid.

    `dreamsa bench` is short for it.
    """
    from dreamsa.studies.speed import bench

    _print_facts(bench(steps, _overrides(set_)), json)


app.command(benchmark_speed, name="bench", show=False)


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
        print(_json(rows + broken))
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

    _print_facts(api.show(run, runs), json)


@app.command
def prompts(prompt: str, *, json: Json = False) -> None:
    """Print the exact text that each view is conditioned on."""
    from dreamsa import api

    _print_facts(api.prompts(prompt), json)


@app.command
def doctor(*, json: Json = False) -> None:
    """Show this machine's device, backends, versions, models, and how to build tiny-cuda-nn."""
    from dreamsa import diagnostics

    _print_facts(diagnostics.doctor(), json)


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


@toybox.command
def sheet(out: Path = Path("toybox.png")) -> None:
    """Draw every object of the toybox from six sides."""
    from dreamsa.toybox.sheet import world_sheet

    print(world_sheet(out))


@toybox.command
def train(
    folder: Path,
    *,
    stage: Stage = "all",
    steps: int | None = None,
    pictures: int = 20_000,
    batch: int | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int = 1,
    compile_unet: Annotated[bool, Parameter(name="--compile")] = False,
    start: Path | None = None,
) -> None:
    """Train the embedded models from scratch, or continue where an earlier call stopped.

    Parameters
    ----------
    folder
        Folder of all files; the finished models are FOLDER/toybox-sd and FOLDER/toybox-clip.
    stage
        One stage, or all of them in order.
    steps
        Optimizer steps of the stage; default: the recipe's.
    pictures
        Number of training images.
    batch
        Images per step; default: the recipe's.
    workers
        Processes that render the training images; they do not depend on it.
    compile_unet
        Compile the UNet first: a quarter faster on CPUs; needs a C++ compiler.
    start
        A folder with a finished toybox-sd and toybox-clip, such as assets: keep its autoencoder,
        train the rest further.
    """
    from dreamsa.device import resolve_device
    from dreamsa.toybox.recipe import TrainingOptions, train_toybox

    where = resolve_device(device)
    options = TrainingOptions(steps, batch, seed, where, compile_unet, workers)
    for line in train_toybox(folder, stage, pictures, options, start):
        print(line, flush=True)


@toybox.command(name="evaluate")
def evaluate_toybox(
    model: str = "toybox",
    *,
    per_object: int = 12,
    guidance: float = 5.0,
    seed: int = 0,
    sheet: Path | None = None,
    json: Json = False,
) -> None:
    """Let the judge name the text-to-image model's own images: object, colour, view and, if it was
    trained to, azimuth.

    Parameters
    ----------
    per_object
        Images per object and per held-out pair: azimuths all around, a fourth from overhead.
    sheet
        Also write the images as one PNG.
    """
    from dreamsa.evaluation.text_to_image import evaluate_model

    _print_facts(evaluate_model(model, per_object, guidance, seed, sheet), json)


def _overrides(pairs: list[str] | None, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Settings by dotted name, from --set and from the flags that stand for settings."""
    from dreamsa.settings import parse_setting

    flags = {key: value for key, value in (given or {}).items() if value is not None}
    return flags | dict(map(parse_setting, pairs or []))


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    for line in [_json(facts)] if as_json else _lines(facts):
        print(line)


def _lines(facts: dict[str, Any], indent: str = "") -> Iterable[str]:
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            yield f"{indent}{key}"
            yield from _lines(value, indent + "  ")
        elif value is not None:
            yield f"{indent}{printable(key):<{width}}  {printable(value)}"


def _follow(job: "Job", as_json: bool, quiet: bool) -> None:
    """Show a job's progress to its end. A first Ctrl-C or SIGTERM saves and prints how to
    resume."""
    from transformers.utils import logging

    from dreamsa.device import Processes
    from dreamsa.signals import stop_on_signals

    logging.disable_progress_bar()
    if not Processes.current().is_first:  # under `accelerate launch` one process prints
        job.wait()
        return
    signals, run = stop_on_signals(), job.run
    try:
        with closing(_shown(job, as_json, quiet)) as shown:  # an error of the last save shows
            for _ in shown:
                if signals:
                    break
    finally:
        job.stop()
    if signals and run.status != "finished":
        step = run.record["step"]
        saved = f"at step {step} and saved" if step else "before the first step was done"
        print(
            f"Stopped {saved}. Continue with: {run.command('resume')}",
            file=sys.stderr,
        )
        raise SystemExit(128 + signals[0])
    _print_finished(run, as_json, quiet)


def _print_finished(run: "Run", as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json_module.dumps({"event": "finished", "run": run.id, "path": str(run.path)}))
    elif quiet:
        print(run.path)
    else:
        names = ("turntable.mp4", "turntable.webp", "contact_sheet.png")
        files = ", ".join(name for name in names if (run.path / name).exists())
        print(f"{run.path}\n  {files}\nChange it:  {run.command('edit', 'a new prompt')}")


def _shown(job: "Job", as_json: bool, quiet: bool) -> Generator[Any]:
    if as_json:
        for progress in job:
            facts = {**progress.result._asdict(), "event": "step", "steps": progress.steps}
            facts |= {"eta_seconds": round(progress.eta_seconds, 1), "run": job.run.id}
            facts["preview"] = str(progress.preview or "")
            print(_json(facts), flush=True)
            yield progress
    elif quiet:
        yield from job
    else:
        yield from _with_bar(job)


def _json(value: Any) -> str:
    """JSON on one line; numbers that are not finite are null, because JSON has none."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not isfinite(value) else value

    return json_module.dumps(finite(value), allow_nan=False)


def _with_bar(job: "Job") -> Generator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console, record = Console(stderr=True), job.run.record
    line = f"run {job.run.id}, device {record['device']}, hash grid {record['backend']}"
    console.print(line, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("load", total=None, note="")
        shown = None
        for progress in job:
            phase, step, steps = progress.phase, progress.step, progress.steps
            note = (
                f"{progress.seconds_per_step * 1000:.0f} ms/step, {progress.eta_seconds:.0f} s left"
            )
            bar.update(task, description=phase, completed=step, total=steps, note=note)
            if progress.preview != shown:
                shown = progress.preview
                if not console.is_terminal:
                    line = f"step {step}/{steps} {phase}, {note}, preview {shown}"
                    console.print(line, highlight=False, soft_wrap=True)
            yield progress


class _StopAfter:
    """True once a signal has arrived or the given hours are over."""

    def __init__(self, hours: float | None) -> None:
        from dreamsa.signals import stop_on_signals

        if hours is not None and not 0 < hours <= 10_000:
            raise ValueError(f"hours must lie in (0, 10000], got {hours:g}.")
        self.signals = stop_on_signals()
        self.deadline = None if hours is None else time.monotonic() + 3600 * hours

    def __call__(self) -> bool:
        return bool(self.signals) or (
            self.deadline is not None and time.monotonic() > self.deadline
        )


def _print_lines(lines: Iterable[str], stop: _StopAfter) -> None:
    """Print a comparison's lines as they come; after a stop, how to continue."""
    for line in lines:
        print(line, flush=True)
    if stop():
        command = shlex.join(["dreamsa", *sys.argv[1:]])
        print(f"Stopped and saved. Continue with the same command: {command}", file=sys.stderr)
        raise SystemExit(128 + stop.signals[0] if stop.signals else 3)


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
        app(tokens)
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
