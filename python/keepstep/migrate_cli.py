"""``keepstep migrate``: the schema of the server's database, up and down, and a new migration's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from keepstep.cli_database import server_installed, with_database
from keepstep.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.postgres.migrate import Planned


@click.group()
def migrate() -> None:
    """Bring the database's schema up or down. `serve` does `up` by itself."""


@migrate.command("status")
def migrate_status() -> None:
    """Show every migration, applied or pending. Changes nothing."""

    def show(url: str) -> None:
        from keepstep.postgres import migrate

        rows = migrate.status(url)
        for row in rows:
            state = "pending" if row.applied_at is None else f"applied {row.applied_at:%Y-%m-%d %H:%M:%S %Z}"
            click.echo(f"{row.version:04}_{row.name}  {state}{f'  PROBLEM: {row.problem}' if row.problem else ''}")
        if any(row.problem for row in rows):
            raise StartupError("the database's schema cannot be used as it is")

    with_database(show, beside_a_server=True)


@migrate.command("up")
@click.option("--to", type=click.IntRange(min=0), help="Stop after this version; all by default.")
@click.option("--dry-run", is_flag=True, help="Try it in a transaction that is rolled back, and say what it would do.")
def migrate_up(to: int | None, dry_run: bool) -> None:
    """Apply what is pending."""

    def apply(url: str) -> None:
        from keepstep.postgres import migrate

        if dry_run:
            _show_plan(migrate.plan_up(url, to=to), "would apply", "nothing to apply")
            return
        done = migrate.up(url, to=to)
        click.echo("\n".join(f"applied {one}" for one in done) or "nothing to apply")

    with_database(apply)


@migrate.command("down")
@click.option("--to", type=click.IntRange(min=0), required=True, help="The version to go back to; 0 for none.")
@click.option("--dry-run", is_flag=True, help="Try it in a transaction that is rolled back, and say what it would do.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def migrate_down(to: int, dry_run: bool, yes: bool) -> None:
    """Undo migrations, the newest first, with the data they stored."""
    if not (yes or dry_run):
        click.confirm("This deletes what the undone versions stored. Go on?", abort=True)

    def undo(url: str) -> None:
        from keepstep.postgres import migrate

        if dry_run:
            _show_plan(migrate.plan_down(url, to=to), "would undo", "nothing to undo")
            return
        done = migrate.down(url, to=to)
        click.echo("\n".join(f"undone {one}" for one in done) or "nothing to undo")

    with_database(undo)


@migrate.command("new")
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the files go; those of this keepstep by default.",
)
def migrate_new(name: str, folder: Path | None) -> None:
    """Write the two files of a new migration, with the next number. Opens no database."""
    with server_installed():
        from keepstep.postgres import migrationfiles

        for file in migrationfiles.new(name, folder):
            click.echo(f"wrote {file}")


def _show_plan(planned: Sequence[Planned], verb: str, nothing: str) -> None:
    """One line for each migration; nothing was changed."""
    for one in planned:
        tried = "tried and rolled back" if one.tried else "not tried: it or one before it runs outside transactions"
        click.echo(f"{verb} {one.migration}  ({tried})")
    click.echo("nothing was changed" if planned else nothing)
