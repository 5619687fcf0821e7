"""Settings in words: their variables, what each may be, how a value is shown, and the documentation's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Literal, get_args, get_origin

from pydantic import SecretStr

from keepstep.settings.types import Allowed, ReloadableMark
from keepstep.settings.units import unit_of, written

if TYPE_CHECKING:
    from pydantic import BaseModel

    from keepstep.settings.types import Rule

PREFIX: Final = "KEEPSTEP_"
SHOWN_CHARACTERS_MAX: Final = 256
"""How much of a value an error message or a log line repeats, characters: a path should be seen whole."""
MASKED: Final = "***"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def is_secret(model: type[BaseModel], name: str) -> bool:
    """Whether a setting is never shown, and may be read from a file of its own."""
    return SecretStr in annotation_parts(model.model_fields[name].annotation)


def is_reloadable(model: type[BaseModel], name: str) -> bool:
    """Whether a setting may change while the server runs."""
    field = model.model_fields[name]
    return any(isinstance(part, ReloadableMark) for part in (*field.metadata, *annotation_parts(field.annotation)))


def shown(model: type[BaseModel], name: str, value: object) -> str:
    """A setting's value as it may be shown: never a secret, never without bound, always on one line."""
    if value is None:
        return "not set"
    if is_secret(model, name):
        return MASKED
    return str(value).lower() if isinstance(value, bool) else shown_text(value)


def shown_text(value: object) -> str:
    """A text as it may be shown: cut, and on one line."""
    text = str(value)
    line = text if text.isprintable() else ascii(text)
    return line if len(line) <= SHOWN_CHARACTERS_MAX else line[:SHOWN_CHARACTERS_MAX] + "…"


def allowed(model: type[BaseModel], name: str) -> str:
    """What a setting may be, in words."""
    field = model.model_fields[name]
    parts = [*field.metadata, *annotation_parts(field.annotation)]
    for part in parts:
        if isinstance(part, Allowed):
            return part.text
        if get_origin(part) is Literal:
            return " or ".join(str(choice) for choice in get_args(part))
    if bool in parts:
        return "true or false"
    bounds = [
        (word, getattr(part, key))
        for word, key in (("from", "ge"), ("above", "gt"), ("up to", "le"))
        for part in parts
        if hasattr(part, key)
    ]
    numbers = " ".join(f"{word} {bound:,}".replace(",", "_") for word, bound in bounds)
    units = unit_of(name)
    of = f" of {units}" if units in ("bytes", "seconds", "milliseconds", "days") else ""
    ends = [written(name, bound) for _, bound in bounds]
    with_units = " to ".join(ends) if all(ends) else f"up to {ends[-1]}"
    whole = "whole " if int in parts else ""
    return f"a {whole}number{of} {numbers}{f' ({with_units})' if ends[-1] else ''}"


def annotation_parts(annotation: object) -> Iterator[object]:
    """An annotation and everything it is made of, metadata included."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from annotation_parts(part)
        for part in getattr(annotation, "metadata", ()):
            yield part


# -- the documentation ----------------------------------------------------------------------------------------------


def reference(model: type[BaseModel], sections: Mapping[str, str], rules: Iterable[Rule]) -> str:
    """The settings as Markdown tables, one a section, and the rules between them.

    Args:
        model: which there are.
        sections: by the name of a section's first setting its title.
        rules: what must hold between settings.
    """
    lines: list[str] = []
    for name, field in model.model_fields.items():
        if name in sections:
            lines += [""] if lines else []
            lines += [f"### {sections[name]}", "", _TABLE_HEAD, "|---|---|---|---|---|---|"]
        change = "reload" if is_reloadable(model, name) else "restart"
        lines.append(
            f"| `{variable(name)}` | {_default(model, name)} | {unit_of(name) or '-'} | {allowed(model, name)} "
            f"| {change} | {field.description} |"
        )
    lines += ["", "### Between settings", "", *(f"- {rule.text}." for rule in rules)]
    return "\n".join(lines) + "\n"


_TABLE_HEAD: Final = "| variable | default | unit | allowed | changes by | what it is |"


def _default(model: type[BaseModel], name: str) -> str:
    default = model.model_fields[name].default
    if default is None or default == "":
        return "not set" if default is None else "none"
    text = str(default).lower() if isinstance(default, bool) else str(default)
    with_unit = written(name, default) if isinstance(default, (int, float)) and not isinstance(default, bool) else ""
    return f"`{text}`{f' ({with_unit})' if with_unit and not with_unit.startswith(text) else ''}"
