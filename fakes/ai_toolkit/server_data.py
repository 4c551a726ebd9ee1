"""The data of the fake server: its database, and the folders for datasets and outputs."""

from pathlib import Path

from fakes.ai_toolkit.rows import JobRows

SETTINGS = ("TRAINING_FOLDER", "DATASETS_FOLDER", "MODELS_PATH")
_DEFAULTS = {"TRAINING_FOLDER": "output", "DATASETS_FOLDER": "datasets", "MODELS_PATH": "models"}


class ServerData:
    """All data, in one folder. Requests can never write or delete anything outside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = JobRows(self.folder / "aitk_db.db")

    def settings(self) -> dict[str, Path]:
        return {key: Path(self.rows.setting(key, str(self.folder / name))) for key, name in _DEFAULTS.items()}

    def outputs(self) -> Path:
        return self.settings()["TRAINING_FOLDER"]

    def datasets(self) -> Path:
        return self.settings()["DATASETS_FOLDER"]

    def is_ours(self, path: Path) -> bool:
        """Whether a path is inside the fake's folder; a real server accepts any path."""
        return self.folder in path.resolve().parents

    def serves(self, path: Path) -> bool:
        """Whether a file may be downloaded: a real server serves only these two folders."""
        resolved = path.resolve()
        return any(root.resolve() in resolved.parents for root in (self.outputs(), self.datasets()))
