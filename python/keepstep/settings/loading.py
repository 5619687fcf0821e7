"""Reads settings from the environment, files of secrets and a TOML file, and reports all that is wrong at once."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, TomlConfigSettingsSource

from keepstep.errors import ConfigError
from keepstep.settings.describing import PREFIX, allowed, is_secret, shown, shown_text, variable
from keepstep.settings.secrets import SUFFIX, SecretFileError, is_open_to_all, read_secret
from keepstep.settings.types import RulesBrokenError

FILE_VARIABLE: Final = "KEEPSTEP_CONFIG"
"""Names the TOML file."""
DEVICE_VARIABLES: Final = frozenset({"KEEPSTEP_HOME", "KEEPSTEP_DEVICE"})
"""Of the device commands (``keepstep.client.cli``), not settings; they may be set where a server runs."""

S = TypeVar("S", bound=BaseSettings)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """Settings and where they come from.

    Attributes:
        settings: checked.
        origins: by setting that somebody gave, where: a variable, a file a variable names, or a key of the TOML file.
    """

    settings: S
    origins: Mapping[str, str]


@dataclass(slots=True)
class _Found:
    """What the surroundings say, so far.

    Attributes:
        values: of settings, not checked yet.
        names: by setting, what an error message calls the value.
        origins: by setting, where its value comes from, for people.
        problems: one a line.
    """

    values: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, setting: str, value: object, name: str, origin: str) -> None:
        """A value that goes before those found earlier."""
        self.values[setting], self.names[setting], self.origins[setting] = value, name, origin


def load(model: type[S], usual_variables: Mapping[str, str], one_value: Collection[str] = ()) -> Loaded[S]:
    """The settings of this process: environment, then TOML file, then defaults.

    Args:
        model: which there are.
        usual_variables: other names of some settings, and which.
        one_value: of these, the settings whose two variables must not say different things.

    Raises:
        ConfigError: with every problem found, one a line: files, unknown names, values, rules between values.
    """
    found = _Found()
    _read_file(model, found)
    found.problems += _unknown_variables(model)
    _read_environment(model, usual_variables, one_value, found)
    try:
        settings = model(**found.values)
    except ValidationError as error:
        found.problems += _value_problems(model, error, found)
    else:
        if not found.problems:
            return Loaded(settings, found.origins)
    # Without the cause: pydantic's error carries the values, and with them the secrets.
    raise unusable(found.problems) from None


def unusable(problems: Iterable[str]) -> ConfigError:
    """The error that lists problems, one a line."""
    return ConfigError("the configuration cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))


def merged(model: type[S], settings: S, changes: Mapping[str, Any]) -> S:
    """Settings with some of them changed, checked anew.

    Raises:
        ConfigError: the changed ones contradict the others.
    """
    try:
        return model(**{**dict(settings), **changes})
    except ValidationError as error:
        broken = error.errors()[0].get("ctx", {}).get("error")
        assert isinstance(broken, RulesBrokenError), "each value was checked before"
        problems = [f"{rule.text} (one of them changes with a restart only)" for rule in broken.rules]
    raise unusable(problems)


def _read_file(model: type[S], found: _Found) -> None:
    """The values of the file that ``KEEPSTEP_CONFIG`` names, and what is wrong with that file."""
    path = os.environ.get(FILE_VARIABLE)
    if not path:
        return
    must = f"{FILE_VARIABLE}={shown_text(path)}: must be the path of a TOML file"
    try:
        if not Path(path).is_file():
            found.problems.append(f"{must}; there is no file there")
            return
        values = TomlConfigSettingsSource(model, toml_file=path)()
        everybody = is_open_to_all(Path(path), Path(path).stat().st_mode)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        found.problems.append(f"{must}; reading it failed: {error}")
        return
    except RecursionError:
        found.problems.append(f"{must}; reading it failed: it is nested too deep")
        return
    for name, value in values.items():
        if name in model.model_fields:
            found.add(name, value, f"{name} in {path}", path)
            if everybody and is_secret(model, name):
                found.problems.append(
                    f"{name} in {path}=***: every user of this machine can read it; chmod o-r the file"
                )
        else:
            guess = _closest(name, model.model_fields)
            found.problems.append(f"{shown_text(name)} in {path}: there is no such setting{guess}")


def _read_environment(
    model: type[S], usual_variables: Mapping[str, str], one_value: Collection[str], found: _Found
) -> None:
    """The values of variables, and of the files that variables of secrets name: those with our prefix come last."""
    for usual, name in usual_variables.items():
        if os.environ.get(usual):
            if name in one_value:
                found.problems += _two_values(usual, name)
            found.add(name, os.environ[usual], usual, usual)
        _read_secret(name, usual, found)
    for name, value in EnvSettingsSource(model, env_prefix=PREFIX, env_ignore_empty=True)().items():
        found.add(name, value, variable(name), variable(name))
    for name in model.model_fields:
        if is_secret(model, name):
            _read_secret(name, variable(name), found)


def _two_values(usual: str, name: str) -> list[str]:
    """A setting that both of its variables set, to different values; who reads only one would take the other."""
    ours = os.environ.get(variable(name))
    if not ours or ours == os.environ[usual]:
        return []
    return [f"{variable(name)}=***, {usual}=***: must not be set to different values: which one counts?"]


def _read_secret(name: str, of_variable: str, found: _Found) -> None:
    """The secret in the file that ``…_FILE`` names, and what is wrong with that file."""
    by = of_variable + SUFFIX
    path = os.environ.get(by)
    if not path:
        return
    if os.environ.get(of_variable):
        found.problems.append(f"{of_variable}=***, {by}={shown_text(path)}: must not both be set: which one counts?")
        return
    try:
        secret = read_secret(path)
    except SecretFileError as error:
        found.problems.append(f"{by}={shown_text(path)}: must be the path of a file with the secret in it; {error}")
    else:
        found.add(name, secret, f"{by}={shown_text(path)} with {of_variable}", f"{path}, which {by} names")


def _unknown_variables(model: type[S]) -> list[str]:
    """Variables with our prefix that mean nothing: most often a typing error, which must not go unnoticed."""
    secrets = {variable(name) + SUFFIX for name in model.model_fields if is_secret(model, name)}
    known = {FILE_VARIABLE, *DEVICE_VARIABLES, *map(variable, model.model_fields), *secrets}
    return [
        f"{name}: there is no such setting{_closest(name.upper(), known)}"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]


def _closest(name: str, known: Iterable[str]) -> str:
    """A guess at what was meant; the prefix, which all share, makes nothing alike."""
    candidates = {candidate.removeprefix(PREFIX): candidate for candidate in known}
    matches = difflib.get_close_matches(name.removeprefix(PREFIX), candidates, n=1)
    return f"; did you mean {candidates[matches[0]]}?" if matches else ""


def _value_problems(model: type[S], error: ValidationError, found: _Found) -> list[str]:
    """One line a wrong value and a broken rule. Rules are tried again without the wrong values, to find all at once."""
    values, names = found.values, found.names
    wrong = list(dict.fromkeys(str(detail["loc"][0]) for detail in error.errors() if detail["loc"]))
    problems = [f"{names[name]}={shown(model, name, values[name])}: must be {allowed(model, name)}" for name in wrong]
    try:
        model(**{name: value for name, value in values.items() if name not in wrong})
    except ValidationError as rules_error:
        for rule in rules_error.errors()[0]["ctx"]["error"].rules:
            if not set(rule.fields) & set(wrong):
                given = (values.get(name, model.model_fields[name].default) for name in rule.fields)
                texts = (
                    f"{names.get(name, variable(name))}={shown(model, name, value)}"
                    for name, value in zip(rule.fields, given, strict=True)
                )
                problems.append(f"{', '.join(texts)}: {rule.text}")
    return problems
