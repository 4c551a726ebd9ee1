"""The notice that a spot machine will be taken away, asked for at the cloud's metadata server on the machine.

Amazon EC2 gives two minutes, and answers under `spot/instance-action` from then on; Google Compute Engine gives 30 s,
and `instance/preempted` becomes TRUE. Both servers are at link-local addresses, which the variables of the clouds' own
libraries change. Other clouds send SIGTERM, or have a tool that does.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Literal

import httpx2

from core import essential

log = logging.getLogger(__name__)

Cloud = Literal["aws", "gcp"]
_EVERY_S = 2.0
# Of the time between the notice and the end, so many seconds are for steps that end by themselves.
_PATIENCE_S: Mapping[Cloud, float] = {"aws": 100.0, "gcp": 20.0}
_TIMEOUT_S = 2.0
_TOKEN_S = 6 * 3600


class SpotNotice:
    """Asks the metadata server of a cloud whether this machine will be taken away."""

    def __init__(self, cloud: Cloud, environment: Mapping[str, str] = os.environ) -> None:
        self._patience_s = _PATIENCE_S[cloud]
        self._ask = {"aws": self._ask_aws, "gcp": self._ask_gcp}[cloud]
        self._aws = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
        self._gcp = f"http://{environment.get('GCE_METADATA_HOST', 'metadata.google.internal')}"
        self._token = ""
        self._client = httpx2.Client(timeout=_TIMEOUT_S, trust_env=False)
        self._is_silent = False

    def watch(self, leave: Callable[[str], None], hand_over: Callable[[str], None]) -> None:
        """Ask from a thread until the notice comes, and then call `leave` with what the cloud said.

        If this process still runs shortly before the machine vanishes, `hand_over` is called with the same.
        """
        essential.start("spot notice", lambda: self._watch(leave, hand_over), may_return=True)

    def get(self) -> str:
        """What the cloud says of the end of this machine; empty as long as it says nothing, or does not answer."""
        try:
            found = self._ask()
        except httpx2.HTTPError as error:
            if not self._is_silent:  # once
                log.warning("the metadata server of this machine does not answer (%s)", type(error).__name__)
            self._is_silent = True
            return ""
        self._is_silent = False
        return found

    def _watch(self, leave: Callable[[str], None], hand_over: Callable[[str], None]) -> None:
        pause = threading.Event()
        while not (notice := self.get()):
            pause.wait(_EVERY_S)
        reason = f"the cloud takes this machine away: {notice}"
        leave(reason)
        pause.wait(self._patience_s)
        hand_over(reason)

    def _ask_aws(self) -> str:
        if not self._token:
            lasts = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            self._token = self._client.put(f"{self._aws}/latest/api/token", headers=lasts).raise_for_status().text
        answer = self._client.get(
            f"{self._aws}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": self._token}
        )
        if answer.status_code == httpx2.codes.UNAUTHORIZED:  # the token is over
            self._token = ""
        return answer.text[:200] if answer.is_success else ""

    def _ask_gcp(self) -> str:
        answer = self._client.get(
            f"{self._gcp}/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"}
        )
        return "preempted" if answer.is_success and answer.text.strip() == "TRUE" else ""
