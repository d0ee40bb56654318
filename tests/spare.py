"""Processes that start at once: forked by one that has imported what takes longest to import, and nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent

SERVE = """
import json, os, sys, traceback
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        if job["env"] is not None:
            os.environ.clear()
            os.environ.update(job["env"])
            sys.modules["numba"].core.config.reload_config()
        sys.dont_write_bytecode, sys.pycache_prefix = job["bytecode"] is None, job["bytecode"]
        os.chdir(job["cwd"])
        sys.path[:0] = job["path"]
        sys.argv[1:] = job["args"]
        for number, path in enumerate(job["files"], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        status = 0
        try:
            exec(job["code"], {"__name__": "__main__"})
        except SystemExit as done:
            status = done.code if isinstance(done.code, int) else int(done.code is not None)
        except BaseException:
            status = 1
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """What became of a process; see :class:`subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


class Spare:
    """A process that forks for each call.

    Args:
        imports: Code that it runs first.
        bytecode: Where its children keep that of what they import; None: nowhere.
    """

    def __init__(self, imports: str, bytecode: Path | None = None) -> None:
        command = [sys.executable, "-c", imports + SERVE]
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self._bytecode = None if bytecode is None else str(bytecode)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def run(
        self,
        code: str,
        *args: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        path: tuple[Path, ...] = (TESTS.parent, TESTS),
    ) -> Done:
        """Runs code in a new process.

        Args:
            code: What to run, as ``__main__``.
            args: ``sys.argv[1:]``.
            cwd: Its folder; by default that of the repository.
            env: All of its environment; by default the one of the tests.
            path: Where modules are found first.
        """
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("out", "err")]
            job = {"code": code, "args": list(map(str, args)), "cwd": str(cwd or TESTS.parent), "env": env}
            job |= {"path": list(map(str, path)), "files": list(map(str, files))}
            job["bytecode"] = self._bytecode
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            status = self._process.stdout.readline().strip()
            out, err = (file.read_text() if file.exists() else "" for file in files)
        return Done(int(status), out, err)

    def run_module(self, name: str, *args: object, cwd: Path | None = None) -> Done:
        """Runs a module, as ``python -m`` does."""
        return self.run(
            f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)", *args, cwd=cwd
        )

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
