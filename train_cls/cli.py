"""The command line `train-cls`: parse, call train_cls.api, print. Exit codes as dreamsa's: 0, 1 refused or failed, 2 usage, 130 stopped; 141
where whoever reads the output has stopped reading."""

import json as json_module
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, Parameter

from dreamsa import __version__

app = App(
    name="train-cls",
    version=__version__,
    help="Train image classifiers with SEAL, its family, and the controls that make results believable.",
)

Set = Annotated[list[str] | None, Parameter(name="--set", negative="", help="Change a setting: --set anneal.scale=0.03. Repeatable.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON lines instead of text.")]
PerClass = Annotated[int | None, Parameter(help="Training images per class; 0 for all.")]
TestPerClass = Annotated[int | None, Parameter(help="Test images per class; 0 for all.")]
Only = Annotated[str | None, Parameter(help='Classes to keep: "0-4" or "cat,dog".')]
Validation = Annotated[int | None, Parameter(help="Images taken from the training split for validation.")]
Generation = Annotated[int | None, Parameter(help="Which generation; default: the last.")]


@app.command
def train(
    folder: Path,
    *,
    method: str = "seal",
    data: str = "digits",
    model: str | None = None,
    preset: Literal["digits", "paper", "seal-code"] = "digits",
    generations: int | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    per_class: PerClass = None,
    test_per_class: TestPerClass = None,
    only_classes: Only = None,
    validation: Validation = None,
    size: Annotated[int | None, Parameter(help="Resize images to this many pixels a side.")] = None,
    device: str | None = None,
    set_: Set = None,
    tensorboard: bool = False,
    dry_run: Annotated[bool, Parameter(name="--dry-run", negative="", help="Print the configuration, train nothing.")] = False,
    json: Json = False,
) -> None:
    """Train one network into FOLDER.

    Parameters
    ----------
    folder
        Where the run is kept; it must be new.
    method
        See `train-cls methods`.
    data
        digits, or a folder, zip, npz, CIFAR binary or IDX files.
    preset
        paper: SEAL as its text says. seal-code: as its public code does.
    generations
        G; each has --epochs epochs.
    """
    from train_cls import api

    config = _config(
        preset, set_, method=method, data=data, model=model, generations=generations, epochs=epochs, batch=batch, lr=lr, seed=seed, device=device,
        splits=dict(
            per_class=per_class, test_per_class=test_per_class, only_classes=only_classes, validation=validation, size=size, seed=seed
        ),
    )  # fmt: skip
    if dry_run:
        from train_cls.config import to_dict

        print(json_module.dumps(to_dict(config), indent=2))
        return
    _follow(api.train(config, folder, tensorboard), folder, json)


@app.command
def resume(folder: Path, *, tensorboard: bool = False, json: Json = False) -> None:
    """Go on with a run exactly where it stopped."""
    from train_cls import api

    _follow(api.resume(folder, tensorboard), folder, json)


@app.command
def methods() -> None:
    """List the methods."""
    from train_cls.methods import METHODS

    width = max(map(len, METHODS))
    for name, function in METHODS.items():
        print(f"{name:<{width}}  {' '.join((function.__doc__ or '').split())}")


@app.command
def models() -> None:
    """List the networks."""
    from train_cls.models import MODELS

    print("\n".join(MODELS))


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
    per_class: PerClass = None,
    test_per_class: TestPerClass = None,
    only_classes: Only = None,
    size: int | None = None,
    epochs: int = 120,
    generation: Generation = None,
    json: Json = False,
) -> None:
    """Linear probe of a run's features on other DATA: the learning rate is chosen on a validation split."""
    from train_cls import api

    splits = _splits(per_class=per_class, test_per_class=test_per_class, only_classes=only_classes, size=size)
    _print(api.probe(folder, data, splits, generation, epochs=epochs), json)


@app.command(name="few-shot")
def few_shot(
    folder: Path,
    data: str,
    *,
    shots: int = 5,
    way: int = 5,
    episodes: int = 600,
    affine: bool = False,
    only_classes: Only = None,
    size: int | None = None,
    json: Json = False,
) -> None:
    """Few-shot accuracy of a run's features on other DATA.

    Parameters
    ----------
    affine
        Also adapt the scales and shifts of the batch norms.
    """
    from train_cls import api

    splits = _splits(only_classes=only_classes, size=size)
    _print(api.few_shot(folder, data, splits, affine, shots=shots, way=way, episodes=episodes), json)


@app.command
def depth(folder: Path, *, neighbours: int = 5, most: int = 2000, generation: Generation = None, json: Json = False) -> None:
    """kNN prediction depth: the accuracy of every layer's neighbour probe."""
    from train_cls import api

    _print(api.depth(folder, generation, most, neighbours=neighbours), json)


@app.command
def hessian(folder: Path, *, batches: int = 4, batch: int = 128, generation: Generation = None, json: Json = False) -> None:
    """The Hessian's largest eigenvalues per mini-batch, and the share of negative ones."""
    from train_cls import api

    _print(api.hessian(folder, generation, batches, batch=batch), json)


