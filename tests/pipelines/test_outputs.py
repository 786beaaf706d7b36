"""Places that cannot be written to are refused before the work whose result goes there."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from featcache.errors import UsageError
from pipelines.cli import app


@pytest.mark.parametrize(
    "command",
    [
        "report nowhere --out {}", "fewshot --recipes nowhere.toml --cache nowhere --plot {}/a.svg",
        "layers --recipes nowhere.toml --cache nowhere --out {}", "views nowhere --plot {}/a.svg",
        "transcribe nowhere a.wav --out {}/a",
    ],
)  # fmt: skip
def test_commands_look_first(tmp_path: Path, command: str) -> None:
    place = tmp_path if command.startswith("report") else tmp_path / "file"
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, command.format(place).split())
    assert isinstance(done.exception, UsageError) and "nowhere" not in str(done.exception), done.exception
