"""Other servers that work for this installation: ai-toolkit, rented pods and ComfyUI."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr


class ServerSettings(BaseModel):
    """Other servers that work for this installation: ai-toolkit, rented pods and ComfyUI."""

    # ---- remote training ----
    backends: dict[str, Literal["local", "ai-toolkit"]] = Field(
        {}, description="Default backend by family: `local` or `ai-toolkit`. JSON object."
    )
    ai_toolkit_url: str | None = Field(
        None, description="Address of an existing ai-toolkit server. Unset: pods are rented."
    )
    ai_toolkit_token: SecretStr | None = Field(None, description="Password of that server (`AI_TOOLKIT_AUTH`).")
    hf_token: SecretStr | None = Field(None, description="Model hub token for rented pods, for gated models.")
    remote_poll_s: float = Field(30.0, gt=0, description="Seconds between two polls of remote trainings.")
    remote_stall_s: float = Field(
        1800.0, gt=0, description="A remote training without a new step or log line for this long is stopped."
    )
    remote_lost_polls: int = Field(
        10, ge=1, description="A server that does not answer this many polls in a row counts as lost."
    )
    runpod_api_key: SecretStr | None = Field(None, description="RunPod API key. With it, Imprint rents pods.")
    runpod_url: str = Field("https://api.runpod.io/v2", description="Address of RunPod's REST API.")
    pod_proxy: str = Field(
        "https://{pod_id}-8675.proxy.runpod.net", description="Address of the server on a rented pod."
    )
    pod_template: str | None = Field(
        None, description="RunPod template of rented pods. Unset: `IMPRINT_POD_IMAGE` is used."
    )
    pod_image: str = Field("ostris/aitoolkit:latest", description="Container image of rented pods.")
    pod_gpus: list[str] = Field(
        ["NVIDIA GeForce RTX 4090", "NVIDIA RTX A6000", "NVIDIA L40S"],
        description="GPU types to rent, in order of preference; a training takes the first that is large enough for "
        "its base model. JSON list.",
    )
    pod_disk_gb: int = Field(80, ge=10, description="Container disk of a rented pod; large base models get more.")
    pod_prefix: str = Field(
        "imprint",
        pattern=r"^[a-z0-9]+$",
        description="The names of this installation's pods begin with it; each installation needs its own.",
    )
    pod_warm_s: float = Field(300.0, ge=0, description="An idle pod is kept this long for the next training.")
    pod_ready_s: float = Field(1200.0, gt=0, description="A pod whose server does not answer by then is deleted.")
    pods_max: int = Field(2, ge=0, description="Most pods at one time.")
    pod_jobs_max: int = Field(4, ge=1, description="Most trainings queued on one pod before another is rented.")
    spend_per_hour: float = Field(5.0, ge=0, description="Most that all pods may cost in an hour, in dollars.")
    spend_per_day: float = Field(40.0, ge=0, description="Most that pods may cost in 24 hours, in dollars.")

    # ---- drawing with trained LoRAs ----
    comfyui_url: SecretStr | None = Field(
        None, description="ComfyUI server that `imprint.generate` draws on. Unset: none."
    )
    comfyui_loras: Path | None = Field(
        None,
        description="Path of its `models/loras` folder on the fetch workers. Unset: LoRAs are sent by its assets API.",
    )
    comfyui_timeout_s: float = Field(
        600.0, gt=0, description="Time limit of a drawing, including its time in ComfyUI's queue."
    )
    drawings_per_owner: int = Field(
        4, ge=1, description="Most drawings of an owner that may wait or be drawn by workers at the same time."
    )
    drawing_timeout_s: float = Field(
        1800.0, gt=0, description="A drawing that a worker has not finished by then fails with `timeout`."
    )
