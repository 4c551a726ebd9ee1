"""Operators in a browser, against real workers: they watch, pause, cancel, retry and grant, and the log has it all."""

import json
import re

import pytest
from playwright.sync_api import expect

from jobs import service
from jobs.admission import pauses
from tests.browser.conftest import PHONE, WAIT_MS, Visitor, check_accessible
from tests.browser.test_page import LONG, Shoot, begin, equip
from tests.site import until

pytestmark = pytest.mark.timeout(900)
expect.set_options(timeout=WAIT_MS)

SCOPE = "family:sd15"


def test_operators_see_the_installation(visitor: Visitor, shoot: Shoot) -> None:
    equip(visitor, "olga")
    job_id = begin(visitor, "olga", max_steps=LONG)
    visitor.site.wait(job_id, lambda view: view["step"] > 0)
    page = visitor.open()
    visitor.sign_in(page, "olga", "read", "operate")
    page.goto("/operators")
    expect(page.get_by_role("region", name="Active trainings")).to_contain_text(job_id)
    expect(page.get_by_role("region", name="Queues")).to_contain_text("train.sd15")
    until(lambda: "CPU" in ((page.reload() and page.locator("#main").text_content()) or ""), 60, "the worker's device")
    shoot(page, "operators")
    check_accessible(page)
    page.goto(f"/trainings/{job_id}")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)  # a token that may only look
    page.goto("/operators")
    page.evaluate("window.same = true")
    service.cancel(visitor.services, job_id)
    expect(page.get_by_role("region", name="Active trainings")).not_to_contain_text(job_id)
    assert page.evaluate("window.same"), "the page is live: nobody has to reload it"
    log = json.dumps(visitor.asked)
    assert "imp_" not in log  # no token is ever in an address


def test_operators_pause_cancel_retry_and_grant(visitor: Visitor, shoot: Shoot) -> None:
    """A training waits while its family is paused, costs nothing when it is cancelled, and runs when it is repeated."""
    equip(visitor, "otto", granted=0)
    page = visitor.open(size=PHONE, scheme="dark")
    visitor.sign_in(page, "olga", "read", "operate")
    page.goto("/operators/owners/otto")
    page.get_by_label("Grant credits").fill("120")
    page.get_by_role("button", name="Grant").click()
    expect(page.locator("#notice")).to_have_text("Credits granted.")
    expect(page.locator(".numbers")).to_contain_text("Available120")
    try:
        page.goto("/operators")
        page.get_by_label("Let nothing start of").select_option(SCOPE)
        page.get_by_label("Reason", exact=True).fill("new drivers")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#turns")).to_contain_text(f"Nothing of {SCOPE} starts since")
        first = begin(visitor, "otto", max_steps=2)
        owner = visitor.open()
        visitor.sign_in(owner, "otto")
        owner.goto(f"/trainings/{first}")
        expect(owner.locator("#waits")).to_contain_text("The operator has paused new trainings: new drivers.")

        page.get_by_label("Training, drawing, picture, owner or subject").fill(first[:20])
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name="mascot").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("Waiting")
        shoot(page, "operators-job-phone-dark")
        page.get_by_role("button", name="Cancel it").click()
        expect(page.locator("#notice")).to_have_text("Training cancelled.")
        expect(page.locator("#main")).to_contain_text("0 held, 0 charged")
        expect(page.locator("#main")).not_to_contain_text("cancelled by the owner")  # the operator did
        expect(owner.locator("#refund")).to_contain_text("Nothing was charged: 1 credit came back.")
        page.get_by_role("button", name="Train it again for the owner").click()
        page.wait_for_url(lambda url: "/operators/jobs/" in url and first not in url)
        second = page.url.rpartition("/")[2].partition("?")[0]
        expect(page.get_by_role("heading", level=1)).to_contain_text("Waiting")

        page.goto("/operators")
        page.get_by_role("button", name=re.compile(f"Resume.*{SCOPE}")).click()
        expect(page.locator("#notice")).to_have_text("The pause has ended.")
    finally:
        if SCOPE in [one.scope for one in pauses.list_pauses(visitor.services)]:
            pauses.resume(visitor.services, SCOPE)
    ready = visitor.site.wait(second)
    assert (ready["status"], ready["credits"]["charged"]) == ("ready", 1)
    assert visitor.site.view(first)["status"] == "cancelled"

    page.goto(f"/operators/jobs/{second}")
    expect(page.get_by_role("region", name="History")).to_contain_text("stage settle")
    page.goto("/operators")
    page.get_by_role("link", name="The whole log").click()
    expect(page.get_by_label("Who")).to_be_hidden()
    page.get_by_text("Filter", exact=True).first.click()
    page.get_by_label("Owner", exact=True).fill("otto")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_label("Owner", exact=True)).to_have_value("otto")
    log = page.get_by_role("region", name="Entries")
    for action in ("credits.granted", "job.cancelled", "job.accepted"):
        expect(log.get_by_text(action).first).to_be_visible()
    check_accessible(page)
