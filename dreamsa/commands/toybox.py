"""`dreamsa toybox`: the embedded world and the models trained on it."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from dreamsa.choices import Stage
from dreamsa.commands.options import Json
from dreamsa.commands.output import print_facts

toybox = App(name="toybox", help="The embedded world and the models trained on it.")


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

    print_facts(evaluate_model(model, per_object, guidance, seed, sheet), json)
