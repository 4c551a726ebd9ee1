"""What keeps an installation: migrations of the database, back-up and restore of everything that must not be lost."""

from pathlib import Path

import click

from cli.terminal import answers, out, print_json
from core.settings import settings
from jobs.services import open_store, services
from storage import backup as backups
from storage.backup import Contents
from storage.database import Database


@click.command()
@answers
def migrate(*, as_json: bool) -> None:
    """Bring the database up to date; nothing is done where it is. Every process does so by itself at its start."""
    database = services().database
    with database.engine.connect() as connection:
        revision = database.revision(connection)
    if as_json:
        print_json({"revision": revision})
    else:
        out.print(f"the database is at revision {revision}", highlight=False)


@click.command("backup")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@answers
def back_up(folder: Path, *, as_json: bool) -> None:
    """Copy database and object store into FOLDER, while everything runs; the next time only what is new."""
    _say(backups.backup(services().database, services().store, folder), folder, "is in", as_json)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@answers
def restore(folder: Path, *, as_json: bool) -> None:
    """Put the back-up of FOLDER into the empty database and the store that the settings name.

    Jobs that ran go on with the next start of the workers. Do it with the old installation stopped for good: two that
    know the same jobs would train and tell everything twice.
    """
    # Not the database of `services()`, which would be brought up to date before it is filled.
    database = Database(settings().database)
    try:
        _say(backups.restore(database, open_store(settings()), folder), folder, "is restored from", as_json)
    finally:
        database.close()


def _say(made: Contents, folder: Path, what: str, as_json: bool) -> None:
    rows = sum(made.rows.values())
    if as_json:
        told = {"made_at": made.made_at, "revision": made.revision, "rows": made.rows}
        print_json(told | {"objects": len(made.objects), "size_bytes": made.size_bytes})
    else:
        out.print(
            f"{rows} rows and {len(made.objects)} objects ({made.size_bytes / 1e6:.1f} MB), as they were at "
            f"{made.made_at[:19]}, {what} {folder}",
            highlight=False,
            soft_wrap=True,
        )


UPKEEP: tuple[click.Command, ...] = (migrate, back_up, restore)
