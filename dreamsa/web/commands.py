"""What was done, as the exact command line and the exact Python that do it again."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamsa.config import ASCENDING, PRESETS, EditConfig, PresetName, RunConfig, edited, preset, to_json
from dreamsa.runs import Run, RunError, find_run, runs_folder


def command_line(run: Run, folder: Path = Path("runs")) -> str:
    """The shell command that makes a run of the same configuration in `folder`."""
    config = run.config
    parent = _parent(run, config)
    if config.edit is None:
        name, changes = _nearest_preset(config)
        words = ["dreamsa", "generate", *_prompt_words(config.prompt)]
        words += [] if name == "toybox" and "model.model" not in changes else ["--preset", name]
    elif parent is None:
        return f"# The run {config.edit.parent} that this one was edited from is not in {folder} any more; its command cannot be repeated."
    else:
        changes, edit = _edit_changes(config, parent.config), config.edit
        words = ["dreamsa", "edit", parent.id, *_prompt_words(config.prompt), "--steps", str(config.steps)]
        for name, value in _edit_options(edit).items():
            words += [f"--{name.replace('_', '-')}", str(value)]
    for key, flag in (("steps", "--steps"), ("seed", "--seed"), ("model.model", "--model")):
        if key in changes and not (config.edit is not None and key == "model.model"):
            words += [flag, str(changes.pop(key))]
    for key, value in changes.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    words += [] if _usual(folder) else ["--runs", str(folder)]
    return shlex.join(words)


def python_code(run: Run, folder: Path = Path("runs")) -> str:
    """Python that makes a run of the same configuration in `folder`."""
    config = run.config
    where = "" if _usual(folder) else f", runs={str(folder)!r}"
    parent = _parent(run, config)
    if config.edit is None:
        name, changes = _nearest_preset(config)
        lines = ["from dreamsa import generate, preset", "from dreamsa.api import with_overrides", ""]
        lines += [f"config = preset({name!r}, {config.prompt!r})"]
        lines += [f"config = with_overrides(config, {changes!r})"] if changes else []
        lines += [f"run = generate(config=config{where}).wait()"]
        return "\n".join(lines if changes else [lines[0], *lines[2:]])
    if parent is None:
        return command_line(run, folder)
    changes, edit = _edit_changes(config, parent.config), config.edit
    given = {"steps": config.steps, **_edit_options(edit)}
    given |= {"seed": changes.pop("seed")} if "seed" in changes else {}
    given |= {"overrides": changes} if changes else {}
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return f"from dreamsa import edit\n\nrun = edit({parent.id!r}, {config.prompt!r}, {arguments}{where}).wait()"


def differences(before: Any, after: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of `after`, by dotted path, that differ from those of `before`; both are JSON."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return {prefix.rstrip("."): after} if before != after else {}
    return {key: value for name in after for key, value in differences(before.get(name), after[name], f"{prefix}{name}.").items()}


def _nearest_preset(config: RunConfig) -> tuple[PresetName, dict[str, Any]]:
    wanted = to_json(config)
    found: list[tuple[PresetName, dict[str, Any]]] = [
        (name, differences(_json(to_json(preset(name, config.prompt))), _json(wanted))) for name in PRESETS
    ]
    return min(found, key=lambda item: len(item[1]))


def _edit_changes(config: RunConfig, parent: RunConfig) -> dict[str, Any]:
    assert config.edit is not None
    known = replace(config, edit=replace(config.edit, parent_prompt=parent.prompt))  # runs of older versions do not hold it
    changes = differences(_json(to_json(edited(parent, config.prompt, config.edit, config.steps))), _json(to_json(known)))
    return changes if config.edit.displacement is None else changes | {"edit.displacement": config.edit.displacement}


def _edit_options(edit: EditConfig) -> dict[str, Any]:
    """The options of `edit` that say how, without those that are as they would be anyway."""
    climbs = edit.escape in (*ASCENDING, "noise")
    given: dict[str, Any] = {"escape": edit.escape, **({"ascent_steps": edit.ascent_steps, "scale": edit.scale} if climbs else {})}
    default = EditConfig(edit.parent)
    return given | {key: getattr(edit, key) for key in ("scale", "eta", "moments") if getattr(edit, key) != getattr(default, key)}


def _json(value: Any) -> Any:
    """With lists for tuples, so that what was read and what was made compare equal."""
    return json.loads(json.dumps(value))


def _parent(run: Run, config: RunConfig) -> Run | None:
    try:
        return find_run(config.edit.parent, run.path.parent) if config.edit else None
    except RunError:
        return None


def _usual(folder: Path) -> bool:
    """Whether it is where runs are kept when nothing is said."""
    return folder.resolve() == runs_folder().resolve()


def _prompt_words(prompt: str) -> list[str]:
    """A prompt that begins with a dash would be taken for an option."""
    return [f"--prompt={prompt}"] if prompt.startswith("-") else [prompt]
