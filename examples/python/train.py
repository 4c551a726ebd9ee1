"""Trains a LoRA over Imprint's HTTP API: API=http://127.0.0.1:8080 TOKEN=imp_… python train.py rex pictures/*.png"""

import os
import sys
from pathlib import Path

import httpx2

subject, files = sys.argv[1], [("files", (Path(name).name, Path(name).read_bytes())) for name in sys.argv[2:]]
login = {"Authorization": f"Bearer {os.environ['TOKEN']}"}
with httpx2.Client(base_url=os.environ["API"], headers=login, timeout=60, follow_redirects=True) as api:
    stored = api.post(f"/api/influencer/{subject}/images", files=files).raise_for_status().json()
    recipe = {"baseModel": "sd15", "imageIds": [image["id"] for image in stored["images"]]}
    job = api.post(f"/api/influencer/{subject}/lora/train", json=recipe).raise_for_status().json()
    with api.stream("GET", f"/api/trainings/{job['id']}/events") as events:
        for line in events.iter_lines():
            print(line)
    lora = api.get(f"/api/trainings/{job['id']}/download").raise_for_status()
    Path(f"{subject}.safetensors").write_bytes(lora.content)
