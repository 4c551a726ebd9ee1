"""All settings in one typed class, read once: from environment variables `IMPRINT_*`, then `.env`, then the defaults.

Without any setting Imprint runs on one machine: SQLite, a folder as object store and a private Redis. The modules of
this package have the settings in groups, each with a description that tools/tables.py writes into docs/settings.md.
"""

from functools import cache
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.settings.connections import ConnectionSettings
from core.settings.jobs import JobSettings
from core.settings.oidc import OidcSettings
from core.settings.processes import ProcessSettings
from core.settings.servers import ServerSettings
from core.settings.training import TrainingSettings
from core.settings.web import WebSettings


class Settings(
    ConnectionSettings, TrainingSettings, ServerSettings, JobSettings, WebSettings, OidcSettings, ProcessSettings,
    BaseSettings,
):  # fmt: skip
    """All settings of the service."""

    model_config = SettingsConfigDict(env_prefix="IMPRINT_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(Path(".imprint"), description="Folder for everything that the embedded defaults store.")

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home.resolve()}/imprint.db"

    @property
    def store(self) -> str:
        """Address of the object store: `s3://…` or the path of a folder."""
        return self.store_url or str(self.home.resolve() / "store")

    @property
    def run_dir(self) -> Path:
        """Folder in which a running stack stores what its clients need to connect; private to the user."""
        return self.home.resolve() / "run"

    @property
    def log_dir(self) -> Path:
        return self.home.resolve() / "logs"


@cache
def settings() -> Settings:
    """The settings of this process, read on the first call."""
    return Settings()
