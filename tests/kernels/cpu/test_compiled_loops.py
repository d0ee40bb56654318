"""Machine code that is kept on disk is that of the sources, wherever these changed."""

import ast
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

import dqconvert
from dqconvert.kernels.cpu import cache_folder, compiled
from spare import Spare

SOURCES = Path(dqconvert.__file__).parent
OURS = ("kernels/cpu/compiled.py", "kernels/cpu/cache_folder.py")

HELPER = """
from dqconvert.kernels.cpu.compiled import loop
@loop
def helper(x):
    return x + 1
"""
MIDDLE = """
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels._helper import helper
@loop
def middle(x):
    return helper(x)
"""
OUTER = """
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels._constants import (  # in brackets (as ruff breaks lines)
    FACTOR,
)
from dqconvert.kernels import _middle as loops
@loop
def outer(x):
    return FACTOR * loops.middle(x)
"""
CALL = "from dqconvert.kernels._outer import outer as f; value = f(2)"


@pytest.fixture(scope="module")
def spare():
    """A process that has imported numba, and nothing of ours."""
    started = Spare("import numba, numpy; numba.njit(lambda x: x + 1)(1)")
    yield started
    started.close()


class Package:
    """A package of a few loops, called dqconvert, and what processes get when they call these."""

    def __init__(self, folder, files, spare):
        self.spare = spare
        self.root = folder / "package"
        self.home = folder / "home"
        self.put({"__init__.py": "", "kernels/__init__.py": "", "kernels/cpu/__init__.py": "", **files})

    def put(self, files):
        for name, text in files.items():
            path = self.root / "dqconvert" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def call(self, code=CALL, **env):
        """The value of `value`, how often `f` was loaded and compiled, and what was warned of."""
        end = "import json; s = f.stats; n = lambda c: sum(c.values());"
        end += "print(json.dumps([value, n(s.cache_hits), n(s.cache_misses)]))"
        known = {"PATH": os.environ["PATH"], "HOME": str(self.home)} | env
        status, out, err = self.spare.run(f"{code}\n{end}", env=known, cwd=self.root, path=(self.root,))
        assert status == 0, err
        return *json.loads(out), err

    def folders(self, outer=None):
        return sorted(path.name for path in (outer or self.home / ".cache/dqconvert/loops").iterdir())


@pytest.fixture
def small(tmp_path, spare):
    files = {name: (SOURCES / name).read_text() for name in OURS}
    files |= {"kernels/_helper.py": HELPER, "kernels/_middle.py": MIDDLE, "kernels/_outer.py": OUTER}
    return Package(tmp_path, {**files, "kernels/_constants.py": "FACTOR = 10"}, spare)


def test_a_helper_of_the_package_that_changed_in_another_file(tmp_path, spare):
    """The kernels as they are: `make_message` calls `scale_values`, which is written in another file."""
    names = [str(path.relative_to(SOURCES)) for path in (SOURCES / "kernels").rglob("*.py") if path.stem != "__init__"]
    below = ["distributed.py", "errors.py"]
    package = Package(tmp_path, {name: (SOURCES / name).read_text() for name in names + below}, spare)
    code = """
import numpy as np
from dqconvert.kernels.cpu.largest import make_message as f
x, y = np.ones((1, 8), np.float32), np.zeros(8, np.float32)
f(x, 0, np.full((1, 1), 3, np.float32), 0, True, np.ones(4, np.float32), y.copy(), y)
value = float(y[0])
"""
    assert package.call(code)[0] == 3
    text = (SOURCES / "kernels/cpu/tile.py").read_text()
    assert text.count("y[c] = w * x[c]") == 1
    package.put({"kernels/cpu/tile.py": text.replace("y[c] = w * x[c]", "y[c] = w * x[c] + 100")})
    assert package.call(code)[0] == 103


def test_what_a_loop_calls_two_files_away(small):
    assert small.call()[:3] == (30, 0, 1)
    small.put({"kernels/_helper.py": HELPER.replace("+ 1", "+ 1000")})
    assert small.call()[:3] == (10020, 0, 1)
    small.put({"kernels/_helper.py": HELPER, "kernels/_constants.py": "FACTOR = 700"})
    assert small.call()[:3] == (2100, 0, 1)
    small.put({"kernels/_constants.py": "FACTOR = 10", "kernels/_unrelated.py": "x = 1"})
    assert small.call()[:3] == (30, 1, 0)  # as it was at first: kept


