"""The published sizes: both transformers with the paper's LoRA, on a chunk of its 30,000 tokens."""

from omniavatar.planning.network import network_of
from omniavatar.planning.sizes import PUBLISHED
from pipelines.gpu_drill.sizes import Sizes
from training.planning.sizes import TEXT_LENGTH

FULL = Sizes(
    name="full",
    networks={
        size: network_of(PUBLISHED[f"wan2.1-t2v-{size.lower()}"], "lora", 128, "multi") for size in ("1.3B", "14B")
    },
    frames=19,  # 73 video frames of 480 x 832: 29,640 tokens
    height=60,
    width=104,
    text=TEXT_LENGTH,
    square=8192,
    copied=4 * 2**30,
    images=16,
    image_side=448,
)
