"""E-mails from real workers through a real SMTP server; one that hangs keeps neither trainings nor webhooks."""

import json
import socket
from pathlib import Path

import pytest
import sqlalchemy as sa
from PIL import Image

from core.clock import utcnow
from jobs import keys
from jobs.notices import notices
from jobs.stages import intake
from notifications.tables import MESSAGE
from tests.servers.mail import channel, mail_server
from tests.servers.receiver import receiver
from tests.site import MASCOT, site, until


@pytest.mark.drawn
def test_an_owner_is_mailed_and_a_server_that_hangs_keeps_nobody(base_model: Path, tmp_path: Path) -> None:
    with mail_server() as box, channel() as operators, receiver() as application, socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()  # takes connections, and never says a word
        environment = {
            "IMPRINT_SMTP_URL": box.url,
            "IMPRINT_MAIL_FROM": "Imprint <imprint@example.org>",
            "IMPRINT_PUBLIC_URL": "https://imprint.example",
            "IMPRINT_OPERATOR_CHANNELS": json.dumps([operators.url]),
            "IMPRINT_FETCH_ALLOW_HOSTS": json.dumps([application.address]),
            "IMPRINT_PRICES": json.dumps({"sd15": 64_000}),
        }
        with site(tmp_path, base_model, start=("io", "beat"), **environment) as made:
            for owner in ("ada", "bob"):
                made.grant(owner, 100)
            events = ["training.processing", "training.completed", "training.failed", "credits.low"]
            content = ["--email", "ada@example.org", "--low-credits", "99", *(f"--event={event}" for event in events)]
            assert json.loads(made.imprint("notices", "ada", *content, "--json").stdout)["events"] == events
            job_id = made.send(owner_id="ada", subject_id="the imp", max_steps=2)["job_id"]
            made.services.store.put_file(keys.preview(job_id, 1, 2, 0, "png"), sorted(MASCOT.glob("*.png"))[0])
            made.start("train")
            made.wait(job_id)
            until(lambda: len(box.to("ada@example.org")) >= 3, 60, "mails")
            low, *_, done = box.to("ada@example.org")
            assert low["Subject"] == "Credits are low: 98 left"
            assert done["Subject"] == "the imp: your LoRA is ready"
            assert (done["From"], done["Auto-Submitted"]) == ("Imprint <imprint@example.org>", "auto-generated")
            text, page = done.get_body(("plain",)), done.get_body(("html",))
            assert text is not None
            assert page is not None
            for message in (job_id, "2 of 2", "2 credits", f"https://imprint.example/trainings/{job_id}"):
                assert message in text.get_content()
                assert message in page.get_content()
            [picture] = [part for part in done.walk() if part.get_content_type() == "image/jpeg"]
            assert picture["Content-Disposition"].startswith("inline")
            assert f"cid:{picture['Content-ID'].strip('<>')}" in page.get_content()
            (tmp_path / "sample.jpg").write_bytes(picture.get_content())
            assert max(Image.open(tmp_path / "sample.jpg").size) >= 64

            # Now a mail server that hangs: a training that fails is told by webhook at once, its mail waits.
            made.stop("io")
            made.start("io", IMPRINT_SMTP_URL=f"smtp://127.0.0.1:{hanging.getsockname()[1]}")
            notices.change(made.services, "bob", {"email": "bob@example.org"})
            poison = [
                intake.store_picture(made.services, "bob", "m", f"poison {number}".encode()) for number in range(5)
            ]
            failed = made.send(owner_id="bob", images=poison, webhook_url=application.url)["job_id"]
            assert made.wait(failed)["status"] == "failed"
            until(lambda: len(application.about(failed)) >= 1, 60, "the webhook")
            ready = made.send(owner_id="bob")["job_id"]
            assert made.wait(ready)["status"] == "ready"
            assert box.to("bob@example.org") == []
            # It is back: the mails come, under the ids they had.
            made.stop("io")
            made.start("io")

            def all_came() -> bool:
                with made.services.database.writing() as session:  # let the time pass until the next attempt
                    unsent = MESSAGE.c.kind == "mail", MESSAGE.c.sent_at.is_(None)
                    session.execute(sa.update(MESSAGE).where(*unsent).values(due_at=utcnow()))
                return len(box.to("bob@example.org")) >= 2

            until(all_came, 120, "mails at last")
            assert {mail["Subject"] for mail in box.to("bob@example.org")} >= {"mascot: your LoRA is ready"}
            assert operators.got == []  # what failed was the owner's pictures
