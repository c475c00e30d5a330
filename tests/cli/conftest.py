"""The command line called in this process, as a user would see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpcrec.cli import main as command


@pytest.fixture
def hpcrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Call the command line: return its exit code and all that it wrote, standard output first."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["hpcrec", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            command.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        seen = capsys.readouterr()
        return code, seen.out + seen.err

    return call
