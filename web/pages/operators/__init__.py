"""The operators' pages: the installation, a search, and all about one job or one owner, with what can be done."""

from fastapi import APIRouter

from web.pages.operators import audit, decisions, home, job, owner, turns

router = APIRouter()
for page in (home, audit, decisions, job, owner, turns):
    router.include_router(page.router)
