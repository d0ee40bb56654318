"""What a file asks for is measured against its bytes before it gets memory or time; nothing in it raises raw."""

import base64
import copy
import itertools
import json
import struct
import subprocess
import sys
import zlib

import pytest
import torch
from typer.testing import CliRunner

import dqconvert
import zoo
from dqconvert import CheckpointError
from dqconvert.checkpoint import container, integer, limits
from dqconvert.cli import app
from mutations import opened, resign

MODEL = zoo.CASES["GCN"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    module = dqconvert.prepare(MODEL.model(), "int8-dq", MODEL.inputs()).module.train()
    module(*MODEL.inputs())
    dqconvert.save(module, folder / "a.dq")
    dqconvert.save(dqconvert.convert(module), folder / "a.int")
    return folder


def load(path):
    return dqconvert.load(path, **({"model": MODEL.model()} if path.suffix == ".dq" else {}))


# -- bombs ---------------------------------------------------------------------------------------------------------


def write_raw(path, text, size=0):
    """A file whose header is `text`, unsigned."""
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


def header(document, **tensors):
    document = {"checksum": "0" * 64, "format": container.FORMAT, "kind": "integer", **document}
    text = json.dumps(document, separators=(",", ":"))
    return json.dumps({"__metadata__": {"dqconvert": text}, **tensors}, separators=(",", ":")).encode()


def large_table(folder, path):
    tensors, document = opened(folder / "a.int")
    name = document["constants"][0]
    size = 1 << 14
    tensors[name] = torch.frombuffer(bytearray(zlib.compress(bytes(4 * size * size), 9)), dtype=torch.uint8)
    document["tables"][name] = {"kind": "sums", "shape": [size, size], "lines": [0, 0]}
    resign(path, tensors, document)


def many_tables(folder, path):
    tensors, document = opened(folder / "a.int")
    packed = torch.frombuffer(bytearray(zlib.compress(bytes(1 << 24), 9)), dtype=torch.uint8)
    for number in range(500):
        name = f"table{number}"
        document["constants"].append(name)
        tensors[name], document["tables"][name] = packed, {"kind": "codes", "shape": [1 << 16, 256]}
    resign(path, tensors, document)


def a_description_that_unpacks_to(text):
    def write(folder, path):
        tensors, document = opened(folder / "a.int")
        packed = integer.pack_document(document)
        container.write(path, tensors, {**packed, "deflated": base64.b64encode(zlib.compress(text, 9)).decode()})

    return write


def a_header(text):
    return lambda folder, path: write_raw(path, text)


_SIZES = "[" + ",".join(["9" * 4000] * 60) + "]"


def bombs():
    """How to write each; some take half a gigabyte to say."""
    return {
        "a table of 16384²": large_table,
        "tables of 8 GB": many_tables,
        "40 million lists": a_description_that_unpacks_to(b'{"report":[' + b"[]," * 40_000_000 + b"[]]}"),
        "200 million spaces": a_description_that_unpacks_to(b" " * 200_000_000),
        "a long string": a_description_that_unpacks_to(b'"' + b"x" * 200_000_000 + b'"'),
        "sizes of 4,000 digits": a_header(
            header({}, x={"dtype": "F32", "shape": [], "data_offsets": [0, 4]}).replace(b"[]", _SIZES.encode())
        ),
        "a deep header": a_header(header({}, x="deep").replace(b'"deep"', b"[" * 200_000 + b"]" * 200_000)),
        "a number with a long exponent": a_header(header({}, x="large").replace(b'"large"', b"1e999999999")),
        "2^60 values of no bytes": a_header(
            header({}, x={"dtype": "F32", "shape": [0, 1 << 60], "data_offsets": [0, 0]})
        ),
    }


@pytest.mark.study
def test_bombs_are_refused_with_little_memory(folder, tmp_path):
    """With half a gigabyte more than torch takes; such files took 5.5 and more."""
    paths = []
    for name, write in bombs().items():
        paths.append(tmp_path / name.replace(" ", "_"))
        write(folder, paths[-1])
    code = (
        "import resource, sys, dqconvert\n"
        "from dqconvert.checkpoint import load\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "most = pages * resource.getpagesize() + (1 << 29)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        load(path)\n"
        "    except dqconvert.CheckpointError as error:\n"
        "        print('refused', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    refused = done.stdout.splitlines()
    assert [path.name for path in paths if not any(str(path) in line or "table" in line for line in refused)] == []
    assert len(refused) == len(paths)


def test_proportions_are_those_of_real_files(folder):
    """What is written is far from every bound."""
    _, packed = container.read(folder / "a.int")
    deflated = base64.b64decode(packed["deflated"])
    assert 4 * len(zlib.decompress(deflated)) < limits.GROWTH * len(deflated) + limits.ROOM


# -- whatever is in a file -----------------------------------------------------------------------------------------


def changed(document, path, value):
    """The document with one field replaced, or left out where the value is `...`."""
    document = copy.deepcopy(document)
    *owners, last = path
    place = document
    for key in owners:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


FIELDS = [
    (("versions",), []),
    (("versions", "torch"), 2),
    (("report",), ...),
    (("report", "model"), None),
    (("modules",), ["x"]),
]
FIELDS_OF_PREPARED = [
    *(FIELDS),
    (("report", "entries"), ...),
    (("report", "entries", 0, "bits"), "8"),
    (("report", "entries", 0, "role"), ...),
    (("report", "entries", 0, "more"), 1),
    (("report", "remarks"), "none"),
    (("report", "model"), ...),
    (("report", "fusions"), [{"op": "x"}]),
    (("quantizers", 0, "spec"), []),
    (("quantizers", 0, "channel_dim"), 1.5),
    (("quantizers", 0, "flags"), None),
    (("protections", 0, "p_max"), "all"),
    (("state", "modes"), []),
    (("state", "aliases"), {"a": 1}),
    (("graphs",), []),
    (("graphs", "train", 0, "note"), None),
    (("graphs", "train", 0, "note", "sizes"), [[1.5]]),
    (("graphs", "train", 0, "args"), {}),
    (("graphs", "train", 0), "x"),
    (("method",), 3),
    (("islands",), [{"module": "x"}]),
]
FIELDS_OF_INTEGER = [
    *FIELDS,
    (("report", "ops"), []),
    (("report", "ops", "linear"), "2"),
    (("report", "places"), [{}]),
    (("report", "places", 0, "scale"), "x"),
    (("constants",), {}),
    (("constants", 0), 5),
    (("weights",), [1]),
    (("tables", "x"), {"kind": "codes"}),
    (("tables", "x"), {"kind": "codes", "shape": [2.0, 256]}),
    (("memos",), []),
    (("memos", "graph_0", 0, "note", "call"), "first"),
    (("graph",), {}),
    (("graph", 0, "kwargs"), []),
    (("graph", 0, "name"), ...),
]


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["dq", "int"])
def test_fields_of_other_types_are_one_line_on_loading_and_on_looking(kind, folder, tmp_path):
    tensors, document = opened(folder / f"a.{kind}")
    path = tmp_path / f"b.{kind}"
    forms = itertools.cycle(("--report", "--code", "--graph"))
    for place, value in FIELDS_OF_PREPARED if kind == "dq" else FIELDS_OF_INTEGER:
        resign(path, tensors, changed(document, place, value))
        with pytest.raises(CheckpointError, match="malformed"):
            load(path)
        form = next(forms)
        done = CliRunner().invoke(app, ["inspect", str(path), form])
        assert done.exit_code == 1, (place, form)
        assert isinstance(done.exception, SystemExit), (place, form, done.exception)


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 30, b"1." + b"0" * 100])
def test_numbers_that_no_file_has(text, folder, tmp_path):
    data = (folder / "a.dq").read_bytes()
    at = data.index(b'\\"p_max\\":0.1') + 10
    (length,) = struct.unpack("<Q", data[:8])
    grown = data[:at] + text + data[at + 3 :]
    grown = grown[: 8 + length + len(text) - 3] + b" " * (-(len(text) - 3) % 8) + grown[8 + length + len(text) - 3 :]
    added = len(grown) - len(data)
    (tmp_path / "a.dq").write_bytes(struct.pack("<Q", length + added) + grown[8:])
    with pytest.raises(CheckpointError, match="header cannot be read"):
        load(tmp_path / "a.dq")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**19], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"shape": [1]},
        [1, 2],
        None,
    ],
)
def test_tensors_that_no_file_has(entry, tmp_path):
    write_raw(tmp_path / "a.int", header({}, x=entry), size=4)
    with pytest.raises(CheckpointError, match="header cannot be read"):
        load(tmp_path / "a.int")


@pytest.mark.parametrize("version", [None, 0, -1, 1.0, True, "1", [1], 10**15])
def test_versions_that_never_were(version, tmp_path):
    write_raw(tmp_path / "a.int", header({"format": version, "versions": []}))
    with pytest.raises(CheckpointError, match=r"never was|update dqconvert"):
        load(tmp_path / "a.int")


def test_quantizers_have_as_many_channels_as_ranges(folder, tmp_path):
    """No memory is taken for what a description says alone."""
    tensors, document = opened(folder / "a.dq")
    document["quantizers"][0]["channels"] = 1 << 40
    resign(tmp_path / "a.dq", tensors, document)
    with pytest.raises(CheckpointError, match=r"a quantizer .* of 1099511627776 channels"):
        load(tmp_path / "a.dq")
