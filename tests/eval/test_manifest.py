"""The manifest gives every method its role, and says in one sentence what is wrong with it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.runs import RunFolder
from eval.manifest import ManifestError, Methods, arrange, read_roles


def write(run, roles):
    pq.write_table(pa.table({"method": list(roles), "role": list(roles.values())}), run.videos / "manifest.parquet")


def test_methods_are_arranged_by_role(tmp_path):
    run = RunFolder(tmp_path)
    assert read_roles(run) == {}
    write(run, {"ground_truth": "", "z": "judged", "b": "", "a": "control", "s": "swapped", "real_vs_real": ""})
    roles = read_roles(run)
    assert roles == {"z": "judged", "a": "control", "s": "swapped"}
    methods = arrange(["ground_truth", "real_vs_real", "z", "b", "a", "s"], roles)
    assert methods == Methods("z", "s", ("a", "b"))
    assert methods.order == ("ground_truth", "z", "s", "a", "b")
    assert methods.comparisons == ("z>s", "z>a", "z>b")


def test_without_roles_the_first_by_name_is_judged():
    assert arrange({"theirs", "ours", "ground_truth"}, {}) == Methods("ours", "", ("theirs",))
    assert arrange({"a", "b"}, {"a": "control"}) == Methods("b", "", ("a",))
    assert arrange({"a"}, {"a": "swapped"}) == Methods("a")
    assert arrange({"ground_truth"}, {}) == Methods() and Methods().order == ("ground_truth",)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([("a", "best")], "the role 'best' of a; expected judged, swapped, control"),
        ([("a", "judged"), ("b", "judged")], "a: judged, b: judged; expected one role a method"),
        ([("a", "judged"), ("a", "control")], "a: control, a: judged; expected one role a method"),
    ],
)
def test_a_wrong_role_is_refused(tmp_path, roles, message):
    run = RunFolder(tmp_path)
    methods, of = zip(*roles, strict=True)
    pq.write_table(pa.table({"method": list(methods), "role": list(of)}), run.videos / "manifest.parquet")
    with pytest.raises(ManifestError, match=message):
        read_roles(run)
