"""A command group whose help lists the commands by subject."""

from collections.abc import Iterator, Sequence

import click


class SectionedGroup(click.Group):
    """A click group that keeps a section for each command."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._sections: dict[str, list[str]] = {}

    def add_section(self, title: str, commands: Sequence[click.Command]) -> None:
        """Add commands under a heading of `--help`."""
        for command in commands:
            self.add_command(command)
            self._sections.setdefault(title, []).append(str(command.name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands), default=0)
        for title, rows in self._rows(formatter.width - 6 - width):
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])

    def _rows(self, limit: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        for title, names in self._sections.items():
            yield title, [(name, self.commands[name].get_short_help_str(limit)) for name in names]
