"""Settings: frozen dataclasses that pydantic validates at construction, whether in Python, from
JSON or from `--set`."""

import ast
import inspect
import json
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, dataclass_transform, get_args

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

Settings = TypeVar("Settings")
Class = TypeVar("Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def settings(section: str = "") -> Callable[[Class], Class]:
    """Make a class a frozen, validated dataclass.

    Wrong types, values out of range, NaN and unknown names raise a ValueError of one sentence that
    names the setting, the value found and the values allowed.

    Args:
        section: Name of the section in error messages, such as "camera" in
            "camera.batch".
    """

    def decorate(cls: Class) -> Class:
        made = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(cls)
        validate: Callable[..., None] = made.__init__

        @wraps(validate)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                validate(self, *args, **kwargs)
            except ValidationError as error:
                raise ValueError(_sentence(error, made, section)) from None

        made.__init__ = init
        return made  # pyright: ignore[reportReturnType]

    return decorate


def first_problem(error: ValidationError) -> str:
    """The first problem of a validation error: "lineage.0.id: Field required"."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"


def from_tree(cls: type[Settings], tree: Any) -> Settings:
    """Build settings from nested dictionaries, as JSON holds them.

    Raises:
        ValueError: Not an object, an unknown name, or a value that is not allowed.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"The configuration must be an object, got {type(tree).__name__}.")
    return cls(**tree)


def to_tree(config: Any) -> dict[str, Any]:
    """Nested dictionaries of all settings; JSON can hold them."""
    return asdict(config)


def with_overrides(config: Settings, overrides: Mapping[str, Any]) -> Settings:
    """A copy with some settings changed by their dotted names: {"distill.guidance_scale": 30,
    "steps": 100}.

    Raises:
        ValueError: An unknown name (with the nearest ones), or a value that is not allowed.
    """
    if not overrides:
        return config
    tree = to_tree(config)
    for name, value in overrides.items():
        *path, last = name.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise ValueError(_unknown(name, names_of(config)))
        node[last] = value
    return from_tree(type(config), tree)


def parse_setting(text: str) -> tuple[str, Any]:
    """Split "distill.guidance_scale=30" into a name and a value: JSON where it can be read as such,
    else text.

    Raises:
        ValueError: There is no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(
            f"A setting is written name=value, e.g. distill.guidance_scale=30; got {text!r}."
        )
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()


class Setting(NamedTuple):
    """One setting, for help texts and lists."""

    name: str  # dotted
    value: Any
    allowed: str
    """Its range or choices, in words."""
    text: str


def described(config: Any, prefix: str = "") -> Iterator[Setting]:
    """All settings of `config` with their values, ranges or choices, and docstrings."""
    texts, schema = docstrings(type(config)), TypeAdapter(type(config)).json_schema()
    for field in fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from described(value, f"{name}.")
        else:
            allowed = _allowed(schema["properties"][field.name])
            yield Setting(name, value, allowed, texts.get(field.name, ""))


def docstrings(cls: type) -> dict[str, str]:
    """The docstrings below the fields of a class, each in one line."""
    (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(parsed, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(text.value.value.split())
        for field, text in pairwise(parsed.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


BOUNDS = {
    "exclusiveMinimum": "more than",
    "minimum": "at least",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
}
KINDS = {"integer": "whole number", "number": "number", "string": "text", "array": "list"}


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema of one value allows, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_allowed, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = str(schema.get("type", "any"))
    if kind == "boolean":
        return "true, false"
    bounds = [f"{words} {schema[key]:g}" for key, words in BOUNDS.items() if key in schema]
    return " ".join([KINDS.get(kind, kind), ", ".join(bounds)]).strip()


def read_overrides(path: Path, config: Any) -> dict[str, Any]:
    """The settings in a JSON, TOML or YAML file by their dotted names, for `with_overrides`.

    The file holds some or all settings of `config`, nested as in its JSON.

    Raises:
        ValueError: It cannot be read, or holds an unknown name (with the nearest ones).
    """
    readers = {".json": json.loads, ".toml": tomllib.loads}
    readers |= dict.fromkeys((".yaml", ".yml"), yaml.safe_load)
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} must end in {', '.join(readers)}.")
    try:
        tree = readers[path.suffix.lower()](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = path.suffix[1:].upper()
        raise ValueError(f"{path} is not {kind}: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold settings by name, got {type(tree).__name__}.")
    found, known = _flat(tree, config), list(names_of(config))
    for name in found:
        if name not in known and not any(one.startswith(f"{name}.") for one in known):
            raise ValueError(f"{path}: {_unknown(name, known)}")
    return found


def _flat(tree: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Values of a tree by their dotted names; nested where `config` has a section."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        section = getattr(config, str(name), None)
        if isinstance(value, dict) and is_dataclass(section):
            found |= {f"{name}.{rest}": leaf for rest, leaf in _flat(value, section).items()}
        else:
            found[str(name)] = value
    return found


def values_of(config: Any) -> dict[str, Any]:
    """All settings by their dotted names; of a section that is None, None."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= {f"{field.name}.{rest}": leaf for rest, leaf in values_of(value).items()}
        else:
            found[field.name] = value
    return found


def names_of(config: Any) -> Iterator[str]:
    """Dotted names of all settings; of a section that is None, its own name."""
    yield from values_of(config)


def _unknown(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = get_close_matches(name, known, 3) or [one for one in known if one.endswith(f".{name}")]
    hint = f" Did you mean {', '.join(near)}?" if near else f" Settings: {', '.join(known)}."
    return f"There is no setting {name!r}.{hint}"


def _sentence(error: ValidationError, cls: type, section: str) -> str:
    """The first problem of a validation error as a sentence."""
    first = error.errors(include_url=False)[0]
    path = list(first["loc"])
    if path and isinstance(path[0], int):  # given by position
        path[0] = fields(cls)[path[0]].name if path[0] < len(fields(cls)) else path[0]
    where = ".".join(map(str, ([section] if section else []) + path))
    message: str = first["msg"]
    if first["type"] == "unexpected_keyword_argument":
        holder: Any = cls
        for part in path[:-1]:
            kind = next((f.type for f in fields(holder) if f.name == part), None)
            holder = next((one for one in (kind, *get_args(kind)) if is_dataclass(one)), cls)
        prefix = where.rpartition(".")[0]
        return _unknown(where, [f"{prefix}.{f.name}".lstrip(".") for f in fields(holder)])
    if first["type"] == "value_error":  # raised by a check of ours: a complete sentence
        return message.removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"The setting {where} is missing."
    wanted = message.replace("Input should be", "must be", 1)
    found = repr(first["input"])
    return f"{where} {wanted}, got {found if len(found) <= 100 else found[:100] + '...'}."
