"""The HTTP API of the fake server for datasets, captions and files."""

import re
import shutil
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fakes.ai_toolkit.faults import record_subject
from fakes.ai_toolkit.options import FakeToolkitOptions
from fakes.ai_toolkit.server_data import ServerData
from fakes.json_body import json_body

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_MAX_FILES = 10_000


def routes(server_data: ServerData, options: FakeToolkitOptions) -> list[Route]:
    """The routes. With `old_api`, as before 2026-07: other formats, and no getBatch."""
    files = FilesApi(server_data, options)
    made = [
        Route("/api/datasets/list", files.list_datasets),
        Route("/api/datasets/create", files.create, methods=["POST"]),
        Route("/api/datasets/upload", files.upload, methods=["POST"]),
        Route("/api/datasets/listImages", files.list_images, methods=["POST"]),
        Route("/api/datasets/delete", files.delete, methods=["POST"]),
        Route("/api/caption/get", files.caption, methods=["POST"]),
        Route("/api/img/caption", files.set_caption, methods=["POST"]),
        Route("/api/img/delete", files.delete_picture, methods=["POST"]),
        Route("/api/img/{path:path}", files.file),
        Route("/api/files/{path:path}", files.file),
    ]
    if not options.old_api:
        made.append(Route("/api/caption/getBatch", files.captions, methods=["POST"]))
    return made


class FilesApi:
    """The request handlers."""

    def __init__(self, server_data: ServerData, options: FakeToolkitOptions) -> None:
        self.server_data, self.options = server_data, options

    async def list_datasets(self, request: Request) -> Response:
        root = self.server_data.datasets()
        root.mkdir(exist_ok=True)
        return JSONResponse(
            sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        )

    async def create(self, request: Request) -> Response:
        name = re.sub(r"[^a-z0-9]+", "_", str((await json_body(request)).get("name") or "").lower())
        record_subject(request.scope, name)
        try:
            if not name:
                raise OSError
            (self.server_data.datasets() / name).mkdir(exist_ok=True)  # fails if the root does not exist
        except OSError:
            return JSONResponse({"error": "Failed to create dataset"}, 500)
        return JSONResponse({"success": True, "name": name})

    async def upload(self, request: Request) -> Response:
        try:
            async with request.form(max_files=_MAX_FILES) as form:
                name = form.get("datasetName")
                parts = [part for part in form.getlist("files") if isinstance(part, UploadFile)]
                files = [(str(part.filename), await part.read()) for part in parts]
        except HTTPException:
            return JSONResponse({"error": "Error uploading files"}, 500)
        record_subject(request.scope, name)
        if not files:
            return JSONResponse({"error": "No files provided"}, 400)
        if not isinstance(name, str) or not self.server_data.is_ours(folder := self.server_data.datasets() / name):
            return JSONResponse({"error": "Error uploading files"}, 500)
        folder.mkdir(parents=True, exist_ok=True)
        stored = []
        for given, data in files:
            kept = re.sub(r"[^a-zA-Z0-9.-]", "_", given)
            (folder / kept).write_bytes(data)  # replaces existing files
            stored.append(kept)
        return JSONResponse({"message": "Files uploaded successfully", "files": stored})

    async def list_images(self, request: Request) -> Response:
        name = str((await json_body(request)).get("datasetName"))
        folder = self.server_data.datasets() / name
        if not folder.is_dir() or not self.server_data.is_ours(folder):
            return JSONResponse({"error": f"Folder '{name}' not found"}, 404)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES)
        if self.options.old_api:
            return JSONResponse({"images": [{"img_path": str(path)} for path in paths]})
        return JSONResponse({"root": f"{folder}/", "images": [str(path.relative_to(folder)) for path in paths]})

    async def delete(self, request: Request) -> Response:
        name = str((await json_body(request)).get("name") or "")
        record_subject(request.scope, name)
        folder = self.server_data.datasets() / name  # with "" this is the folder of all datasets
        if self.server_data.is_ours(folder):
            shutil.rmtree(folder, ignore_errors=True)
        return JSONResponse({"success": True})

    async def caption(self, request: Request) -> Response:
        path = self._inside((await json_body(request)).get("imgPath"))
        return PlainTextResponse(_caption(path)) if path is not None else PlainTextResponse("Access denied", 403)

    async def captions(self, request: Request) -> Response:
        paths = (await json_body(request)).get("imgPaths") or []
        inside = {str(given_path): self._inside(given_path) for given_path in paths}
        return JSONResponse(
            {"captions": {given_path: _caption(path) for given_path, path in inside.items() if path is not None}}
        )

    async def set_caption(self, request: Request) -> Response:
        given = await json_body(request)
        path = self._inside(given.get("imgPath"))
        if path is None:
            return JSONResponse({"error": "Invalid image path"}, 400)
        if not path.is_file():
            return JSONResponse({"error": "Image does not exist"}, 404)
        path.with_suffix(".txt").write_text(str(given.get("caption")), encoding="utf-8")
        return JSONResponse({"success": True})

    async def delete_picture(self, request: Request) -> Response:
        path = self._inside((await json_body(request)).get("imgPath"))
        if path is None:
            return JSONResponse({"error": "Invalid image path"}, 400)
        path.unlink(missing_ok=True)
        path.with_suffix(".txt").unlink(missing_ok=True)
        return JSONResponse({"success": True})

    async def file(self, request: Request) -> Response:
        given_path = request.path_params["path"]
        path = Path(given_path)
        if not given_path.startswith("/") or not self.server_data.serves(
            path
        ):  # with plain slashes the leading one is dropped
            return PlainTextResponse("Access denied", 403)
        if path.is_dir():
            return PlainTextResponse("Not a file", 400)
        if not path.is_file():
            return PlainTextResponse("File not found", 404)
        record_subject(request.scope, path.name)
        kind = "image/jpeg" if path.suffix == ".jpg" else "application/octet-stream"
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "public, max-age=86400"})

    def _inside(self, given_path: Any) -> Path | None:
        """The path, if it is inside the datasets folder."""
        if not isinstance(given_path, str):
            return None
        path = Path(given_path)
        return path if self.server_data.datasets().resolve() in path.resolve().parents else None


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    return beside.read_text(encoding="utf-8") if beside.is_file() else ""