def test_a_file_that_changes_while_a_process_runs(small):
    """What was imported before the change is computed with, and kept as what it is."""
    path = small.root / "dqconvert/kernels/_helper.py"
    change = f"p = {str(path)!r}; s = open(p).read(); open(p, 'w').write(s.replace('+ 1', '+ 1000'))"
    value, *_ = small.call(f"import dqconvert.kernels._middle\n{change}\n{CALL}")
    assert value == 30
    assert small.call()[:3] == (10020, 0, 1)
    again = "import importlib, dqconvert.kernels._helper as h, dqconvert.kernels._middle as m, dqconvert.kernels._outer"
    back = change.replace("'+ 1', '+ 1000'", "'+ 1000', '+ 5'")
    reload = "[importlib.reload(x) for x in (h, m, dqconvert.kernels._outer)]"
    assert small.call(f"{again}\n{back}\n{reload}\n{CALL}")[:3] == (70, 0, 1)


def test_the_folder_is_the_one_that_numba_was_told_to_use(small, tmp_path):
    own = "import numba\n@numba.njit(cache=True)\ndef mine(x):\n    return x\n"
    (small.root / "users.py").write_text(own)
    code = f"{CALL}; import users; users.mine(1); value = users.mine.stats.cache_path"
    path, *_ = small.call(code)
    assert path == str(small.root / "__pycache__")  # functions that are not ours are cached where they were
    assert [name.rpartition("-")[0] for name in small.folders()] == [
        "kernels._helper",
        "kernels._middle",
        "kernels._outer",
    ]
    shutil.rmtree(small.home)
    small.call(NUMBA_CACHE_DIR=str(tmp_path / "told"))
    assert not small.home.exists()
    assert len(small.folders(tmp_path / "told/dqconvert-loops")) == 3


def test_no_folder_that_can_be_written(small):
    """Beside the package instead; nowhere: one warning that says what to do."""
    beside = small.root / "dqconvert/kernels/cpu/__pycache__"
    assert small.call(HOME="/dev/null")[1:] == (0, 1, "")
    assert small.call(HOME="/dev/null")[1:] == (1, 0, "")
    shutil.rmtree(beside)
    beside.write_text("a file, where a folder should be")
    value, hits, misses, warned = small.call(HOME="/dev/null")
    assert (value, hits, misses) == (30, 0, 1)
    assert warned.count("RuntimeWarning") == 1
    assert "NUMBA_CACHE_DIR" in warned


def test_damaged_files_are_compiled_anew(small):
    small.call()
    for path in small.home.rglob("*" + cache_folder.SUFFIX):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if "outer" in path.name else data[:100])
    assert small.call()[:3] == (30, 0, 1)


def test_old_folders_are_swept(tmp_path):
    def folder(module, number, age, files=("a.loop",)):
        path = tmp_path / f"{module}-{number:024x}"
        path.mkdir()
        for name in files:
            (path / name).write_text("")
        os.utime(path, (1e9 - age, 1e9 - age))
        return path

    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.loop").write_text("")
    many = [folder("kernels._a", n, age=n) for n in range(5)]
    used = folder("kernels._b", 100, age=5)
    foreign = folder("kernels._a", 200, age=300, files=("a.loop", "letter.txt"))
    (tmp_path / f"kernels._a-{300:024x}").symlink_to(elsewhere)
    (many[4] / "b.loop").symlink_to(elsewhere / "a.loop")
    os.utime(many[4], (1e9 - 4, 1e9 - 4))
    other = tmp_path / "kernels._a-mine"
    other.mkdir()

    gone = cache_folder.sweep(tmp_path, kept=3, unused=1e12)
    assert gone == [many[3].name]
    left = {path.name for path in tmp_path.iterdir()}
    assert {*(path.name for path in many[:3]), used.name, other.name, f"kernels._a-{300:024x}"} <= left
    assert (elsewhere / "a.loop").exists()
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]  # what is not ours stays, and its folder
    assert [path.name for path in many[4].iterdir()] == ["b.loop"]
    assert used.name in cache_folder.sweep(tmp_path, kept=3, unused=1.0)
    assert cache_folder.sweep(tmp_path / "nowhere") == []


@pytest.mark.study
def test_every_import_of_the_kernels_is_seen():
    """Statements are found by their beginning, which is quicker than reading the whole file; as many are found."""
    for path in (SOURCES / "kernels").rglob("*.py"):
        name = ".".join(("dqconvert", *path.relative_to(SOURCES).with_suffix("").parts)).removesuffix(".__init__")
        spec = importlib.util.find_spec(name)
        text = path.read_text()
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
        meant = {module for node in nodes for module in compiled._imported(node, spec.parent)}
        assert set(compiled._imports(spec, text)) == {module for module in meant if compiled._is_ours(module)}, path
