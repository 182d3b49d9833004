"""Captions of a few frames by any vision-language model in a transformers folder: LLaVA, Idefics3, Qwen2.5-VL ...

The folder is loaded with AutoProcessor and AutoModelForImageTextToText, from the disk only and without remote code.
Families whose processor also takes videos (Qwen2.5-VL, SmolVLM, InternVL) need torchvision beside transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.errors import MissingFileError, UserError, load_reason
from common.runs import read_json
from common.untrusted.weight_files import check_config, read_header, refuse_bomb


class CaptionerError(UserError, ValueError):
    """A folder is not a vision-language model that transformers can load here."""


@dataclass(frozen=True)
class Captioner:
    """A loaded model with its processor; make one with `load_captioner`."""

    model: Any
    processor: Any
    name: str

    @torch.inference_mode()
    def describe(self, frames: Sequence[np.ndarray], prompt: str, max_tokens: int) -> str:
        """The model's greedy answer to `prompt` about RGB uint8 frames (H, W, 3), at most `max_tokens` long.

        Raises CaptionerError when the folder's processor cannot take an image and a text together.
        """
        inputs = self._inputs([Image.fromarray(frame) for frame in frames], prompt).to(self.model.device)
        inputs = {name: self._typed(value) for name, value in inputs.items()}
        written = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_tokens)
        if not self.model.config.is_encoder_decoder:  # the answer follows the question
            written = written[:, inputs["input_ids"].shape[1] :]
        text = self.processor.batch_decode(written, skip_special_tokens=True)[0]
        return " ".join(text.split())

    def _inputs(self, shown: list[Image.Image], prompt: str) -> Any:
        """The processor's tensors; its own chat template says where images stand and how it is asked."""
        from jinja2 import TemplateError

        if getattr(self.processor, "chat_template", None):
            content = [*({"type": "image", "image": image} for image in shown), {"type": "text", "text": prompt}]
            try:
                return self.processor.apply_chat_template(
                    [{"role": "user", "content": content}],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                )
            except TemplateError as error:  # the template runs in a sandbox, and asked for what that forbids
                raise CaptionerError(f"The chat template of {self.name} cannot be used: {error}") from error
        mark = getattr(self.processor, "image_token", "")
        try:
            return self.processor(images=shown, text=f"{mark * len(shown)}{prompt}", return_tensors="pt")
        except (TypeError, ValueError) as error:
            raise CaptionerError(
                f"The processor of {self.name} takes no list of pictures with a text ({error}); choose a captioner "
                "with a chat template, such as LLaVA or Qwen2.5-VL."
            ) from error

    def _typed(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.model.dtype) if value.is_floating_point() else value


def check_captioner(folder: Path) -> None:
    """Compare the sizes in config.json with the headers of the safetensors files. Raises CheckpointError."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes |= read_header(file)
    for file in sorted(folder.glob("*.bin")):
        refuse_bomb(file)
    check_config(folder / "config.json", read_json(folder / "config.json"), shapes)


def load_captioner(folder: Path | str, device: str = "cpu") -> Captioner:
    """Load a local transformers folder: half precision on an accelerator, float32 on a CPU.

    Raises FileNotFoundError for an absent folder and CaptionerError for one that is no vision-language model, lacks a
    file, or needs a library that is not installed; nothing is ever fetched and no code of the folder runs.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"{folder}/config.json does not exist; a captioner is a folder as transformers saves it."
        )
    check_captioner(folder)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise CaptionerError(
            f"{folder} does not load as a vision-language model ({load_reason(folder, error)}); expected a published "
            "image-text-to-text model as a folder, with its processor and safetensors."
        ) from error
    if not hasattr(processor, "image_processor"):
        raise CaptionerError(f"{folder} has a tokenizer but no picture processor; fetch preprocessor_config.json too.")
    return Captioner(model.eval().requires_grad_(False).to(device), processor, folder.name)
