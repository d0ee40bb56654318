"""Damaged copies of a file, shared by the tests: what disks, networks and people do to checkpoints."""

import copy
import functools
import random
import re
import struct

import torch

from dqconvert.checkpoint import container, integer


def mutations(data, count, seed=0):
    """Yields ``count`` damaged versions of the bytes ``data``, all of them different from it."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        damaged = rng.choice(KINDS)(data, rng)
        if damaged != data:
            made += 1
            yield damaged


def truncated(data, rng):
    return data[: rng.randrange(len(data))]


def flipped_bit(data, rng):
    return _flip(data, rng.randrange(len(data)), rng)


def flipped_early(data, rng):
    """In the first 2,000 bytes, where headers are."""
    return _flip(data, rng.randrange(min(2000, len(data))), rng)


def flipped_late(data, rng):
    """In the last 600 bytes, where a zip archive has its table of contents."""
    return _flip(data, len(data) - 1 - rng.randrange(min(600, len(data))), rng)


def huge_length(data, rng):
    """Another number where safetensors has the length of its header."""
    number = rng.choice([0, 1, len(data), 2**31, 2**40, 2**63, 2**64 - 1, rng.randrange(2 * len(data))])
    return struct.pack("<Q", number) + data[8:]


def wrong_json(data, rng):
    """A character of punctuation or a number in the header becomes another."""
    at = rng.choice([match.start() for match in re.finditer(rb'[{}\[\]",:0-9]', data[:4000])] or [0])
    return data[:at] + rng.choice([b"{", b"]", b'"', b",", b"9", b"-", b"", b"99999999999"]) + data[at + 1 :]


def wrong_dtype(data, rng):
    """One type's name for another."""
    names = [b"F32", b"I64", b"BF16", b"F64", b"BOOL", b"FloatStorage", b"LongStorage", b"DoubleStorage", b"float32"]
    old, new = rng.sample(names, 2)
    return data.replace(b'"' + old, b'"' + new, 1) if b'"' + old in data else data.replace(old, new, 1)


