"""Rendering of templates: texts and number formats that all pages share, and the security headers."""

import gzip
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from markupsafe import Markup, escape

from web.pages import assets, options, texts
from web.pages.assets import STATIC, asset, style
from web.pages.messages import said
from web.pages.texts import Texts, count, gettext, language, ngettext, number
from web.pages.wording import browser, label, sentence

_TEMPLATES = Path(__file__).parent.parent / "templates" / "page"
_STYLES = "style-src 'self'"
# Nothing is loaded from other hosts, and no inline script runs.
_POLICY = (
    f"default-src 'none'; script-src 'self'; {_STYLES}; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers would not send the origin of our forms
    "Cross-Origin-Opener-Policy": "same-origin",
}

STATUSES = {
    "pending": "Waiting",
    "training": "Training",
    "drawing": "Drawing",
    "ready": "Ready",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
STAGES = {
    "preprocess": "Check pictures",
    "caption": "Write captions",
    "review": "Review captions",
    "dataset": "Build dataset",
    "train": "Train",
    "upload": "Check and upload",
    "settle": "Settle credits",
}
ENTRIES = {
    "grant": "Credits granted",
    "hold": "Held for a training",
    "settle": "Charged for a training",
    "release": "Hold released",
    "expire": "Hold expired",
    "refund": "Refunded",
}
DRAWING_ENTRIES = ENTRIES | {"hold": "Held for a drawing", "settle": "Charged for a drawing"}
DELETION_KINDS = {"picture": "Picture", "subject": "Subject", "training": "Training", "owner": "Account"}
SIDES = {"left": "Left", "top": "Top", "width": "Width", "height": "Height"}
SCOPES = {
    "read": "look",
    "train": "train and change",
    "priority": "train with high priority",
    "view": "look at the operators' pages",
    "operate": "operate",
}
GROUPS = {
    "": "The LoRA and its training",
    "adapter.": "Layers",
    "optimization.": "Optimizer",
    "objective.": "Loss",
    "data.": "Pictures and captions",
    "validation.": "Checks and samples",
}
NOTICES = {
    "saved": "Settings saved.",
    "on": "Automatic training is on.",
    "off": "Automatic training is off.",
    "captioned": "Caption saved.",
    "cropped": "Later trainings see this part.",
    "uncropped": "Later trainings see the whole picture.",
    "masked": "Mask saved. Later trainings count only what it shows.",
    "unmasked": "Mask removed.",
    "removed": "Picture removed. Trainings that use it continue.",
    "uploaded": "Pictures stored.",
    "some": "Some of it could not be used: the list below says what and why.",  # see `_BAD`
    "started": "Training started.",
    "cancelled": "Training cancelled.",
    "accepted": "Captions accepted.",
    "ended": "Signed out there.",
    "drawing": "Drawing started.",
    "undrawn": "Drawing cancelled.",
    "sending": "The LoRA is sent to ComfyUI.",
    "delivered": "Downloads and drawings use this checkpoint now.",
    "deleting": "It will be deleted.",
    "undone": "The deletion is undone.",
    "notices": "Notices saved.",
    "recipe": "Recipe saved. The next training uses it.",
    "granted": "Credits granted.",
    "limits": "Limits saved.",
    "renamed": "The owner is renamed. Applications must send the new name from now on.",
    "refunded": "Credits refunded.",
    "paused": "Paused: nothing new starts.",
    "resumed": "The pause has ended.",
    "draining": "The worker takes no further training.",
    "undrained": "The worker takes trainings again.",
    "revoked": "The token is revoked.",
}


_BAD = frozenset({"some"})  # notices of something that was not done


def render(request: Request, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """The response for a page."""
    session = getattr(request.state, "session", None)
    named = request.query_params.get("notice", "")
    undo = request.query_params.get("undo", "")
    is_first = assets.is_first(request)
    shared = {
        "has_styles_within": is_first,
        "session": session,
        "path": request.url.path,
        "has_oidc": request.app.state.oidc is not None,
        "notice": NOTICES.get(named, ""),
        "notice_name": named,
        "notice_is_bad": named in _BAD,
        "undo": undo if re.fullmatch("del_[a-z0-9]{1,60}", undo) else "",
    }
    text = environment().get_template(template).render(**shared, **values)
    body, encoding = packed(request, text.encode())
    varies = {"Content-Language": language(), "Vary": "Accept-Encoding, Accept-Language, Cookie"}
    answer = HTMLResponse(body, status, {**HEADERS, **varies, **encoding})
    if is_first:
        answer.headers["Content-Security-Policy"] = _POLICY.replace(_STYLES, f"{_STYLES} {assets.policy()}")
        secure = request.url.scheme == "https"
        answer.set_cookie(
            assets.COOKIE, assets.version(), max_age=assets.LASTS_S, secure=secure, httponly=True, samesite="lax"
        )
    return answer


def packed(request: Request, body: bytes) -> tuple[bytes, dict[str, str]]:
    """A body as the browser takes it, with its header: on a slow connection, half of the wait is the size.

    Compression tells nothing about secrets on our pages: requests from other sites come without the strict cookie.
    """
    if not re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", request.headers.get("accept-encoding", "")):
        return body, {}
    return gzip.compress(body, 6, mtime=0), {"Content-Encoding": "gzip"}


def seconds(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return gettext("unknown")
    if value < 1:
        return gettext("under 1 s")
    whole = round(value)
    if whole < 60:
        return gettext("%(seconds)s s") % {"seconds": whole}
    hours, minutes = divmod(round(whole / 60), 60)
    if not hours:
        return gettext("%(minutes)s min") % {"minutes": minutes}
    words = gettext("%(hours)s h %(minutes)s min") if minutes else gettext("%(hours)s h")
    return words % {"hours": hours, "minutes": minutes}


def at(value: datetime | None, to_seconds: bool = False) -> str:
    """A time in UTC, to the minute or second."""
    return "" if value is None else f"{value:{'%Y-%m-%d %H:%M:%S' if to_seconds else '%Y-%m-%d %H:%M'}} UTC"


def when(value: datetime | None, to_seconds: bool = False) -> Markup:
    """A time as an element, which the script of the page shows in the time zone of the browser."""
    if value is None:
        return Markup("")
    kind = Markup(" data-seconds") if to_seconds else ""
    return Markup('<time datetime="{}"{}>{}</time>').format(value.isoformat(), kind, at(value, to_seconds))


def signed(value: int) -> str:
    """A change of credits, with its sign: +100, −60, 0."""
    sign = {1: "+", -1: "−"}.get((value > 0) - (value < 0), "")  # noqa: RUF001 - a minus sign
    return f"{sign}{number(abs(value))}"


def size(value: int) -> str:
    """The size of a file."""
    shown, unit = (value / 1e6, "MB") if value >= 1e5 else (value / 1e3, "kB")
    return f"{number(shown, '.1f' if round(shown, 1) % 1 else '.0f')} {unit}"


def in_group(name: str, prefix: str) -> bool:
    """Whether an option of a recipe belongs to the group with this prefix; to none of them for an empty one."""
    return name.startswith(prefix) if prefix else "." not in name


def in_columns(rows: Markup, columns: Sequence[str | Mapping[str, str]]) -> Markup:
    """The rows of a table, each cell with the title of its column, which a phone shows before it."""

    def named(row: re.Match[str]) -> str:
        titles = iter([one if isinstance(one, str) else one.get("right", "") for one in columns])
        return re.sub(r"<t[dh]\b", lambda cell: f'{cell[0]} data-column="{escape(next(titles, ""))}"', row[0])

    return Markup(re.sub(r"<tr\b.*?</tr>", named, rows, flags=re.DOTALL))  # noqa: S704 - escaped before


def segment(value: str) -> str:
    """A name as one part of a path."""
    return quote(value, safe="")


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    made.install_gettext_callables(gettext, ngettext, newstyle=True)  # type: ignore[attr-defined]
    made.filters |= {"seconds": seconds, "number": number, "at": at, "size": size, "segment": segment}
    made.filters |= {"label": label, "sentence": sentence, "browser": browser}
    made.filters |= {"when": when, "signed": signed, "said": said, "in_columns": in_columns}
    made.filters |= {"option": options.option, "value": options.value, "listed": options.listed}
    made.tests |= {"in_group": in_group}
    tables = {
        "statuses": STATUSES, "stages": STAGES, "entries": ENTRIES, "drawing_entries": DRAWING_ENTRIES,
        "deletion_kinds": DELETION_KINDS, "sides": SIDES, "option_groups": GROUPS, "scope_names": SCOPES,
    }  # fmt: skip
    made.globals |= {name: Texts(table) for name, table in tables.items()}
    made.globals |= {
        "asset": asset,
        "sheets": assets.sheets(),
        "style": pass_context(style),
        "count": count,
        "language": language,
        "languages": texts.LANGUAGES,
    }
    made.globals |= {"script_texts": lambda: texts.script_texts(STATIC)}
    return made
