"""Sizes of models that are small in every direction, for rehearsals in tests."""

from pipelines.rehearse.shapes import Sizes

TINY = Sizes(
    width=64, heads=2, ffn=96, layers=4, shards=3, text_width=64, text_heads=2, text_ffn=40, text_layers=2,
    vocabulary=512, pieces=500, vae_width=8, audio_width=48, audio_layers=2, audio_channels=16,
)  # fmt: skip
