"""The command line: fast help, exit codes, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dqconvert
from command_line import dqconvert_command
from dqconvert.cli import app


def test_help_imports_hardly_more_than_the_help_of_an_empty_command() -> None:
    """Imports are what its time goes into: half a second on a machine that does nothing else."""

    def modules(app: str) -> int:
        code = f"import sys\n{app}\ntry: app(['--help'])\nexcept SystemExit: print(len(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout.splitlines()[-1])

    empty = "import typer; app = typer.Typer(); app.command()(lambda: None)"
    assert modules("from dqconvert.cli import app") <= modules(empty) + 40


@pytest.mark.sample(2)
@pytest.mark.parametrize("args", [["--help"], ["-h"], ["demo", "--help"], ["--version"]])
def test_help_and_version_import_no_torch(args: list[str]) -> None:
    code = (
        "import sys; from dqconvert.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "assert not {'torch', 'numpy', 'numba', 'torch_geometric'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    done = dqconvert_command("--version")
    assert (done.returncode, done.stdout) == (0, f"dqconvert {dqconvert.__version__}\n")


def test_every_help_page_has_an_example() -> None:
    for args in [["-h"], *([info.name or info.callback.__name__, "-h"] for info in app.registered_commands)]:
        assert "Example: dqconvert" in CliRunner().invoke(app, args).stdout


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["dmeo"], "dmeo"),
        (["demo", "--sede", "1"], "--sede"),
        (["demo", "--seed", "one"], "--seed"),
        (["demo", "--epochs", "0"], "--epochs"),
        (["demo", "extra"], "extra"),
    ],
)
def test_wrong_usage_exits_2(args: list[str], complaint: str) -> None:
    done = CliRunner().invoke(app, args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert complaint in done.stderr


class TestFailure:
    @pytest.fixture
    def out(self, tmp_path: Path) -> str:
        """A folder that cannot be created."""
        (tmp_path / "file").touch()
        return str(tmp_path / "file" / "out")

    def test_exits_1_with_one_line(self, out: str) -> None:
        done = CliRunner().invoke(app, ["demo", "--epochs", "1", "--out", out])
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith(f"dqconvert: {out}: ")
        assert done.stderr.count("\n") == 1

    def test_debug_shows_the_traceback(self, out: str) -> None:
        done = CliRunner().invoke(app, ["--debug", "demo", "--epochs", "1", "--out", out])
        assert done.exit_code == 1
        assert isinstance(done.exception, dqconvert.CheckpointError)


@pytest.mark.timeout(300)
def test_demo_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "--epochs", "2", "--json", "--out", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert set(result) == {
        "seed", "epochs", "nodes", "edges", "mean_in_degree", "max_in_degree", "checkpoint", "float_accuracy",
        "rows", "seconds", "report",
    }  # fmt: skip
    assert [row["preset"] for row in result["rows"]] == ["int8-dq", "int8-qat", "int4-dq", "int4-qat"]
    for row in result["rows"]:
        assert set(row) == {"preset", "quantizers", "accuracy", "step_time_ratio"}
    assert result["checkpoint"] == str(tmp_path / "float.pt")
