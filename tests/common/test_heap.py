from pathlib import Path

from common.heap import release_heap


def anonymous() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


def test_freed_blocks_go_back_to_the_system() -> None:
    blocks = [bytearray(100_000) for _ in range(400)]
    held = blocks[::2]
    del blocks
    before = anonymous()
    release_heap()
    assert before - anonymous() > 5_000_000 and len(held) == 200