def swapped_blocks(data, rng):
    size = max(1, len(data) // 50)
    a, b = sorted(rng.sample(range(len(data) - size), 2))
    b = max(b, a + size)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def zeroed(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + bytes(min(64, len(data) - start)) + data[start + 64 :]


def appended(data, rng):
    return data + rng.randbytes(rng.randrange(1, 100))


def _flip(data, at, rng):
    changed = bytearray(data)
    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


KINDS = [
    truncated,
    flipped_bit,
    flipped_early,
    flipped_late,
    huge_length,
    wrong_json,
    wrong_dtype,
    swapped_blocks,
    zeroed,
    appended,
]


# -- files that are signed again -----------------------------------------------------------------------------------


def opened(path):
    """The tensors and the document of a file, ready to be changed and written again."""
    tensors, document = container.read(path)
    del document["checksum"]
    return tensors, integer.unpack_document(document, str(path)) if document["kind"] == "integer" else document


def resign(path, tensors, document):
    """Writes a file under a checksum that fits."""
    container.write(path, tensors, integer.pack_document(document) if document["kind"] == "integer" else document)


def forged(tensors, document, rng):
    """A document or a tensor changed by one of :data:`FORGERIES`; both are copies."""
    tensors, document = dict(tensors), copy.deepcopy(document)
    rng.choice(FORGERIES)(tensors, document, rng)
    return tensors, document


def graphs_of(document):
    """Every graph of a document, as lists of nodes."""
    if document["kind"] == "integer":
        return [document["graph"], *document["memos"].values()]
    return [graph for graph in document["graphs"].values() if graph]


def _graph(document, rng):
    return rng.choice([document["graph"]] * 2 + graphs_of(document) if "graph" in document else graphs_of(document))


def references(value):
    """Every place in a nest of arguments that refers to a node, as ``{"node": name}``."""
    if isinstance(value, dict) and set(value) == {"node"}:
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def scalars(value):
    """Every number, string and ``None`` in a nest of arguments, as its container and its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        if isinstance(item, dict | list):
            if not (isinstance(item, dict) and "node" in item):
                yield from scalars(item)
        else:
            yield value, key


def _calls(graph):
    return [node for node in graph if node["op"] in ("call_function", "call_method", "call_module", "output")]


def other_reference(tensors, document, rng):
    """One operand points to another node, mostly an earlier one."""
    graph = _graph(document, rng)
    node = rng.choice(_calls(graph))
    found = list(references([node["args"], node["kwargs"]]))
    if found:
        before = graph[: graph.index(node)] or graph
        rng.choice(found)["node"] = rng.choice(before if rng.random() < 0.9 else graph)["name"]


def swapped_references(tensors, document, rng):
    """Two operands of one call change places."""
    node = rng.choice(_calls(_graph(document, rng)))
    found = list(references([node["args"], node["kwargs"]]))
    if len(found) > 1:
        one, two = rng.sample(found, 2)
        one["node"], two["node"] = two["node"], one["node"]


def other_target(tensors, document, rng):
    """A call of something else, of what the file calls or of what might do harm."""
    graph = _graph(document, rng)
    node = rng.choice([node for node in graph if node["op"] in ("call_function", "call_method", "get_attr")])
    same = [other["target"] for every in graphs_of(document) for other in every if other["op"] == node["op"]]
    node["target"] = rng.choice(same if rng.random() < 0.7 else HARMFUL)


HARMFUL = (
    *("torch.as_strided", "torch.sparse_csr_tensor", "torch.empty", "builtins.getattr", "torch.from_file", "os.system"),
    *("fill_", "set_", "resize_", "random_", "as_strided_", "data_ptr", "numpy", "apply_", "add_", "zero_", "copy_"),
    *("torch.sparse_coo_tensor", "torch.fbgemm_pack_quantized_matrix", "operator.setitem", "index_fill_", "t_"),
)


def other_scalar(tensors, document, rng):
    """Another number, word or flag in an argument."""
    node = rng.choice(_calls(_graph(document, rng)))
    found = list(scalars([node["args"], node["kwargs"]]))
    if found:
        place, key = rng.choice(found)
        place[key] = rng.choice(SCALARS)


SCALARS = (
    *(None, True, False, 0, 1, -1, 2, 3, 17, 255, 256, 1 << 16, 1 << 31, -(1 << 40), 1 << 62, 0.5, 1e30, -2.5, "x", ""),
    *("data", "dtype", [], [1, 2], {"dtype": "int8"}, {"dtype": "float64"}, {"float": "nan"}, {"float": "inf"}),
    *({"slice": [None, None, None]}, {"slice": [-5, 1 << 40, 3]}, {"tuple": []}, {"device": "cpu"}, {"ellipsis": True}),
)


def dropped_node(tensors, document, rng):
    graph = _graph(document, rng)
    graph.remove(rng.choice(graph))


def doubled_node(tensors, document, rng):
    """A call once more, under another name, somewhere behind."""
    graph = _graph(document, rng)
    at = rng.randrange(len(graph))
    copied = copy.deepcopy(graph[at])
    copied["name"] += "_again" if rng.random() < 0.9 else ""
    graph.insert(rng.randrange(at, len(graph)), copied)


def moved_node(tensors, document, rng):
    graph = _graph(document, rng)
    graph.insert(rng.randrange(len(graph)), graph.pop(rng.randrange(len(graph))))


def in_place_call(tensors, document, rng):
    """A write into a value of the graph, somewhere behind it."""
    graph = _graph(document, rng)
    at = rng.randrange(len(graph) - 1)
    write = {"op": "call_method", "name": "forged", "target": rng.choice(["fill_", "add_", "mul_", "clamp_"])}
    write |= {"args": [{"node": graph[at]["name"]}, rng.choice([1 << 20, -7, 3])], "kwargs": {}, "note": {}}
    graph.insert(rng.randrange(at + 1, len(graph)), write)


def swapped_constants(tensors, document, rng):
    """Two tensors change places."""
    if len(tensors) > 1:
        one, two = rng.sample(sorted(tensors), 2)
        tensors[one], tensors[two] = tensors[two], tensors[one]


def other_tensor(tensors, document, rng):
    """A tensor of another shape, dtype or content, or none."""
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    changes = [
        lambda: value.reshape(-1)[: value.numel() // 2],
        lambda: value.to(rng.choice([torch.float32, torch.int64, torch.uint8, torch.int16, torch.float64])),
        lambda: value[None],
        lambda: torch.zeros(0, dtype=value.dtype),
        lambda: value.flatten().flip(0).view(value.shape),
        lambda: value.float().mul(torch.nan),
        lambda: torch.randint(0, 255, value.shape).to(value.dtype),
    ]
    kind = rng.randrange(len(changes) + 1)
    if kind == len(changes):
        del tensors[name]
    else:
        tensors[name] = changes[kind]().contiguous()


def renamed_tensor(tensors, document, rng):
    name = rng.choice(sorted(tensors))
    tensors[rng.choice([f"{name}.x", name[:-1], "training", "weight", ""])] = tensors.pop(name)


def places(value, path=()):
    """Every place in JSON data, its containers included."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def _at(value, path):
    return functools.reduce(lambda found, key: found[key], path, value)


def other_json(tensors, document, rng):
    """One value of the document replaced by another, from elsewhere in it or of another kind, or left out."""
    part = rng.choice([name for name in document if isinstance(document[name], dict | list) and document[name]])
    found = [(part, *path) for path in places(document[part])]
    path = rng.choice(found)
    owner, key = _at(document, path[:-1]), path[-1]
    kind = rng.randrange(3)
    if kind == 0:
        owner[key] = rng.choice(JSON)
    elif kind == 1:
        owner[key] = copy.deepcopy(_at(document, rng.choice(found)))
    else:
        del owner[key]


JSON = (
    *(None, True, 0, -1, 1 << 40, 2.5, "", "x", "os.system", "builtins.eval", "../a", [], {}, [[1]], "convs.0.weight"),
    *({"f": "os.system"}, {"$": 0}, "torch.load", "training", 10**30, {"node": "x"}, [1.5], "\x00", "é"),
)

FORGERIES = (
    *3 * (other_reference, swapped_references, other_target),
    *2 * (other_scalar, in_place_call, other_json, other_tensor),
    *(dropped_node, doubled_node, moved_node, swapped_constants, renamed_tensor),
)
