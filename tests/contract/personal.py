"""Where an owner's things are: everything in the database, the object store and the home folder, searched for words."""

from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa

from jobs.services import Services


def places(services: Services, words: Iterable[str | bytes], skip: Iterable[Path] = ()) -> set[str]:
    """Each place that has one of the words: `table.column`, `object KEY` or `file PATH`."""
    wanted = [word if isinstance(word, bytes) else word.encode() for word in words]
    found = {place for place, content in _contents(services, set(skip)) if any(word in content for word in wanted)}
    return {place.split("\0")[0] for place in found}


def _contents(services: Services, skip: set[Path]) -> Iterable[tuple[str, bytes]]:
    engine = services.database.engine
    schema = sa.MetaData()
    schema.reflect(engine)
    with engine.connect() as connection:
        for table in schema.sorted_tables:
            for number, row in enumerate(connection.execute(sa.select(table))):
                for name, value in row._mapping.items():
                    content = value if isinstance(value, bytes) else str(value).encode()
                    yield f"{table.name}.{name}\0{number}", content
    for key in services.store.list(""):
        yield f"object {key}", key.encode() + services.store.get(key)
    for path in services.settings.home.rglob("*"):
        if path.is_file() and not any(path.is_relative_to(one) for one in skip):
            yield f"file {path.relative_to(services.settings.home)}", str(path).encode() + path.read_bytes()
