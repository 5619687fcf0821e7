"""``keepstep check-config``: the settings, where each comes from, and whether a server could start with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from keepstep.cli_database import server_installed
from keepstep.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from keepstep.config import Settings
    from keepstep.config_check import Finding
    from keepstep.settings.loading import Loaded


@click.command("check-config")
@click.option("--offline", is_flag=True, help="Only the settings: ask neither the server's key nor the database.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check_config(offline: bool, as_json: bool) -> None:
    """Check the configuration and print it, secrets masked.

    Each setting is shown with where it comes from. Then the server's key and the database are asked whether a server
    could start with them. Changes nothing and starts nothing. Exit code 78: the configuration is wrong; 1: key or
    database cannot be used.
    """
    with server_installed():
        from keepstep import config, config_check

        try:
            loaded = config.read()
        except ConfigError as error:
            if as_json:
                click.echo(json.dumps({"problems": [line.strip() for line in str(error).splitlines()[1:]]}, indent=2))
            raise
        findings = [] if offline else config_check.check(loaded.settings)
        if as_json:
            click.echo(json.dumps(_as_object(loaded, findings), indent=2))
        else:
            _print(loaded, findings)
        if any(finding.is_problem for finding in findings):
            raise StartupError("a server cannot start like this: see above")


def _print(loaded: Loaded[Settings], findings: list[Finding]) -> None:
    from keepstep import config

    for name in config.Settings.model_fields:
        value = getattr(loaded.settings, name)
        text = "" if value is None else config.shown(name, value)
        click.echo(f"{config.variable(name)}={text}  # {loaded.origins.get(name, 'default')}")
    for finding in findings:
        click.echo(f"{'PROBLEM ' if finding.is_problem else ''}{finding.name}: {finding.text}")


def _as_object(loaded: Loaded[Settings], findings: list[Finding]) -> dict[str, Any]:
    from keepstep import config

    settings = [
        {
            "name": name,
            "variable": config.variable(name),
            "value": None if getattr(loaded.settings, name) is None else _plain(name, getattr(loaded.settings, name)),
            "from": loaded.origins.get(name, "default"),
            "changes_by": "reload" if config.reloadable(name) else "restart",
        }
        for name in config.Settings.model_fields
    ]
    checks = [{"name": one.name, "is_problem": one.is_problem, "text": one.text} for one in findings]
    return {"settings": settings, "checks": checks}


def _plain(name: str, value: object) -> object:
    """Numbers and yes or no as such, all else as text; secrets masked."""
    from keepstep import config

    return value if isinstance(value, (bool, int, float)) else config.shown(name, value)
