"""Words that a model trained on few words knows, and what it would make of a prompt."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from dreamsa.config import ModelConfig
from dreamsa.guidance.stable_diffusion import ModelNotFound, locate_model, read_json
from dreamsa.presets import MODEL_ALIASES

VOCABULARY = "vocabulary.json"
"""Optional file of a model folder: the words of a model that was trained on few."""
PLAIN = frozenset(["a", "an", "the", "of", "in", "on", "at", "to", "and", "with", "its", "natural"])
"""Words that change nothing."""
SIMILAR = 0.7
"""Similarity (difflib's ratio) from which a known word is suggested for an unknown one."""


class Reading(NamedTuple):
    """What a model understands of a prompt."""

    unknown: list[str]
    """Words that it does not know, in order."""
    makes: str
    """What it would make, such as "a hat"; empty if the prompt names no object that it knows."""
    suggestion: str
    """The prompt with unknown words replaced by near ones; empty if none is near."""


class UnknownWords(ValueError):
    """A prompt has words that the model does not know.

    `problem` names them; the message also says what to do on the command line.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem


def vocabulary(config: ModelConfig) -> dict[str, list[str]] | None:
    """Words of a local model by kind ("objects", "colours"); None if unlisted.

    Raises:
        ModelNotFound: The list is damaged.
    """
    kind, source = locate_model(config)
    path = Path(source) / VOCABULARY
    if kind != "folder" or not path.is_file():
        return None
    known = read_json(path)
    for name in ("objects", "colours"):
        words = known.get(name)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ModelNotFound(f"{path} is damaged: {name} must be a list of words.")
    return known


def read_prompt(prompt: str, known: dict[str, list[str]]) -> Reading:
    """What a model with this vocabulary understands of a prompt."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    text = f" {' '.join(words)} "
    objects = [name for name in known["objects"] if f" {name} " in text]
    colours = [name for name in known["colours"] if name in words]
    understood = PLAIN.union(colours, *(name.split() for name in objects))
    unknown = [word for word in words if word not in understood]
    nearest = {word: _nearest(word, known) for word in unknown}
    corrected = " ".join(nearest.get(word) or word for word in words)
    fits = any(f" {name} " in f" {corrected} " for name in known["objects"])
    makes = " and ".join(_with_article(" ".join([*colours, name])) for name in objects)
    return Reading(unknown, makes, corrected if any(nearest.values()) and fits else "")


def _nearest(word: str, known: dict[str, list[str]]) -> str:
    found = get_close_matches(word, [*known["objects"], *known["colours"]], 1, SIMILAR)
    return found[0] if found else ""


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def unknown_words(prompt: str, config: ModelConfig) -> str:
    """What a model does not know of a prompt, as text; empty if it knows all or has no list."""
    known = vocabulary(config)
    if known is None:
        return ""
    unknown, makes, suggestion = read_prompt(prompt, known)
    if makes and not unknown:
        return ""
    hint = f" Did you mean {suggestion!r}?" if suggestion else ""
    if makes:
        words = ", ".join(dict.fromkeys(unknown))
        return f"The embedded model does not know: {words}; it would make {makes}.{hint}"
    objects, colours = ", ".join(known["objects"]), ", ".join(known["colours"])
    return (
        f"The embedded model has no words for {prompt!r}.{hint} It knows: {objects}; in {colours}."
    )


def check_prompt_words(prompt: str, config: ModelConfig) -> None:
    """Check that a model with a vocabulary knows a prompt's words.

    Raises:
        UnknownWords: What it does not know, what it would make, near words, and what to do.
    """
    if problem := unknown_words(prompt, config):
        bigger = next(iter(MODEL_ALIASES))
        remedy = f"Use words that it knows, a bigger model (--model {bigger}), or add --anyway."
        raise UnknownWords(problem, remedy)