@app.command
def compare(
    folder: Path,
    *,
    arms: list[str] | None = None,
    seeds: int = 3,
    first_seed: int = 0,
    data: str = "digits",
    model: str | None = None,
    preset: Literal["digits", "paper", "seal-code"] = "digits",
    generations: int | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    per_class: PerClass = None,
    test_per_class: TestPerClass = None,
    only_classes: Only = None,
    validation: Validation = None,
    size: int | None = None,
    device: str | None = None,
    set_: Set = None,
    tune: Annotated[list[str] | None, Parameter(negative="", help="A setting of one arm: --tune swa:lr=0.1. Repeatable.")] = None,
    claim: Annotated[str, Parameter(help="The arm that has to beat the best control.")] = "seal",
) -> None:
    """Run arms with equal steps from a shared first generation; write FOLDER/report.html and scores.csv. Run again to go on.

    Parameters
    ----------
    arms
        Methods; default: the claim and its controls. METHOD@NAME runs a method a second time with --tune METHOD@NAME:setting=value.
    """
    from train_cls.compare import ARMS, table, verdict
    from train_cls.compare import compare as run_comparison
    from train_cls.report import write_report

    config = _config(
        preset, set_, data=data, model=model, generations=generations, epochs=epochs, batch=batch, lr=lr, device=device,
        splits=dict(per_class=per_class, test_per_class=test_per_class, only_classes=only_classes, validation=validation, size=size),
    )  # fmt: skip
    changes: dict[str, dict[str, Any]] = {}
    for entry in tune or []:
        arm, colon, pair = entry.partition(":")
        if not colon:
            raise ValueError(f"--tune wants arm:setting=value, got {entry!r}.")
        changes.setdefault(arm, {}).update(_pairs([pair]))
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
    data: str = "digits",
    model: str | None = None,
    preset: Literal["digits", "paper", "seal-code"] = "digits",
    generations: int | None = None,
    epochs: int | None = None,
    per_class: PerClass = None,
    validation: Validation = None,
    set_: Set = None,
) -> None:
    """Train once per value of a SETTING: sweep runs anneal.scale 0 0.01 0.1 1. Prints JSON lines; run again to go on."""
    from train_cls import api

    config = _config(
        preset, set_, method=method, data=data, model=model, generations=generations, epochs=epochs,
        splits=dict(per_class=per_class, validation=validation),
    )  # fmt: skip
    for row in api.sweep(config, folder, setting, [_value(v) for v in values], range(first_seed, first_seed + seeds)):
        print(json_module.dumps(row), flush=True)


@app.command
def bench(
    *,
    model: str = "resnet18",
    batch: int = 128,
    size: Annotated[int, Parameter(help="Height and width of the images in pixels.")] = 32,
    channels: int = 3,
    classes: int = 200,
    rounds: Annotated[int, Parameter(help="Turns of each rival.")] = 15,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Time the annealer beside a plain step, and whole epochs beside a bare PyTorch loop: medians, taking turns."""
    from train_cls.bench import BenchConfig
    from train_cls.bench import bench as run_bench

    chosen = BenchConfig(model=model, batch=batch, size=size, channels=channels, classes=classes, rounds=rounds, device=device)
    for facts in run_bench(chosen):
        _print(facts, json)


def _value(text: str) -> Any:
    try:
        return json_module.loads(text)
    except ValueError:
        return text


def _pairs(pairs: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set wants name=value, e.g. anneal.scale=0.03; got {pair!r}.")
        found[name] = _value(text)
    return found


def _splits(**given: Any) -> Any:
    from train_cls.data import DataConfig

    return DataConfig(**{k: v for k, v in given.items() if v is not None})


def _config(preset_name: str, pairs: list[str] | None, splits: dict[str, Any], **given: Any) -> Any:
    """A preset, then the flags that were given, then --set."""
    from train_cls.config import preset, with_overrides

    flags = {k: v for k, v in given.items() if v is not None} | {f"splits.{k}": v for k, v in splits.items() if v is not None}
    return with_overrides(preset(preset_name), flags | _pairs(pairs))


def _follow(results: Iterable[Any], folder: Path, as_json: bool) -> None:
    """Show epochs as they end. Ctrl-C stops after saving what the last finished epoch left."""
    from rich.console import Console

    console = Console(stderr=True)
    try:
        for result in results:
            if as_json:
                print(json_module.dumps({**result._asdict(), "run": str(folder)}), flush=True)
                continue
            found = ", ".join(f"{k} {v:.4f}" for k, v in result.scores.items() if "accuracy" in k)
            console.print(
                f"generation {result.generation} epoch {result.epoch:>4}  {result.phase:<7}  loss {result.loss:.4f}  "
                f"accuracy {result.accuracy:.4f}  lr {result.lr:.4g}  {result.seconds:.1f} s  {found}",
                highlight=False,
                soft_wrap=True,
            )
    except KeyboardInterrupt:
        print(f"Stopped. Go on with: train-cls resume {folder}", file=sys.stderr)
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
            print(f"{indent}{key:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")


def fail(message: str) -> NoReturn:
    """One sentence on stderr, exit code 1."""
    print(f"train-cls: {message}", file=sys.stderr)
    raise SystemExit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Users' mistakes are one sentence; --debug shows where any error came from."""
    tokens = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in tokens
    try:
        try:
            app([token for token in tokens if token != "--debug"])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough: what is left goes nowhere, or the interpreter complains when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (ValueError, RuntimeError, OSError, ImportError, ArithmeticError) as error:
        if debug:
            raise
        fail(" ".join(str(error).split()) or type(error).__name__)


if __name__ == "__main__":
    main()
