"""The static files of the page: their addresses, and the styles that a first visit gets within the page.

On a slow connection a style in a file of its own costs one more round trip before anything is seen. So a browser
without the cookie gets the styles in the page, and loads all their files, as if for print, so that no paint waits for
them: they are in its cache for the pages after.
"""

import hashlib
from base64 import b64encode
from functools import cache
from pathlib import Path

from fastapi import Request
from jinja2.runtime import Context
from markupsafe import Markup

STATIC = Path(__file__).resolve().parent.parent / "static"
COOKIE = "imprint_styles"  # the version that the browser has loaded
LASTS_S = 30 * 86400


@cache
def asset(name: str) -> str:
    """The address of a static file. It changes with the content, so browsers may cache it forever."""
    return f"/static/{name}?v={_digest(name).hex()[:12]}"


@cache
def version() -> str:
    """The version of all styles."""
    return hashlib.sha256(b"".join(map(_digest, sheets()))).hexdigest()[:12]


@cache
def sheets() -> tuple[str, ...]:
    """The names of all stylesheets."""
    return tuple(sorted(path.name for path in STATIC.glob("*.css")))


@cache
def _digest(name: str) -> bytes:
    return hashlib.sha256(_content(name)).digest()


@cache
def _content(name: str) -> bytes:
    return (STATIC / name).read_bytes()


@cache
def policy() -> str:
    """The sources of the Content-Security-Policy that allow the styles in a page."""
    return " ".join(f"'sha256-{b64encode(_digest(name)).decode()}'" for name in sheets())


def is_first(request: Request) -> bool:
    """Whether a browser opens a page and has no styles yet. Scripts that load a page need none."""
    return "text/html" in request.headers.get("accept", "") and request.cookies.get(COOKIE) != version()


def style(context: Context, name: str) -> Markup:
    """The element of a stylesheet."""
    if not context["has_styles_within"]:
        return Markup('<link rel="stylesheet" href="{}">').format(asset(name))
    return Markup("<style>{}</style>").format(Markup(_content(name).decode()))  # noqa: S704 - a file of ours
