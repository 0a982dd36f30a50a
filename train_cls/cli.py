"""The command line `train-cls`: parse flags, call train_cls.api, print.

Exit codes: 0 success, 1 error, 2 usage, 130 interrupted, 141 the reader of the output has closed
it.
"""

import json as json_module
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, Parameter

from dreamsa.settings import parse_setting, to_tree, with_overrides
from dreamsa.signals import interrupt_on_signals
from dreamsa.version import __version__
from train_cls.config import DataConfig, PresetName, TrainConfig, preset

app = App(
    name="train-cls",
    version=__version__,
    help="Train image classifiers with SEAL, related methods and their controls.",
)

Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON lines instead of text.")
]
Generation = Annotated[int | None, Parameter(help="Number of the generation; default: the last.")]


@Parameter(name="*")
@dataclass(frozen=True)
class ImageFlags:
    """Flags of DataConfig."""

    per_class: Annotated[int | None, Parameter(help="Training images per class; 0 for all.")] = None
    test_per_class: Annotated[int | None, Parameter(help="Test images per class; 0 for all.")] = (
        None
    )
    only_classes: Annotated[str | None, Parameter(help='Classes to keep: "0-4" or "cat,dog".')] = (
        None
    )
    validation: Annotated[
        int | None, Parameter(help="Training images held out for validation.")
    ] = None
    size: Annotated[
        int | None, Parameter(help="Resize images to this height and width in pixels.")
    ] = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class TrainFlags:
    """Flags of TrainConfig."""

    data: Annotated[
        str, Parameter(help="digits, or a folder, .zip or .npz; see docs/train_cls.md.")
    ] = "digits"
    model: Annotated[
        str | None, Parameter(help='See `train-cls models`; "timm:NAME" for networks of timm.')
    ] = None
    pretrained: Annotated[
        bool | None, Parameter(negative="", help="Start from timm's pretrained weights.")
    ] = None
    initial_checkpoint: Annotated[
        str | None, Parameter(help="Start from the weights of this run or .safetensors file.")
    ] = None
    preset: Annotated[
        PresetName, Parameter(help="paper: SEAL as in its text. seal-code: as in its public code.")
    ] = "digits"
    generations: Annotated[int | None, Parameter(help="G; each has --epochs epochs.")] = None
    epochs: int | None = None
    batch: int | None = None
    lr: float | None = None
    device: str | None = None
    set: Annotated[
        list[str] | None,
        Parameter(negative="", help="Change a setting: --set anneal.scale=0.03. Repeatable."),
    ] = None

    def config(self, images: ImageFlags, **more: Any) -> TrainConfig:
        """The preset, then `more` and the flags, then --set."""
        changes = more | {f"splits.{name}": value for name, value in images.given().items()}
        flags = {name: value for name, value in asdict(self).items() if value is not None}
        pairs, name = flags.pop("set", []), flags.pop("preset")
        return with_overrides(preset(name), changes | flags | dict(map(parse_setting, pairs)))


