"""The API reference as a page, rendered from the OpenAPI document without anything from another host."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader

router = APIRouter()

_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent.parent / "templates"), autoescape=True)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


@router.get("/docs", include_in_schema=False)
def reference(request: Request) -> HTMLResponse:
    document: dict[str, Any] = request.app.openapi()
    page = _TEMPLATES.get_template("reference.html").render(document=document, operations=_operations(document))
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every method of every path, with an example of its body if there is one."""
    return [
        {**operation, "method": method.upper(), "path": path, "example": _example(document, operation)}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def _example(document: dict[str, Any], operation: dict[str, Any]) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"].get(name, {}).get("example")
