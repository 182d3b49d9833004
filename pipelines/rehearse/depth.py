"""Which roles of a recipe get random weights, and of how many blocks: as many as memory and disk have room for."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from common.errors import InputError
from omniavatar.planning.sizes import PUBLISHED, AudioSizes, Networks, TextSizes, VAESizes, networks_of
from omniavatar.weights.checkpoints import WEIGHTS_FILE
from omniavatar.weights.headers import read_headers
from pipelines.models.published import read_published
from pipelines.rehearse.forecast import network_of_sizes
from pipelines.rehearse.shapes import FEWEST_BLOCKS, Sizes, files_of, published_sizes, sizes_of
from pipelines.rehearse.weights import RandomRole, random_role

FEWEST_TEXT_BLOCKS = 2
AUDIO = "wav2vec2-base-960h"
Paths = Mapping[str, Path | None]


def base_entry(named: Paths) -> str:
    """The published base that a recipe is for, from the folders that its paths name. Raises InputError."""
    for role in ("transformer", "adapter", "vae", "text_encoder"):
        path = named.get(role)
        parts = path.parts if path is not None else ()
        for entry in PUBLISHED:
            if entry in parts or _adapter_entry(entry) in parts:
                return entry
    raise InputError(
        f"Weights of this recipe are absent, and models.transformer is {named.get('transformer')}, whose name is none "
        f"of {', '.join(PUBLISHED)}: shapes are known of these; name a folder so, or put the weights there."
    )


def _adapter_entry(base: str) -> str:
    return base.replace("wan2.1-t2v", "omniavatar")


def whole_sizes(named: Paths) -> Sizes:
    """The sizes to rehearse: of the transformer or the adapter that is there, else as published for the recipe's base.

    Raises InputError for a recipe whose base is not known.
    """
    transformer, adapter = named.get("transformer"), named.get("adapter")
    if transformer is not None and transformer.exists():
        return sizes_of(transformer)
    sizes = published_sizes(base_entry(named))
    if adapter is not None and adapter.exists():
        blocks = {
            int(name.split(".")[1]) for name in read_headers(adapter / WEIGHTS_FILE) if name.startswith("blocks.")
        }
        return replace(sizes, layers=len(blocks) or sizes.layers)
    return sizes


def random_roles(absent: Collection[str], sizes: Sizes, root: Path, base: str) -> list[RandomRole]:
    """Random weights of the absent roles below `root`, in the folders of `base` and of what is published with it."""
    published = read_published()
    entries = [base, _adapter_entry(base), AUDIO]
    served = {role: (entry, path) for entry in entries for role, path in published[entry].roles.items()}
    return [random_role(role, sizes, root / served[role][0], served[role][1]) for role in absent]


def networks_before(sizes: Sizes, present: Paths) -> Networks:
    """The networks before the random ones are written: those of `present`, and for all else these sizes."""
    found = networks_of(present)
    text = TextSizes(
        _count("text_encoder", sizes),
        sizes.vocabulary * sizes.text_width,
        sizes.text_layers,
        sizes.text_width,
        sizes.text_ffn,
        sizes.text_heads,
    )
    return Networks(
        found.transformer if {"transformer", "adapter"} <= set(present) else network_of_sizes(sizes),
        found.text if "text_encoder" in present else text,
        found.vae if "vae" in present else VAESizes(_count("vae", sizes), sizes.vae_width),
        found.audio
        if "audio_encoder" in present
        else AudioSizes(_count("audio_encoder", sizes), sizes.audio_channels, sizes.audio_width, sizes.audio_layers),
    )


def _count(role: str, sizes: Sizes) -> int:
    return sum(math.prod(shape) for file in files_of(role, sizes) for shape, _ in file.tensors.values())


def choose_depth(whole: Sizes, fixed: Collection[str], layers: int, lacks: Callable[[Sizes], str]) -> Sizes:
    """The deepest models that fit: first blocks of the transformer, then of the text encoder.

    `fixed`: roles that are there, and as deep as they are; `layers` above 0 is chosen instead of what fits. `lacks`
    says what models of some sizes have no room for, "" when they fit. Raises InputError where not even the fewest
    blocks fit.
    """
    if layers:
        return _cut(whole, fixed, layers, layers)
    if not lacks(whole):
        return whole
    least = _cut(whole, fixed, FEWEST_BLOCKS, FEWEST_TEXT_BLOCKS)
    if reason := lacks(least):
        raise InputError(
            f"There is no room for {least.layers} blocks of the transformer and {least.text_layers} of the text "
            f"encoder: {reason}. Free some, rehearse fewer --steps, or choose another --to."
        )
    deep = _deepest(whole.layers, least.layers, lambda n: not lacks(_cut(whole, fixed, n, least.text_layers)))
    text = _deepest(whole.text_layers, least.text_layers, lambda n: not lacks(_cut(whole, fixed, deep, n)))
    return _cut(whole, fixed, deep, text)


def _cut(whole: Sizes, fixed: Collection[str], layers: int, text_layers: int) -> Sizes:
    """At most so many blocks, of what is not there already."""
    deep = whole.layers if {"transformer", "adapter"} & set(fixed) else max(FEWEST_BLOCKS, layers)
    return whole.shallower(deep, whole.text_layers if "text_encoder" in fixed else text_layers)


def _deepest(most: int, least: int, fits: Callable[[int], bool]) -> int:
    """The largest number from `least`, which fits, to `most` that fits."""
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def depth_sentence(sizes: Sizes, whole: Sizes, why: str) -> str:
    """What is rehearsed of the published depth, and why no more."""
    if sizes == whole:
        return f"whole: {whole.layers} blocks of the transformer, {whole.text_layers} of the text encoder"
    return (
        f"{sizes.layers} of {whole.layers} blocks of the transformer and {sizes.text_layers} of {whole.text_layers} of "
        f"the text encoder, of the published widths: {why}"
    )
