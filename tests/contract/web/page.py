"""A signed-in visitor of the page, without a browser."""

from dataclasses import dataclass
from typing import Any

import httpx2

from tests.contract.web.conftest import Api
from web.pages.session import COOKIE

HERE = {"origin": "http://testserver"}


@dataclass
class Visit:
    """The page as one owner's browser loads it, without a script."""

    api: Api
    owner: str
    cookie: str

    @classmethod
    def of(cls, api: Api, owner: str, *scopes: str) -> "Visit":
        """Sign in for an owner."""
        api.client.cookies.clear()
        form = {"token": api.token(None, *scopes), "owner": owner}
        answer = api.call("POST", "/sign-in", headers=HERE, data=form)
        assert answer.status_code == 303, answer.text
        return cls(api, owner, str(answer.cookies[COOKIE]))

    def get(self, path: str) -> httpx2.Response:
        """Load an address as a browser does."""
        return self._call("GET", path)

    def post(self, path: str, **form: Any) -> httpx2.Response:
        """Send a form."""
        return self._call("POST", path, data={name: str(value) for name, value in form.items()})

    def _call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        self.api.client.cookies.clear()
        headers = {**HERE, "accept": "text/html,*/*;q=0.8", "cookie": f"{COOKIE}={self.cookie}"}
        return self.api.call(method, path, headers=headers, **options)
