from pathlib import Path

import pytest

from common.user_cache import user_cache


@pytest.mark.parametrize(
    ("variable", "root"), [(None, "home/.cache"), ("", "home/.cache"), ("relative", "home/.cache"), ("absolute", "own")]
)
def test_the_folder_follows_the_variable_where_it_is_an_absolute_path(
    variable: str | None, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if variable is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own") if variable == "absolute" else variable)
    assert user_cache("inductor") == tmp_path / root / "omniavatar" / "inductor"
    assert list(tmp_path.iterdir()) == []  # only named: a command that needs no cache makes none
