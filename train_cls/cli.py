"""The command line `train-cls`: parse flags, call train_cls.api, print.

Exit codes: 0 success, 1 error, 2 usage, 130 interrupted, 141 the reader of the output has closed
it.
"""

import json as json_module
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import App, Parameter

from dreamsa.settings import (
    described,
    docstrings,
    parse_setting,
    read_overrides,
    to_tree,
    with_overrides,
)
from dreamsa.signals import interrupt_on_signals
from dreamsa.version import __version__
from train_cls.config import DataConfig, PresetName, TrackerName, TrainConfig, preset

if TYPE_CHECKING:
    from train_cls.api import Started
    from train_cls.progress import Meter
    from train_cls.trials import Outcome, Study

app = App(
    name="train-cls",
    version=__version__,
    help="Train image classifiers with SEAL, related methods and their controls.",
    help_format="plaintext",
)
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}
"""Set before torch loads, unless the user has set it: spinning threads slow down parallel runs."""
TEXTS, IMAGE_TEXTS = docstrings(TrainConfig), docstrings(DataConfig)

Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON lines instead of text.")
]
Run = Annotated[Path, Parameter(help="Folder of the run.")]
Generation = Annotated[int | None, Parameter(help="Number of the generation; default: the last.")]
Batches = Annotated[int, Parameter(help="Mini-batches.")]
Batch = Annotated[int, Parameter(help="Images per mini-batch.")]
Seeds = Annotated[int, Parameter(help="Number of seeds.")]
FirstSeed = Annotated[int, Parameter(help="The first of them; the others follow it.")]
Method = Annotated[str | None, Parameter(help=TEXTS["method"])]
Other = Annotated[
    str, Parameter(help="Another data set: digits, or a folder, .zip or .npz; docs/train_cls.md.")
]
Workers = Annotated[
    int | None,
    Parameter(help="Parallel processes. Default: one per core, at most 8; one in all on a GPU."),
]
Threads = Annotated[
    int | None,
    Parameter(help="Threads of each process. Default: 1 on a CPU, for workers that share cores."),
]
Track = Annotated[
    list[TrackerName] | None,
    Parameter(
        name="--track",
        negative="",
        help="Also log to tensorboard (RUN/tensorboard) or wandb ($WANDB_PROJECT). Repeatable.",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class ImageFlags:
    """Flags of DataConfig."""

    per_class: Annotated[int | None, Parameter(help=IMAGE_TEXTS["per_class"])] = None
    test_per_class: Annotated[int | None, Parameter(help=IMAGE_TEXTS["test_per_class"])] = None
    only_classes: Annotated[str | None, Parameter(help=IMAGE_TEXTS["only_classes"])] = None
    validation: Annotated[int | None, Parameter(help=IMAGE_TEXTS["validation"])] = None
    size: Annotated[int | None, Parameter(help=IMAGE_TEXTS["size"])] = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class TrainFlags:
    """Flags of TrainConfig."""

    preset: Annotated[
        PresetName, Parameter(help="paper: SEAL as in its text. seal-code: as in its public code.")
    ] = "digits"
    config: Annotated[
        Path | None,
        Parameter(
            help="A .json, .toml or .yaml file of some or all settings, such as a run's "
            "config.json; it overrides the preset, flags override it."
        ),
    ] = None
    data: Annotated[str | None, Parameter(help=TEXTS["data"])] = None
    model: Annotated[str | None, Parameter(help=TEXTS["model"])] = None
    pretrained: Annotated[bool | None, Parameter(negative="", help=TEXTS["pretrained"])] = None
    initial_checkpoint: Annotated[str | None, Parameter(help=TEXTS["initial_checkpoint"])] = None
    generations: Annotated[int | None, Parameter(help=TEXTS["generations"])] = None
    epochs: Annotated[int | None, Parameter(help=TEXTS["epochs"])] = None
    batch: Annotated[int | None, Parameter(help=TEXTS["batch"])] = None
    lr: Annotated[float | None, Parameter(help=TEXTS["lr"])] = None
    device: Annotated[str | None, Parameter(help=TEXTS["device"])] = None
    set: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="Change any of `train-cls settings`: --set anneal.scale=0.03. Repeatable.",
        ),
    ] = None

    @property
    def changed(self) -> list[str]:
        """Dotted names of the settings that --set gives."""
        return [parse_setting(pair)[0] for pair in self.set or []]

    def settings(self, images: ImageFlags, **more: Any) -> TrainConfig:
        """The preset, changed by the file, `more` and the flags, and --set, in this order."""
        flags = {name: value for name, value in (more | asdict(self)).items() if value is not None}
        pairs, base, file = flags.pop("set", []), preset(flags.pop("preset")), self.config
        flags.pop("config", None)
        flags |= {f"splits.{name}": value for name, value in images.given().items()}
        return with_overrides(
            base,
            (read_overrides(file, base) if file else {}) | flags | dict(map(parse_setting, pairs)),
        )


