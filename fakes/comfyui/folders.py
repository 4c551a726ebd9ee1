"""The folders of the fake server: models by kind, inputs and outputs. New files are listed at once."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

_ENDINGS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft"}
KINDS = ("checkpoints", "diffusion_models", "text_encoders", "vae", "controlnet", "loras")

# Files that exist from the start, with common names. They are empty, because nothing reads them.
_STOCK = {
    "checkpoints": ("sd15.safetensors", "sd_xl_base_1.0.safetensors", "sd_xl_refiner_1.0.safetensors"),
    "diffusion_models": ("z_image_turbo_bf16.safetensors",),
    "text_encoders": ("qwen_3_4b.safetensors",),
    "vae": ("ae.safetensors",),
    "controlnet": ("canny.safetensors",),
}


class ComfyUIFolders:
    """All folders, below one root, with ComfyUI's layout."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.pictures = {kind: self.root / kind for kind in ("input", "output", "temp")}
        for folder in [*(self.models(kind) for kind in KINDS), *self.pictures.values()]:
            folder.mkdir(parents=True, exist_ok=True)
        for kind, names in _STOCK.items():
            for name in names:
                (self.models(kind) / name).touch()
        Image.new("RGB", (64, 64), "grey").save(self.pictures["input"] / "pose.png")

    def models(self, kind: str) -> Path:
        return self.root / "models" / kind

    def listed(self, kind: str) -> list[str]:
        """The files of a kind, with slashes: all of `input`, and those with a model suffix of the others."""
        if kind == "input":
            return sorted(path.name for path in self.pictures["input"].iterdir() if path.is_file())
        folder = self.models(kind)
        found = (path for path in folder.rglob("*") if path.suffix in _ENDINGS and path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in found)

    def within(self, folder: Path, parts: Iterable[str]) -> Path | None:
        """A path below `folder`; None if it is outside."""
        path = folder.joinpath(*parts).resolve()
        return path if path.is_relative_to(folder) else None
