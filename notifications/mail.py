"""E-mails to owners: their content as text and HTML, and the SMTP server that sends them."""

import html
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from core.errors import AnswerRefused, MessageDeferred, Unreachable
from notifications.preferences import LOW

SERVER = "smtp://mail"  # the destination of all e-mails in the outbox, since they share one server
_MAX_WORD, _MAX_LINE = 120, 600
_SHUTTING_DOWN = 421  # the server closes the connection, whatever it answered last

_SUBJECTS = {
    "training.processing": "{subject}: the training has started",
    "training.review": "{subject}: please review the captions",
    "training.completed": "{subject}: your LoRA is ready",
    "training.failed": "{subject}: the training failed",
    "training.cancelled": "{subject}: the training was cancelled",
    "training.not_started": "{subject}: no training was started",
    LOW: "Credits are low: {available} left",
}
_OPENINGS = {
    "training.processing": "The training of {subject} has started.",
    "training.review": "The captions of {subject} are written. The training waits until you have reviewed and "
    "accepted them. Waiting costs nothing.",
    "training.completed": "The training of {subject} is done and its LoRA is ready.",
    "training.failed": "The training of {subject} failed. It costs nothing, and the credits held for it are "
    "available again.",
    "training.cancelled": "The training of {subject} was cancelled.",
    "training.not_started": "The profile set of {subject} is complete, but no training was started.",
    LOW: "You have {available} credits left. You asked for an e-mail when fewer than {low} are available.",
}
_END = "You get this e-mail because e-mail notices are turned on for {owner}."


@dataclass(frozen=True)
class Mail:
    """The content of an e-mail. Text and HTML are made from it."""

    subject: str
    paragraphs: Sequence[str]
    facts: Sequence[tuple[str, str]]
    link: str | None
    end: str
    picture: bytes | None = None  # a JPEG

    def text(self) -> str:
        width = max((len(name) for name, _ in self.facts), default=0) + 2
        blocks = [*self.paragraphs]
        if self.facts:
            blocks.append("\n".join(f"{name + ':':<{width}}{value}" for name, value in self.facts))
        if self.link:
            blocks.append(self.link)
        return "\n\n".join([*blocks, f"-- \n{self.end}"]) + "\n"

    def html(self, picture_id: str | None = None) -> str:
        """The HTML form: no script, no style sheet, nothing from another host."""
        e = html.escape
        body = [f'<h1 style="font-size:20px;margin:0 0 16px">{e(self.subject)}</h1>']
        body += [f'<p style="margin:0 0 16px">{e(paragraph)}</p>' for paragraph in self.paragraphs]
        if picture_id:
            body.append(
                f'<p style="margin:0 0 16px"><img src="cid:{picture_id}" width="256" alt="A sample picture of the LoRA"'
                ' style="display:block;max-width:100%;height:auto;border-radius:6px"></p>'
            )
        if self.facts:
            cell = "padding:2px 16px 2px 0;vertical-align:top"
            rows = (
                f'<tr><td style="{cell};color:#5a5f66">{e(name)}</td><td style="{cell}">{e(value)}</td></tr>'
                for name, value in self.facts
            )
            body.append(f'<table style="border-collapse:collapse;margin:0 0 16px">{"".join(rows)}</table>')
        if self.link:
            body.append(f'<p style="margin:0 0 16px"><a href="{e(self.link)}">{e(self.link)}</a></p>')
        body.append(f'<p style="margin:24px 0 0;color:#5a5f66;font-size:13px">{e(self.end)}</p>')
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><title>{e(self.subject)}</title></head>'
            '<body style="margin:0;padding:24px;background:#ffffff;color:#1b1d20;font:16px/1.5 sans-serif">'
            f'<div style="max-width:560px;margin:0 auto">{"".join(body)}</div></body></html>'
        )


@dataclass(frozen=True)
class MailFacts:
    """What an e-mail says: about a training, about a subject without one, or about credits. No value is trusted."""

    owner: str
    subject: str | None = None
    job_id: str | None = None
    base_model: str | None = None
    trigger_word: str | None = None
    steps: str | None = None
    charged: str | None = None
    refunded: str | None = None
    code: str | None = None
    reason: str | None = None
    available: int | None = None
    low: int | None = None

    @classmethod
    def parse(cls, payload: Mapping[str, Any]) -> "MailFacts":
        """The facts in the payload of a message."""
        return cls(**{field.name: payload[field.name] for field in fields(cls) if field.name in payload})