@app.command
def train(
    folder: Path,
    *,
    method: Method = None,
    seed: Annotated[int | None, Parameter(help=TEXTS["seed"])] = None,
    flags: TrainFlags = TrainFlags(),
    images: ImageFlags = ImageFlags(),
    track: Track = None,
    dry_run: Annotated[
        bool, Parameter(name="--dry-run", negative="", help="Print the configuration and exit.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a network into FOLDER.

    Parameters
    ----------
    folder
        Folder of the run; it must be new.
    """
    from train_cls.methods import check_settings

    seeds = {"seed": seed, "splits.seed": seed}
    config = flags.settings(images, method=method, **seeds)
    check_settings(flags.changed, config.method)
    if dry_run:
        print(json_module.dumps(to_tree(config), indent=2))
        return
    from train_cls import api

    _follow(lambda started: api.train(config, folder, track or (), started), folder, json)


@app.command
def resume(
    folder: Run,
    *,
    generations: Annotated[
        int | None,
        Parameter(
            help="Extend the run, finished or not, to this many; the result is that of a run "
            "that had them from the beginning."
        ),
    ] = None,
    track: Track = None,
    json: Json = False,
) -> None:
    """Resume a run exactly from its newest complete checkpoint."""
    from train_cls import api

    _follow(lambda started: api.resume(folder, generations, track or (), started), folder, json)


@app.command
def settings(
    *,
    flags: TrainFlags = TrainFlags(),
    images: ImageFlags = ImageFlags(),
    json: Json = False,
) -> None:
    """List all settings with their values, ranges or choices, and meaning.

    The values are the defaults, or what --preset, --config and other flags make of them.
    """
    rows = list(described(flags.settings(images)))
    if json:
        for row in rows:
            print(_json(row._asdict()))
        return
    for row in rows:
        value = json_module.dumps(row.value)
        print(f"{row.name} = {value}  ({row.allowed})\n    {row.text}")


@app.command
def methods() -> None:
    """List the methods and their settings; several combine, as in --method seal,swa."""
    from train_cls.methods import METHODS

    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        print(f"{name:<{width}}  {method.summary}")
        if method.uses:
            print(f"{'':<{width}}  anneal: {', '.join(method.uses)}")


@app.command
def models(pattern: str | None = None) -> None:
    """List the networks.

    Parameters
    ----------
    pattern
        Of the names, with * and ?. "timm:*vit*" lists networks of timm.
    """
    from train_cls.models import list_models

    print("\n".join(list_models(pattern)))


@app.command
def evaluate(folder: Run, *, generation: Generation = None, json: Json = False) -> None:
    """Accuracy, likelihood and calibration of a run, and of the ensemble of its generations."""
    from train_cls import api

    _print(api.evaluate(folder, generation), json)


@app.command
def probe(
    folder: Run,
    data: Other,
    *,
    images: ImageFlags = ImageFlags(),
    epochs: Annotated[int, Parameter(help="Epochs of the probe's training.")] = 120,
    generation: Generation = None,
    json: Json = False,
) -> None:
    """Linear probe of a run's features on other DATA; chooses the learning rate on a validation
    split."""
    from train_cls import api

    splits = DataConfig(**images.given())
    _print(api.probe(folder, data, splits, generation, epochs=epochs), json)


@app.command(name="few-shot")
def few_shot(
    folder: Run,
    data: Other,
    *,
    shots: Annotated[int, Parameter(help="Training images of each class.")] = 5,
    way: Annotated[int, Parameter(help="Classes of an episode.")] = 5,
    episodes: Annotated[int, Parameter(help="Random choices of classes and images.")] = 600,
    affine: Annotated[
        bool, Parameter(help="Also adapt the scales and shifts of batch norms.")
    ] = False,
    images: ImageFlags = ImageFlags(),
    json: Json = False,
) -> None:
    """Few-shot accuracy of a run's features on other DATA."""
    from train_cls import api

    splits = DataConfig(**images.given())
    found = api.few_shot(folder, data, splits, affine, shots=shots, way=way, episodes=episodes)
    _print(found, json)


@app.command
def depth(
    folder: Run,
    *,
    neighbours: Annotated[int, Parameter(help="k of the nearest-neighbour probes.")] = 5,
    most: Annotated[int, Parameter(help="Max images of each split; 0 for all.")] = 0,
    generation: Generation = None,
    json: Json = False,
) -> None:
    """kNN prediction depth, and the accuracy of each layer's neighbour probe."""
    from train_cls import api

    _print(api.depth(folder, generation, most, neighbours=neighbours), json)


@app.command
def hessian(
    folder: Run,
    *,
    batches: Batches = 4,
    batch: Batch = 128,
    generation: Generation = None,
    json: Json = False,
) -> None:
    """Largest Hessian eigenvalues per mini-batch, and the fraction of negative ones."""
    from train_cls import api

    _print(api.hessian(folder, generation, batches, batch=batch), json)


@app.command
def compare(
    folder: Path,
    *,
    arms: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            consume_multiple=True,
            help="Methods: --arms seal long swa; default: the claim and its controls. METHOD@NAME "
            "trains a method again with --tune METHOD@NAME:setting=value.",
        ),
    ] = None,
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    flags: TrainFlags = TrainFlags(),
    images: ImageFlags = ImageFlags(),
    tune: Annotated[
        list[str] | None,
        Parameter(negative="", help="A setting of one arm: --tune swa:lr=0.1. Repeatable."),
    ] = None,
    claim: Annotated[str, Parameter(help="Arm to compare with the best control.")] = "seal",
    workers: Workers = None,
    threads: Threads = None,
    track: Track = None,
    json: Json = False,
) -> None:
    """Train arms of equal cost from a shared first generation; write FOLDER/report.html and
    scores.csv. Run again to resume.

    Parameters
    ----------
    folder
        Folder of the comparison.
    """
    from train_cls.compare import ARMS, plan_comparison, table, verdict
    from train_cls.methods import check_settings
    from train_cls.report import write_report

    changes: dict[str, dict[str, Any]] = {}
    for entry in tune or []:
        arm, colon, pair = entry.partition(":")
        if not colon:
            raise ValueError(f"--tune needs arm:setting=value, got {entry!r}.")
        changes.setdefault(arm, {}).update([parse_setting(pair)])
    chosen, which = tuple(arms or ARMS), range(first_seed, first_seed + seeds)
    check_settings(flags.changed, *(arm.partition("@")[0] for arm in chosen))
    study = plan_comparison(flags.settings(images), folder, chosen, which, changes)
    _follow_study(study, study.run(workers, threads, track or ()), json)
    answer, report = verdict(table(folder, chosen, which), claim), None
    if any(table(folder, chosen, which).values()):
        report = str(write_report(folder, chosen, which, claim))
    if json:
        print(_json({"verdict": answer, "report": report}))
    else:
        print(answer["claim"], *([report] if report else []), sep="\n")


@app.command
def sweep(
    folder: Path,
    setting: Annotated[str, Parameter(help="One of `train-cls settings`, or method.")],
    values: Annotated[list[str], Parameter(help="Its values.")],
    *,
    method: Method = None,
    seeds: Seeds = 1,
    first_seed: FirstSeed = 0,
    flags: TrainFlags = TrainFlags(),
    images: ImageFlags = ImageFlags(),
    workers: Workers = None,
    threads: Threads = None,
    track: Track = None,
    json: Json = False,
) -> None:
    """Train once per value of a SETTING and seed: sweep runs anneal.scale 0 0.01 0.1 1. Run again
    to resume.

    Parameters
    ----------
    folder
        Folder of the sweep.
    """
    from train_cls import api
    from train_cls.methods import check_settings

    parsed = [parse_setting(f"{setting}={value}")[1] for value in values]
    which = range(first_seed, first_seed + seeds)
    config = flags.settings(images, method=method)
    names = map(str, parsed) if setting == "method" else [config.method]
    check_settings([setting, *flags.changed], *names)
    study = api.plan_sweep(config, folder, setting, parsed, which)
    outcomes = _follow_study(study, study.run(workers, threads, track or ()), json)
    rows = api.summary(outcomes, setting, parsed)
    if json:
        print(_json({"summary": rows}))
    else:
        _print_table(rows)


@app.command
def bench(
    *,
    model: Annotated[str, Parameter(help=TEXTS["model"])] = "resnet18",
    batch: Batch = 128,
    size: Annotated[int, Parameter(help="Height and width of the images in pixels.")] = 32,
    channels: Annotated[int, Parameter(help="Channels of the images.")] = 3,
    classes: Annotated[int, Parameter(help="Classes of the network's output.")] = 200,
    rounds: Annotated[int, Parameter(help="Measurements of each contestant.")] = 15,
    device: Annotated[str, Parameter(help=TEXTS["device"])] = "auto",
    json: Json = False,
) -> None:
    """Compare the annealer with a plain step, and whole epochs with a bare PyTorch loop: medians of
    interleaved runs."""
    from train_cls.bench import BenchConfig
    from train_cls.bench import bench as run_bench

    config = BenchConfig(
        model=model,
        batch=batch,
        size=size,
        channels=channels,
        classes=classes,
        rounds=rounds,
        device=device,
    )
    for facts in run_bench(config):
        _print(facts, json)


def _follow(begin: Callable[["Started"], Iterable[Any]], folder: Path, as_json: bool) -> None:
    """Print each epoch of a run. Ctrl-C stops after the current step, and saves."""
    from dreamsa.device import Processes
    from train_cls.progress import Meter, count_of
    from train_cls.run import resume_command

    meter, prints = Meter(), Processes.current().is_first
    results = begin(lambda training: meter.watch(lambda: count_of(training)))
    try:
        with meter.shown() if prints and not as_json else nullcontext():
            for result in results:
                if prints:
                    _print_epoch(result, folder, meter, as_json)
    except KeyboardInterrupt:
        print(f"Stopped. Resume with: {resume_command(folder)}", file=sys.stderr)
        raise SystemExit(130) from None
    if prints and not as_json:
        print(folder)


def _print_epoch(result: Any, folder: Path, meter: "Meter", as_json: bool) -> None:
    if as_json:
        print(_json({**result._asdict(), "run": str(folder)}), flush=True)
        return
    found = ", ".join(f"{k} {v:.4f}" for k, v in result.scores.items() if "accuracy" in k)
    meter.console.print(
        f"generation {result.generation} epoch {result.epoch:>4}  {result.phase:<7}  "
        f"loss {result.loss:.4f}  accuracy {result.accuracy:.4f}  lr {result.lr:.4g}  "
        f"{result.seconds:.1f} s  {found}"
    )


def _follow_study(study: "Study", outcomes: Iterator["Outcome"], as_json: bool) -> list["Outcome"]:
    """Print the outcomes of a comparison or sweep as they come. Ctrl-C stops all processes after
    their current steps, and saves."""
    from train_cls.progress import Meter, count_of_study

    meter, found = Meter(), []
    meter.watch(lambda: count_of_study(study))
    try:
        with nullcontext() if as_json else meter.shown():
            for outcome in outcomes:
                print(_json(outcome.row()) if as_json else outcome, flush=True)
                found.append(outcome)
    except KeyboardInterrupt:
        command = shlex.join(["train-cls", *sys.argv[1:]])
        print(f"Stopped and saved. The same command resumes: {command}", file=sys.stderr)
        raise SystemExit(130) from None
    return found


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows of the same keys in aligned columns."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _json(value: Any) -> str:
    """One line of JSON, which has no NaN or infinity: null stands for them."""
    return json_module.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(facts: dict[str, Any], as_json: bool, indent: str = "") -> None:
    if as_json:
        print(_json(facts))
        return
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            _print(value, False, indent + "  ")
        else:
            print(f"{indent}{key:<{width}}  {_text(value)}")


def fail(message: str) -> NoReturn:
    """Print one sentence on stderr and exit with code 1."""
    print(f"train-cls: {message}", file=sys.stderr)
    raise SystemExit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Errors of the user are one sentence; --debug shows the traceback."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    interrupt_on_signals()
    tokens = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in tokens
    try:
        try:
            app([token for token in tokens if token != "--debug"])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # as with `| head`; devnull silences the last flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, RuntimeError, OSError, ImportError, ArithmeticError) as error:
        if debug:
            raise
        fail(" ".join(str(error).split()) or type(error).__name__)


if __name__ == "__main__":
    main()
