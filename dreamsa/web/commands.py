"""The command line and the Python code that repeat a run."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamsa.choices import BASES, ESCAPES, BaseName, EscapeName
from dreamsa.config import TOYBOX, EditConfig, RunConfig, edited, to_json
from dreamsa.guidance.vocabulary import unknown_words
from dreamsa.presets import edit_length, preset
from dreamsa.runs import Run, parent_of, runs_folder
from dreamsa.text import printable


def command_line(run: Run, folder: Path) -> str:
    """The shell command that repeats a run in `folder`; a comment if there is none."""
    config, parent = run.config, parent_of(run, folder)
    if config.edit is None:
        name, changes = _nearest_preset(config)
        options = {} if name == TOYBOX and "model.model" not in changes else {"preset": name}
        for key in ("steps", "seed", "model.model"):
            if key in changes:
                options[key.partition(".")[0]] = changes.pop(key)
        words = ["dreamsa", "generate"]
    elif parent is None or config.edit.control is not None:
        return _unrepeatable(config.edit, folder)
    else:
        options, changes = _edit_options(config, parent.config)
        words = ["dreamsa", "edit", parent.id]
    # an argument that cannot be mistaken for an option
    words += [f"--prompt={config.prompt}" if config.prompt.startswith("-") else config.prompt]
    for key, value in options.items():
        values = value if isinstance(value, tuple) else [value]
        for one in values:
            words += [f"--{key.replace('_', '-')}", *([] if one is True else [str(one)])]
    if unknown_words(config.prompt, config.model):
        words.append("--anyway")
    for key, value in changes.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return printable(shlex.join(words + ([] if _is_default(folder) else ["--runs", str(folder)])))


def python_code(run: Run, folder: Path) -> str:
    """The Python code that repeats a run in `folder`; a comment if there is none."""
    config, parent = run.config, parent_of(run, folder)
    runs = "" if _is_default(folder) else f", runs={str(folder)!r}"
    if config.edit is None:
        name, changes = _nearest_preset(config)
        names = "generate, preset" + (", with_overrides" if changes else "")
        code = f"from dreamsa import {names}\n\nconfig = preset({name!r}, {config.prompt!r})\n"
        code += f"config = with_overrides(config, {changes!r})\n" if changes else ""
        return f"{code}run = generate(config=config{_anyway(config)}{runs}).wait()"
    if parent is None or config.edit.control is not None:
        return _unrepeatable(config.edit, folder)
    options, changes = _edit_options(config, parent.config)
    options |= {"overrides": changes} if changes else {}
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    call = f"edit({parent.id!r}, {config.prompt!r}, {arguments}{_anyway(config)}{runs})"
    return f"from dreamsa import edit\n\nrun = {call}.wait()"


def _anyway(config: RunConfig) -> str:
    return ", anyway=True" if unknown_words(config.prompt, config.model) else ""


def _unrepeatable(edit: EditConfig, folder: Path) -> str:
    if edit.control is not None:
        return f"# A control of a study ({edit.control.kind}), which no command repeats."
    return printable(f"# The parent of this edit, {edit.parent}, is no longer in {folder}.")


def _nearest_preset(config: RunConfig) -> tuple[BaseName, dict[str, Any]]:
    """The preset with the fewest differences, and these."""
    changes: dict[BaseName, dict[str, Any]] = {
        name: _changes(preset(name, config.prompt), config) for name in BASES
    }
    return min(changes.items(), key=lambda item: len(item[1]))


def _edit_options(config: RunConfig, parent: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `dreamsa.edit` that repeat an edit, and further settings that it changed."""
    edit = config.edit
    assert edit is not None
    kind = edit.eta, bool(edit.ascent_steps)
    names: list[EscapeName] = [n for n, row in ESCAPES.items() if (row.eta, row.ascends) == kind]
    escape = names[0] if names else "anneal" if edit.ascent_steps else "interpolate"
    row = ESCAPES[escape]
    ascent_steps = edit_length(parent, config.steps)[1] if row.ascends else 0
    default = EditConfig("", row.eta, ascent_steps)
    options: dict[str, Any] = {"escape": escape, "steps": config.steps}
    for name in ("eta", "ascent_steps", "scale", "moments"):
        if getattr(edit, name) != getattr(default, name):
            options[name] = getattr(edit, name)
    if edit.free is not None:
        free = {name: getattr(edit.free, name) for name in ("keep", "grow", "outside")}
        options |= {name: value for name, value in free.items() if value}
        options |= {"region": edit.free.regions} if edit.free.regions else {}
    # early versions did not record the parent's prompt
    known = replace(config, edit=replace(edit, parent_prompt=parent.prompt))
    changes = _changes(edited(parent, config.prompt, edit, config.steps), known)
    if "seed" in changes:
        options["seed"] = changes.pop("seed")
    return options, changes


def _changes(before: RunConfig, after: RunConfig) -> dict[str, Any]:
    """The settings of `after`, by dotted path, that differ from those of `before`, as JSON."""
    return _differences(*(json.loads(json.dumps(to_json(config))) for config in (before, after)))


def _differences(before: Any, after: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return {prefix.rstrip("."): after} if before != after else {}
    return {
        key: value
        for name in after
        for key, value in _differences(before.get(name), after[name], f"{prefix}{name}.").items()
    }


def _is_default(folder: Path) -> bool:
    return folder.resolve() == runs_folder().resolve()
