"""Output of commands on the terminal."""

from common.untrusted.text import printable


def show(text: object) -> None:
    """Print a text or a path; what names and messages of others hold of control characters is spelled out."""
    print(printable(str(text)))
