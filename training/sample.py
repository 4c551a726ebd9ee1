"""Draw pictures with a base model and an optional LoRA file, through diffusers' own pipelines as users do."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.families.registry import FAMILIES  # isort: skip - before diffusers, which would load bitsandbytes

import diffusers
import torch
from PIL.Image import Image

from core.errors import BaseModelUnavailable, LoraInvalid
from training import families
from training.device import choose, precision
from training.families.record import Family
from training.families.sd15 import require_pair
from training.families.weights import folders, single_file
from training.families.weights.parts import class_of, load_part, locate
from training.lora import formats as lora_formats
from training.lora import soundness
from training.lora.readers import WHOLE, readers
from training.lora.reading import read_lora

lib: Any = diffusers  # mypy does not see its classes
_CLIP = "transformers.CLIPTokenizer"


def draw(
    base_model: str,
    family: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    lora: Path | None = None,
    strength: float = 1.0,
    steps: int = 20,
    guidance: float = 5.0,
    size: tuple[int, int] = (512, 512),
    device: str = "auto",
) -> list[Image]:
    """Draw one picture of `size` (width, height) per prompt and seed. The same arguments give the same picture.

    `lora` is loaded by diffusers' `load_lora_weights`; a file that loads only in part is an error. `strength`
    multiplies the scale in the file. Raises BaseModelUnavailable, LoraInvalid.
    """
    loaded = DrawingPipeline(base_model, family, lora=lora, device=device)
    how = {"strength": strength, "steps": steps, "guidance": guidance, "size": size}
    return [loaded.draw(prompt, seed, **how) for prompt, seed in zip(prompts, seeds, strict=True)]  # type: ignore[arg-type]


class DrawingPipeline:
    """A loaded base model, with a LoRA file or without, that draws one picture after another.

    On a GPU whose memory is too small for all its parts together, only the part in use is on the GPU.
    """

    def __init__(self, base_model: str, family: str, *, lora: Path | None = None, device: str = "auto") -> None:
        """Raises BaseModelUnavailable, LoraInvalid."""
        chosen = choose(device)
        self._pipeline, self._record = load_pipeline(base_model, family, chosen), FAMILIES[family]
        self._adapters: list[str] = []
        if lora is not None:
            add_lora(self._pipeline, lora)
            listed = self._pipeline.get_list_adapters().values()
            self._adapters = sorted({name for names in listed for name in names})
        if chosen.type == "cuda" and not _fits(self._pipeline, chosen):
            self._pipeline.enable_model_cpu_offload(device=chosen)
        else:
            self._pipeline.to(chosen)

    def draw(
        self, prompt: str, seed: int, *, strength: float, steps: int, guidance: float, size: tuple[int, int],
        on_step: Callable[[], None] = lambda: None,
    ) -> Image:  # fmt: skip
        """One picture of `size` (width, height). `strength` multiplies the scale in the LoRA file; 0: without it.

        `on_step` is called after each step; what it raises ends the drawing.
        """
        if self._adapters:
            self._pipeline.set_adapters(self._adapters, [strength] * len(self._adapters))

        def after_step(_pipeline: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return tensors

        made = self._pipeline(
            prompt=prompt,
            num_inference_steps=steps,
            width=size[0],
            height=size[1],
            generator=torch.Generator().manual_seed(seed),  # on the CPU: the same noise on every device
            **{self._record.guidance: guidance, **self._record.call},
            callback_on_step_end=after_step,
        )
        picture: Image = made.images[0]
        return picture.convert("RGB")  # some models give an alpha channel


def _fits(pipeline: Any, device: torch.device) -> bool:
    """Whether all parts of a pipeline fit into the device's free memory together, with a quarter of it left to draw."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(weight.numel() * weight.element_size() for part in modules for weight in part.parameters())
    return bool(weights < 0.75 * free_bytes)


def load_pipeline(base_model: str, family: str, device: torch.device) -> Any:
    """diffusers' pipeline of a base model in the host's memory, in the precision of `device`, without progress bars.

    Raises BaseModelUnavailable.
    """
    record = FAMILIES[family]
    folder = locate(base_model, record.parts)
    lib.utils.logging.disable_progress_bar()  # while loading; the pipeline's own is set below
    kind, made = getattr(lib, record.pipeline), families.find(family).components(folder)
    try:
        if folder.is_file():
            parts = {**_components(folder, record, precision(device)), **made}
            pipeline = kind(**parts, **record.pipeline_arguments)
        else:
            pipeline = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=precision(device),
                **made,
                **record.pipeline_arguments,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelUnavailable(
            f"the base model in {folder} cannot be loaded to draw with ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    for tokenizer in record.classes:
        encoder = tokenizer.replace("tokenizer", "text_encoder")
        if record.classes.get(tokenizer) == _CLIP and getattr(pipeline, tokenizer, None) is not None:
            require_pair(getattr(pipeline, tokenizer), getattr(pipeline, encoder))
    families.find(family).mend_pipeline(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _components(file: Path, record: Family, dtype: torch.dtype) -> dict[str, Any]:
    """The components of a pipeline from a single file. Raises BaseModelUnavailable."""
    made = {}
    for part, name in record.classes.items():
        if part == "scheduler":
            home = single_file.folder_of(file, part)
            named = folders.scheduler_class(home) if home is not None else None
            made[part] = load_part(getattr(lib, named) if named else class_of(name), file, part)
        else:
            made[part] = load_part(class_of(name), file, part, dtype if folders.weights_of(part) else None)
    return made


def add_lora(pipeline: Any, path: Path) -> int:
    """Load a LoRA file into a pipeline; returns the number of layers, all of which are loaded.

    A file in a form that diffusers does not read whole is converted first. Raises LoraInvalid, also where diffusers
    itself would ignore keys.
    """
    lora = read_lora(path)
    soundness.require_sound(lora)
    wanted = len(lora.modules) + len(lora.others)
    with tempfile.TemporaryDirectory(prefix="imprint-") as folder:
        if readers(lora).get("diffusers", WHOLE) != WHOLE:
            data = lora_formats.serialize_as(lora, "peft")
            wanted, path = len(read_lora(data).modules), Path(folder) / path.name
            path.write_bytes(data)
        try:
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError, IndexError) as error:
            raise LoraInvalid(
                f"diffusers cannot load the LoRA file ({type(error).__name__}: {str(error)[:200]})"
            ) from error
    loaded = sum(bool(getattr(module, "lora_B", None)) for part in _networks(pipeline) for module in part.modules())
    if loaded != wanted:
        raise LoraInvalid(f"diffusers loaded {loaded} of the {wanted} layers in the LoRA file")
    return loaded


def _networks(pipeline: Any) -> list[Any]:
    """The parts of a pipeline that a LoRA may change."""
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
