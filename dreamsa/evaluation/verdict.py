"""What the embedded judge says of a finished run, in a sentence."""

import json
from collections import Counter
from typing import Any

from dreamsa.config import TOYBOX
from dreamsa.evaluation.scores import evaluate, named
from dreamsa.runs import Run, shell_command
from dreamsa.toybox.captions import article

FILE = "evaluation.json"


def judge_run(run: Run) -> str:
    """Let the embedded judge evaluate a finished run of the embedded model.

    Returns:
        The sentence of `verdict`; empty for other models, whose objects the judge does not know.
    """
    if run.config.model.model != TOYBOX or run.status != "finished":
        return ""
    evaluate(run, runs=run.path.parent)
    return verdict(run)


def verdict(run: Run) -> str:
    """What the judge saw when it last evaluated a run; empty if it has not."""
    try:
        facts: dict[str, Any] = json.loads((run.path / FILE).read_text())
        names, success = list(facts["views"].values()), bool(facts["success"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    wanted = named(run.prompt)
    if wanted.colour is None:  # then any colour will do
        names = [name.partition(" ")[2] for name in names]
    if not names:
        return ""
    seen, count = Counter(names).most_common(1)[0]
    sees = f"Judge sees {article(seen)} {seen} in {count} of {len(names)} views"
    if success:
        return f"{sees}."
    thing = " ".join(word for word in (wanted.colour, wanted.object) if word)
    other = f", not {article(thing)} {thing}" if thing and seen != thing else ""
    return f"{sees}{other}. Try more steps or another seed: {_again(run)}"


def _again(run: Run) -> str:
    """The command that repeats a run with twice the steps and the next seed."""
    config = run.config
    options = ["--steps", str(2 * config.steps), "--seed", str(config.seed + 1)]
    if config.edit is not None:
        return Run(run.path.parent / config.edit.parent).command("edit", config.prompt, *options)
    return shell_command(run.path.parent, "generate", config.prompt, *options)
