"""`imprint migrate`, `backup` and `restore`: database schema, and copies of database and object store."""

from pathlib import Path

import click

from cli.output.terminal import answers, out, print_json
from core.private import keep_private
from core.settings import settings
from jobs.services import open_store, services
from storage import backup as backups
from storage.backup import BackupManifest
from storage.database import Database


@click.command()
@answers
def migrate(*, as_json: bool) -> None:
    """Update the database schema. Every process does this at its start."""
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
    """Copy database and object store into FOLDER.

    The installation can keep running. Another backup into the same FOLDER copies only what is new.
    """
    keep_private(settings().home)
    _print_contents(backups.backup(services().database, services().store, folder), folder, "is in", as_json)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@answers
def restore(folder: Path, *, as_json: bool) -> None:
    """Restore the backup in FOLDER into an empty database.

    Database and object store are those of the settings. Jobs continue when the workers start. Stop the old installation
    for good first: two installations with the same jobs would train and send everything twice.
    """
    keep_private(settings().home)
    # Not the database of `services()`: its schema would be created before the backup is restored.
    database = Database(settings().database)
    try:
        _print_contents(backups.restore(database, open_store(settings()), folder), folder, "is restored from", as_json)
    finally:
        database.close()


def _print_contents(made: BackupManifest, folder: Path, what: str, as_json: bool) -> None:
    rows = sum(made.rows.values())
    if as_json:
        summary = {"made_at": made.made_at, "revision": made.revision, "rows": made.rows}
        print_json(summary | {"objects": len(made.objects), "size_bytes": made.size_bytes})
    else:
        out.print(
            f"{rows} rows and {len(made.objects)} objects ({made.size_bytes / 1e6:.1f} MB), as they were at "
            f"{made.made_at[:19]}, {what} {folder}",
            highlight=False,
            soft_wrap=True,
        )


UPKEEP: tuple[click.Command, ...] = (migrate, back_up, restore)
