"""Escapes for text of unknown origin: names, captions and messages on a terminal and in Markdown."""

import re

# What a terminal obeys instead of showing it (line ends and tabs aside), what reverses the order of writing, and halves
# of surrogate pairs, which no terminal can be sent.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters spelled out, such as \\x1b; lines and tabs stay."""
    return _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


def markdown(text: object) -> str:
    """A text as Markdown shows it, on one line: no table cell, link, code or HTML begins or ends in it."""
    return re.sub(r"([\\|`<>\[\]])", r"\\\1", printable(" ".join(str(text).split())))


def code(text: object) -> str:
    """A text as Markdown's code, on one line; its own back quotes become single quotes."""
    return "`" + printable(" ".join(str(text).split())).replace("`", "'") + "`"