def draft(event: str, facts: MailFacts, public_url: str | None, picture: bytes | None = None) -> Mail:
    """The mail about an event."""
    words = {name: _line(getattr(facts, name), _MAX_WORD) for name in ("subject", "owner", "available", "low")}
    paragraphs = [_OPENINGS[event].format_map(words)]
    if facts.reason:
        paragraphs.append(f"Why: {_line(facts.reason, _MAX_LINE)}")
    named = (
        ("Training", facts.job_id), ("Base model", facts.base_model), ("Trigger word", facts.trigger_word),
        ("Steps", facts.steps), ("Charged", facts.charged), ("Returned", facts.refunded), ("Reason", facts.code),
    )  # fmt: skip
    rows = [(name, _line(value, _MAX_WORD)) for name, value in named if value is not None]
    link = None
    if public_url and facts.job_id:
        link = f"{public_url.rstrip('/')}/trainings/{quote(facts.job_id, safe='')}"
    return Mail(_SUBJECTS[event].format_map(words), paragraphs, rows, link, _END.format_map(words), picture)


def compose(mail: Mail, *, sender: str, to: str, message_id: str, at: datetime) -> EmailMessage:
    """The message to send: text, HTML, and the picture inside the HTML."""
    domain = parseaddr(sender)[1].rpartition("@")[2] or "localhost"
    message = EmailMessage(policy=SMTP)
    message["Subject"] = mail.subject
    message["From"] = sender
    message["To"] = to
    message["Date"] = format_datetime(at)
    message["Message-ID"] = f"<{message_id}@{domain}>"  # the same in every attempt
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text())
    picture_id = f"{message_id}.picture@{domain}" if mail.picture else None
    message.add_alternative(mail.html(picture_id), subtype="html")
    if mail.picture:
        page = message.get_payload()[1]  # type: ignore[index]
        page.add_related(  # type: ignore[union-attr]
            mail.picture, "image", "jpeg", cid=f"<{picture_id}>", filename="sample.jpg", disposition="inline"
        )
    return message


@dataclass(frozen=True)
class Mailer:
    """An SMTP server: `smtp://` (with STARTTLS if the server has it) or `smtps://`, with or without a user."""

    address: str
    timeout_s: float = 8.0  # how long a server that hangs can block a worker

    def check(self) -> None:
        """Raises ValueError for an invalid address."""
        parts = urlsplit(self.address)
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.port == 0:
            raise ValueError("must be smtp://[user:password@]host[:port] or smtps://…")

    def send(self, message: EmailMessage) -> None:
        """Send a message. A password is sent over TLS only, or to this machine.

        Raises Unreachable if the server does not work now; MessageDeferred if it works, but does not take this message
        now, as with greylisting or a full mailbox; AnswerRefused if it will never take the message.
        """
        parts = urlsplit(self.address)
        try:
            with self._connect() as server:
                if parts.username:
                    if not isinstance(server.sock, ssl.SSLSocket) and parts.hostname not in ("localhost", "127.0.0.1"):
                        raise AnswerRefused("the mail server has no TLS, so the password is not sent to it")
                    server.login(unquote(parts.username), unquote(parts.password or ""))
                server.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            raise _refusal("the address", max(codes, default=0)) from error
        except smtplib.SMTPSenderRefused as error:
            raise Unreachable(f"the mail server refused our sender ({error.smtp_code})") from error
        except smtplib.SMTPAuthenticationError as error:
            raise Unreachable(f"the mail server refused our login ({error.smtp_code})") from error
        except smtplib.SMTPResponseException as error:
            raise _refusal("the mail", error.smtp_code) from error
        except (smtplib.SMTPException, OSError) as error:
            raise Unreachable(f"the mail server did not answer ({type(error).__name__})") from error

    def _connect(self) -> smtplib.SMTP:
        parts = urlsplit(self.address)
        host = parts.hostname or ""
        if parts.scheme == "smtps":
            tls = ssl.create_default_context()
            return smtplib.SMTP_SSL(host, parts.port or 465, timeout=self.timeout_s, context=tls)
        server = smtplib.SMTP(host, parts.port or 587, timeout=self.timeout_s)
        server.ehlo()
        if server.has_extn("starttls"):
            server.starttls(context=ssl.create_default_context())
            server.ehlo()
        return server


def _refusal(what: str, code: int) -> Unreachable:
    """The error for the server's answer to a recipient or to a message."""
    if 500 <= code < 600:
        return AnswerRefused(f"the mail server refused {what} ({code})")
    if 400 <= code < 500 and code != _SHUTTING_DOWN:
        return MessageDeferred(f"the mail server refused {what} for now ({code})")
    return Unreachable(f"the mail server refused {what} for now ({code})")


def _line(value: object, longest: int) -> str:
    """A value as one line without control characters, so that a name cannot add a header or a line."""
    text = "" if value is None else " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
