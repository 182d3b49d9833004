"""Escapes of names and captions: what a terminal and Markdown would obey is shown."""

from common.untrusted.text import code, markdown, printable


def test_a_terminal_is_sent_no_commands() -> None:
    assert printable("a\x1b[31m\x07\x9b2J\r\u202eb\tü\n😀 [red]") == ("a\\x1b[31m\\x07\\x9b2J\\r\\u202eb\tü\n😀 [red]")
    assert printable("\udcff") == "\\udcff"


def test_markdown_stays_in_its_cell() -> None:
    hostile = "a|b\n# <script>alert('x')</script> [go](javascript:x) `c`"
    assert markdown(hostile) == ("a\\|b # \\<script\\>alert('x')\\</script\\> \\[go\\](javascript:x) \\`c\\`")
    assert markdown("source_0000 $x$") == "source_0000 $x$"
    assert code("a`b\nc") == "`a'b c`"
