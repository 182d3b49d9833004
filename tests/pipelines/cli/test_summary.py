from common.runs import RunFolder
from pipelines.cli.summary import closing_words, fault_table

FOUND = {
    "faults": [
        {"kind": "blur", "cases": 3, "found": 2, "wrong_reason": 1, "recall": 0.6667, "precision": 1.0},
        {"kind": "text", "cases": 3, "found": 0, "wrong_reason": 0, "recall": 0.0, "precision": None},
    ],
    "offsets": {"cases": 21, "exact": 20, "zero": 19},
    "unfaulted": 60,
    "false_refusals": 1,
}


def test_the_table_says_what_was_planted_and_found():
    lines = fault_table(FOUND)
    assert lines[1].split() == ["blur", "3", "2", "1", "0.67", "1.00"]
    assert lines[2].split() == ["text", "3", "0", "0", "0.00", "-"]
    exact = "offsets recovered exactly: 20 of 21, at 0 afterwards: 19"
    assert lines[-2:] == [exact, "unfaulted clips refused: 1 of 60"]


def test_an_empty_run_has_nothing_to_say(tmp_path):
    assert closing_words(RunFolder(tmp_path)) == []
