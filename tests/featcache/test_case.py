"""File systems that take names for one that differ only in case."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.case import ignores_case


def test_a_folder_that_ignores_case_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ignores_case(tmp_path) and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "exists", lambda path: any(path.name.lower() == one.name for one in tmp_path.iterdir()))
    assert ignores_case(tmp_path) and list(tmp_path.iterdir()) == []
