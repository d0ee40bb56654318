"""Files: only regular ones are read and replaced, whole or not at all, whoever else writes or was killed."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dqconvert import CheckpointError
from dqconvert.checkpoint import container
from dqconvert.files import check_target, open_file, write_file
from dqconvert.weights import read_weights


def make_pipe(folder):
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def make_socket(folder):
    place = os.getcwd()
    os.chdir(folder)  # the name of a socket may have 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind("socket")
    finally:
        os.chdir(place)
    return folder / "socket"


def make_folder(folder):
    (folder / "folder").mkdir()
    return folder / "folder"


def make_link(folder, target):
    (folder / "link").symlink_to(target)
    return folder / "link"


SPECIAL = {
    "pipe": (make_pipe, "a named pipe"),
    "socket": (make_socket, "a socket"),
    "folder": (make_folder, "a folder"),
    "device": (lambda folder: "/dev/null", "a device"),
    "endless device": (lambda folder: "/dev/zero", "a device"),
    "link to a pipe": (lambda folder: make_link(folder, make_pipe(folder)), "a named pipe"),
    "link to a device": (lambda folder: make_link(folder, "/dev/null"), "a device"),
    "link to a folder": (lambda folder: make_link(folder, make_folder(folder)), "a folder"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_replaced(kind, tmp_path):
    make, words = SPECIAL[kind]
    path = make(tmp_path)
    before = os.stat(path)
    for work in (check_target, lambda path: write_file(path, [b"x"])):
        with pytest.raises(CheckpointError, match=f"is {words}: give the name of a file"):
            work(path)
    assert stat.S_IFMT(os.stat(path).st_mode) == stat.S_IFMT(before.st_mode)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_read(kind, tmp_path):
    """A pipe that nobody writes into would be waited for, and a device may have no end."""
    make, words = SPECIAL[kind]
    path = make(tmp_path)
    for read in (open_file, container.read, container.is_prepared, read_weights):
        with pytest.raises(CheckpointError, match=f"is {words}, not a file"):
            read(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("a" * 256, "File name too long"), ("a/" * 3000 + "a", "File name too long"), ("a\0b", "null byte")],
)
def test_names_that_no_file_can_have(name, words, tmp_path):
    for work in (open_file, check_target, container.read, read_weights, lambda path: write_file(path, [b"x"])):
        with pytest.raises(CheckpointError, match=words):
            work(f"{tmp_path}/{name}")


def test_names_of_255_bytes_are_fine(tmp_path):
    write_file(tmp_path / ("é" * 127), [b"x"])
    assert [path.name for path in tmp_path.iterdir()] == ["é" * 127]


@pytest.mark.parametrize("name", ["", ".", "..", "link"])
def test_names_of_no_file(name, tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(CheckpointError, match=r"folder|leads back to itself"):
        write_file(f"{tmp_path}/{name}", [b"x"])


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"old")
    (tmp_path / "one").symlink_to("a/file")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "new").symlink_to("a/new")
    write_file(tmp_path / "two", [b"new"])
    write_file(tmp_path / "new", [b"newer"])
    assert all((tmp_path / name).is_symlink() for name in ("one", "two", "new"))
    assert (tmp_path / "a" / "file").read_bytes() == b"new"
    assert (tmp_path / "a" / "new").read_bytes() == b"newer"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["file", "new"]


def test_permissions_are_those_of_the_file_that_was_there_or_the_usual_ones(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "new", [b"x"])
        for mode in (0o600, 0o666, 0o751):
            (tmp_path / "old").write_bytes(b"")
            (tmp_path / "old").chmod(mode)
            write_file(tmp_path / "old", [b"x"])
            assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == mode
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_threads_write_one_file_and_the_last_one_stays(tmp_path):
    path, barrier = tmp_path / "file", threading.Barrier(8)

    def write(number):
        for _ in range(10):
            barrier.wait()
            write_file(path, [bytes([number]) * 1000] * 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    found = path.read_bytes()
    assert len(found) == 3000
    assert len(set(found)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_has_the_same_process_id_is_not_in_the_way(tmp_path):
    """As versions before named them."""
    (tmp_path / f".file.{os.getpid()}.tmp").write_bytes(b"half")
    write_file(tmp_path / "file", [b"whole"])
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_killed_processes_leave_is_swept(number, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import os, sys\n"
        "from dqconvert.files import write_file\n"
        "def chunks():\n"
        "    yield b'half'\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "write_file(sys.argv[1], chunks())\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -number
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    write_file(tmp_path / "other", [b"x"])
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "other"]


def test_what_is_being_written_is_not_swept(tmp_path):
    def chunks():
        yield b"first "
        write_file(tmp_path / "other", [b"x"])
        yield b"second"

    write_file(tmp_path / "file", chunks())
    assert (tmp_path / "file").read_bytes() == b"first second"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "other"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_nothing(error, tmp_path):
    def chunks():
        yield b"half"
        raise error

    with pytest.raises(error):
        write_file(tmp_path / "file", chunks())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line():
    with pytest.raises(CheckpointError, match="/dev/full: is a device"):
        write_file("/dev/full", [b"x"])


def test_others_files_of_such_names_are_left_alone(tmp_path):
    """A link, a folder and a pipe are none that were being written."""
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / ".dqconvert-0.tmp").symlink_to("precious")
    (tmp_path / ".dqconvert-1.tmp").mkdir()
    os.mkfifo(tmp_path / ".dqconvert-2.tmp")
    write_file(tmp_path / "file", [b"x"])
    assert len(list(tmp_path.iterdir())) == 5
