"""The published sizes: both transformers with the paper's LoRA, on a chunk of its 30,000 tokens."""

from collections.abc import Mapping

from pipelines.gpu_drill.sizes import Sizes
from training.planning.memory import Network
from training.planning.sizes import PUBLISHED, TEXT_LENGTH


def _network(sizes: Mapping[str, int]) -> Network:
    return Network(width=sizes["dim"], ffn=sizes["ffn_dim"], layers=sizes["num_layers"], heads=sizes["num_heads"])


FULL = Sizes(
    name="full",
    networks={size: _network(PUBLISHED[f"wan2.1-t2v-{size.lower()}"]) for size in ("1.3B", "14B")},
    frames=19,  # 73 video frames of 480 x 832: 29,640 tokens
    height=60,
    width=104,
    text=TEXT_LENGTH,
    square=8192,
    copied=4 * 2**30,
    images=16,
    image_side=448,
)
