"""The reader of lists: encodings, separators inside strings, quotes, large fields, arrays, and what is told."""

import json
import time
from pathlib import Path

import pytest

from common.untrusted.lists import ListError, parse_json, read_table, text_lines

ROWS = [
    {"name": "one", "prompt": "she speaks\u2028she smiles"},
    {"name": "two", "prompt": "he nods\x85slowly, and\u2029says “yes”"},
]


def as_json_lines(end: str) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in ROWS)


CSV = 'name, prompt\none, "she speaks\u2028she smiles"\n\ntwo,"he nods\x85slowly, and\u2029says “yes”"\n,\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", as_json_lines("\n")),
        ("a.JSONL", as_json_lines("\r\n\r\n")),
        ("a.json", json.dumps(ROWS, ensure_ascii=False, indent=1)),
        ("a.Json", as_json_lines("\n")),
        ("a.csv", CSV),
        ("a.CSV", CSV.replace("\n", "\r\n")),
        ("a.csv", CSV.replace("slowly, and", "slowly; and").replace(",", ";").replace("slowly; and", "slowly, and")),
        ("a.tsv", CSV.removesuffix(",\n").replace(", ", "\t", 1).replace(", ", "\t", 1).replace('two,"', 'two\t"')),
        ("a.csv", "\n" + CSV.replace("prompt", "prompt,,")),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_same_rows_in_every_form(tmp_path: Path, name: str, text: str, mark: str) -> None:
    (tmp_path / name).write_bytes((mark + text).encode())
    rows = list(read_table(tmp_path / name, ("name", "prompt")))
    assert [row.values for row in rows if not row.error] == ROWS and len(rows) == 2


def test_lines_end_where_a_writer_ended_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone \r\n\r\n\ufefftwo\u2028still\x85two\x0c.mp4\rthree".encode())
    assert list(text_lines(tmp_path / "a.txt")) == [(1, "one"), (3, "two\u2028still\x85two\x0c.mp4"), (4, "three")]


def test_a_field_of_a_megabyte_and_many_lines_take_no_time(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,prompt\n" + "x,y\n" * 50_000 + "z," + "w" * 1_000_000 + "\n")
    begun = time.process_time()
    *_, last = read_table(tmp_path / "a.csv")
    assert last.number == 50_002 and len(last.values["prompt"]) == 1_000_000 and time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "name\nx\n".encode("utf-16"), "UTF-16"),
        ("a.jsonl", "{}".encode("utf-16-le"), "UTF-16"),
        ("a.csv", b"name\nprox\xe9\n", "not UTF-8"),
        ("a.csv", b'name,prompt\na,"never closed\nb,c\n', "check the quotes"),
        ("a.csv", b"name,name\na,b\n", "more than once"),
        ("a.csv", b"name,colour\na,b\n", "colour"),
        ("a.csv", b"", "expected a header"),
        ("a.json", b'[{"name": "a"},]', "not valid JSON"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_list_of_another_form_is_told(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ListError, match=words):
        list(read_table(tmp_path / name, ("name", "prompt")))


def test_a_bad_row_leaves_the_others(tmp_path: Path) -> None:
    lines = ['{"name": "a"}', "[1]", "no", '{"nam": 1}', "[" * 50_000, '{"name": "\\ud800"}', '{"name": "b"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = list(read_table(tmp_path / "a.jsonl", ("name",)))
    assert [row.number for row in rows if not row.error] == [1, 7]
    words = ("list is not a JSON object", "not valid", "'nam' is not known", "nested too deeply", "surrogates")
    assert all(word in row.error for word, row in zip(words, rows[1:6], strict=True))


def test_escapes_of_ordinary_text_are_no_half_pairs() -> None:
    assert parse_json('"\\u00fc \\ud83d\\ude00"') == "ü 😀"