@app.command
def train(
    folder: Path,
    *,
    method: str = "seal",
    seed: int = 0,
    flags: TrainFlags = TrainFlags(),
    images: ImageFlags = ImageFlags(),
    tensorboard: bool = False,
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
    method
        See `train-cls methods`.
    """
    config = flags.config(images, method=method, seed=seed, **{"splits.seed": seed})
    if dry_run:
        print(json_module.dumps(to_tree(config), indent=2))
        return
    from train_cls import api

    _follow(api.train(config, folder, tensorboard), folder, json)


@app.command
def resume(folder: Path, *, tensorboard: bool = False, json: Json = False) -> None:
    """Resume a run exactly from its newest complete checkpoint."""
    from train_cls import api

    _follow(api.resume(folder, tensorboard), folder, json)


@app.command
def methods() -> None:
    """List the methods."""
    from train_cls.methods import METHODS

    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        print(f"{name:<{width}}  {method.summary}")


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
def evaluate(folder: Path, *, generation: Generation = None, json: Json = False) -> None:
    """Accuracy, likelihood and calibration of a run, and of the ensemble of its generations."""
    from train_cls import api

    _print(api.evaluate(folder, generation), json)


@app.command
def probe(
    folder: Path,
    data: str,
    *,
    images: ImageFlags = ImageFlags(),
    epochs: int = 120,
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
    folder: Path,
    data: str,
    *,
    shots: int = 5,
    way: int = 5,
    episodes: int = 600,
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
    folder: Path,
    *,
    neighbours: int = 5,
    most: Annotated[int, Parameter(help="Max images of each split.")] = 2000,
    generation: Generation = None,
    json: Json = False,
) -> None:
    """kNN prediction depth, and the accuracy of each layer's neighbour probe."""
    from train_cls import api

    _print(api.depth(folder, generation, most, neighbours=neighbours), json)


@app.command
def hessian(
    folder: Path,
    *,
    batches: int = 4,
    batch: int = 128,
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
    arms: list[str] | None = None,
    seeds: int = 3,
    first_seed: int = 0,
    flags: TrainFlags = TrainFlags(),
    images: ImageFlags = ImageFlags(),
    tune: Annotated[
        list[str] | None,
        Parameter(negative="", help="A setting of one arm: --tune swa:lr=0.1. Repeatable."),
    ] = None,
    claim: Annotated[str, Parameter(help="Arm to compare with the best control.")] = "seal",
) -> None:
    """Train arms of equal cost from a shared first generation; write FOLDER/report.html and
    scores.csv. Run again to resume.

    Parameters
    ----------
    arms
        Methods; default: the claim and its controls. METHOD@NAME trains a method again with --tune
        METHOD@NAME:setting=value.
    """
    from train_cls.compare import ARMS, table, verdict
    from train_cls.compare import compare as run_comparison
    from train_cls.report import write_report

    config = flags.config(images)
    changes: dict[str, dict[str, Any]] = {}
    for entry in tune or []:
        arm, colon, pair = entry.partition(":")
        if not colon:
            raise ValueError(f"--tune needs arm:setting=value, got {entry!r}.")
        changes.setdefault(arm, {}).update([parse_setting(pair)])
    chosen, which = tuple(arms or ARMS), range(first_seed, first_seed + seeds)
    for line in run_comparison(config, folder, chosen, which, changes):
        print(line, flush=True)
    print(verdict(table(folder, chosen, which), claim)["claim"])
    print(write_report(folder, chosen, which, claim))


@app.command
def sweep(
    folder: Path,
    setting: str,
    values: list[str],
    *,
    method: str = "seal",
    seeds: int = 1,
    first_seed: int = 0,
    flags: TrainFlags = TrainFlags(),
    images: ImageFlags = ImageFlags(),
) -> None:
    """Train once per value of a SETTING: sweep runs anneal.scale 0 0.01 0.1 1. Prints JSON lines;
    run again to resume."""
    from train_cls import api

    parsed = [parse_setting(f"{setting}={value}")[1] for value in values]
    which = range(first_seed, first_seed + seeds)
    for row in api.sweep(flags.config(images, method=method), folder, setting, parsed, which):
        print(json_module.dumps(row), flush=True)


@app.command
def bench(
    *,
    model: str = "resnet18",
    batch: int = 128,
    size: Annotated[int, Parameter(help="Height and width of the images in pixels.")] = 32,
    channels: int = 3,
    classes: int = 200,
    rounds: Annotated[int, Parameter(help="Measurements of each contestant.")] = 15,
    device: str = "auto",
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


def _follow(results: Iterable[Any], folder: Path, as_json: bool) -> None:
    """Print each epoch. Ctrl-C stops after the current step, and saves."""
    from rich.console import Console

    from train_cls.run import resume_command

    console = Console(stderr=True)
    try:
        for result in results:
            if as_json:
                print(json_module.dumps({**result._asdict(), "run": str(folder)}), flush=True)
                continue
            found = ", ".join(f"{k} {v:.4f}" for k, v in result.scores.items() if "accuracy" in k)
            console.print(
                f"generation {result.generation} epoch {result.epoch:>4}  {result.phase:<7}  "
                f"loss {result.loss:.4f}  accuracy {result.accuracy:.4f}  lr {result.lr:.4g}  "
                f"{result.seconds:.1f} s  {found}",
                highlight=False,
                soft_wrap=True,
            )
    except KeyboardInterrupt:
        print(f"Stopped. Resume with: {resume_command(folder)}", file=sys.stderr)
        raise SystemExit(130) from None
    if not as_json:
        print(folder)


def _print(facts: dict[str, Any], as_json: bool, indent: str = "") -> None:
    if as_json:
        print(json_module.dumps(facts))
        return
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            _print(value, False, indent + "  ")
        else:
            print(
                f"{indent}{key:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}"
            )


def fail(message: str) -> NoReturn:
    """Print one sentence on stderr and exit with code 1."""
    print(f"train-cls: {message}", file=sys.stderr)
    raise SystemExit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Errors of the user are one sentence; --debug shows the traceback."""
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
        print("Stopped. Run compare or sweep again to resume.", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, RuntimeError, OSError, ImportError, ArithmeticError) as error:
        if debug:
            raise
        fail(" ".join(str(error).split()) or type(error).__name__)


if __name__ == "__main__":
    main()
