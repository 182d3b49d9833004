from common.runs import RunFolder
from pipelines.words import closing_words, fault_table

FOUND = {
    "faults": [{"kind": "blur", "cases": 3, "found": 2, "wrong_reason": 1}],
    "offsets": {"cases": 21, "exact": 20},
    "unfaulted": 60,
    "false_refusals": 1,
}


def test_the_table_says_what_was_planted_and_found():
    lines = fault_table(FOUND)
    assert lines[1].split() == ["blur", "3", "2", "1"]
    assert lines[-2:] == ["offsets recovered exactly: 20 of 21", "unfaulted clips refused: 1 of 60"]


def test_an_empty_run_has_nothing_to_say(tmp_path):
    assert closing_words(RunFolder(tmp_path)) == []
