"""`dreamsa models`: which models there are, here and on the Hub."""

import os
import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

from dreamsa.commands.options import Json
from dreamsa.commands.output import print_facts

models = App(name="models", help="Text-to-image models: list, check, download.")

Model = Annotated[
    str, Parameter(help="toybox, sd15, sd21, a folder, a .safetensors file or an id.")
]


@models.command(name="list")
def list_(*, json: Json = False) -> None:
    """List the embedded model and the known ones of the Hub, and which of them are here."""
    from dreamsa.config import TOYBOX
    from dreamsa.presets import MODEL_ALIASES

    print_facts({name: _facts(name) for name in (TOYBOX, *MODEL_ALIASES)}, json)


@models.command
def check(model: Model, *, json: Json = False) -> None:
    """Check that a model is on this machine and complete; show its size and the memory it needs.

    Reads the headers of its weights; loads nothing.
    """
    from dreamsa.config import ModelConfig
    from dreamsa.guidance.hub import require_model

    require_model(ModelConfig(model))
    print_facts(_facts(model), json)


@models.command
def download(
    model: Model,
    *,
    yes: Annotated[bool, Parameter(negative="", help="Do not ask whether to download.")] = False,
) -> None:
    """Download a model of the Hub, with progress; an interrupted download continues.

    Example: dreamsa models download sd15
    """
    os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)  # read when huggingface_hub is imported
    from dreamsa.config import ModelConfig
    from dreamsa.guidance import hub

    config = ModelConfig(model)
    if hub.locate_model(config)[0] != "hub" or hub.local_folder(config) is not None:
        print(f"{model} is on this machine already.", file=sys.stderr)
        print_facts(_facts(model), False)
        return
    name = hub.model_id(model)
    plan = hub.plan_download(name)
    licence = hub.LICENCES.get(name, f"see https://huggingface.co/{name}")
    print(f"{name}: {hub.size_text(plan.bytes)}. Licence: {licence}.", file=sys.stderr, flush=True)
    asks = not yes and sys.stdin.isatty()
    if asks and input("Download it? [y/N] ").strip().lower() not in ("y", "yes"):
        return
    print(hub.download(name, plan))


def _facts(name: str) -> dict[str, Any]:
    from dreamsa.config import TOYBOX, ModelConfig
    from dreamsa.guidance import hub
    from dreamsa.guidance.vocabulary import vocabulary

    config = ModelConfig(name)
    place = hub.local_place(config)
    facts: dict[str, Any] = {
        "model": None if name == TOYBOX else hub.model_id(name),
        "licence": hub.LICENCES.get(hub.model_id(name)),
        "place": str(place) if place else f"not here yet: dreamsa models download {name}",
    }
    if place:
        found = hub.inspect(place)
        facts |= {"size": hub.size_text(found.bytes), "memory": found.memory}
    if words := vocabulary(config):
        facts |= {kind: ", ".join(words[kind]) for kind in ("objects", "colours")}
    return {key: value for key, value in facts.items() if value is not None}
