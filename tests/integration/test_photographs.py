"""Real photographs through the whole chain: from an S3 server and over HTTP (from a folder: test_chain.py)."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from jobs.owners import accounts
from tests.servers.gated_s3 import gated_s3
from tests.servers.pictures import picture_server
from tests.site import PHOTOGRAPHS, Site, site

pytestmark = pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the shared photographs are not there")


def trained(running: Site, images: list[dict[str, str]]) -> None:
    running.grant("owner")
    accepted = running.send(images=images, trigger_word="sks", class_word="dog", aspect_buckets=True)
    view = running.wait(accepted["job_id"])
    assert view["status"] == "ready", view["failure"]
    assert [picture["state"] for picture in view["pictures"]] == ["good"] * len(images)
    assert accounts.balance(running.services, "owner").spent == view["credits"]["charged"] > 0


def test_from_an_s3_server_into_an_s3_store(base_model: Path, tmp_path: Path) -> None:
    with gated_s3() as s3, site(tmp_path, base_model, **s3.environment) as running:
        images = []
        for file in sorted((PHOTOGRAPHS / "dog").glob("*.jpg")):
            s3.client().upload_file(str(file), s3.bucket, f"uploads/{file.name}")
            images.append({"ref": f"s3://{s3.bucket}/uploads/{file.name}", "caption": "a dog outside"})
        trained(running, images)
        kept = [
            entry["Key"]
            for entry in s3.client().list_objects_v2(Bucket=s3.bucket, Prefix="imprint/models/")["Contents"]
        ]
        assert len(kept) == 1


def test_over_http(base_model: Path, tmp_path: Path) -> None:
    with picture_server() as server:
        images = [
            {"ref": server.put(quote(f"/dog/{file.name}"), file.read_bytes())}
            for file in sorted((PHOTOGRAPHS / "dog").glob("*.jpg"))
        ]
        with site(tmp_path, base_model, IMPRINT_FETCH_ALLOW_HOSTS=json.dumps([server.address])) as running:
            trained(running, images)
