"""Places that cannot be written to are refused before the work whose result goes there."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.errors import JobError, UsageError
from fusion import outputs


def test_a_folder_is_made_and_nothing_else(tmp_path: Path) -> None:
    outputs.check_file(tmp_path / "new/deep/plot.svg")
    assert list((tmp_path / "new/deep").iterdir()) == []
    outputs.write(tmp_path / "other/plot.svg", b"x")
    assert (tmp_path / "other/plot.svg").read_bytes() == b"x"


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        outputs.check_file(tmp_path)
    with pytest.raises(UsageError, match=r"below .*file, which is a file"):
        outputs.check_file(tmp_path / "file/deep/x.html")
    with pytest.raises(UsageError, match="folder /proc/zz cannot be made"):
        outputs.check_folder(Path("/proc/zz"))
    with pytest.raises(JobError, match="cannot be written"):
        outputs.write(tmp_path, b"x")
