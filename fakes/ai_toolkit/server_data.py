"""What a fake server keeps, and where: its database, and the folders of datasets and outputs."""

from pathlib import Path

from fakes.ai_toolkit.rows import JobRows

SETTINGS = ("TRAINING_FOLDER", "DATASETS_FOLDER", "MODELS_PATH")
_DEFAULTS = {"TRAINING_FOLDER": "output", "DATASETS_FOLDER": "datasets", "MODELS_PATH": "models"}


class ServerData:
    """All below one folder: nothing outside of it is ever written or removed, whatever a client asks for."""

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
        """Whether a path lies inside the fake's own folder; the real server takes any."""
        return self.folder in path.resolve().parents

    def serves(self, path: Path) -> bool:
        """Whether a file may be downloaded: the real server serves its two roots only."""
        resolved = path.resolve()
        return any(root.resolve() in resolved.parents for root in (self.outputs(), self.datasets()))
