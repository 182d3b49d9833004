"""A vision-language folder as transformers saves it (LLaVA), two layers of 16 with random weights and 12 words."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = (*("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER", ":", "ASSISTANT"), "a", "person", "talks", "background")
SPECIAL = 5  # of the words, no words
TEMPLATE = (
    "{% for m in messages %}USER : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT :"
)
LAYERS = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.5,
}


def write_captioner(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Save model, tokenizer and picture processor into `folder`."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    text = LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, bos_token_id=1, pad_token_id=0, **LAYERS)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **LAYERS)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=WORDS.index("<image>"))
    )
    model.generation_config.suppress_tokens = list(range(SPECIAL))  # a random model would often say nothing
    model.save_pretrained(folder)
    return folder
