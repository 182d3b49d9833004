"""Choices of the judges that recipes name."""

from typing import Literal

Variant = Literal["scorer", "automodel", "pyiqa"]

Protocol = Literal["paper", "strict"]
