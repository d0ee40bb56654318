"""Loads and runs mutated files, in child processes, where a crash is seen: a library of the tests, and a script.

    python tests/fuzz_files.py 10000 --workers 2

prints how many mutations came out how. What must not be: a crash, a hang, an error on loading that is not ours.
"""

import argparse
import collections
import contextlib
import functools
import random
import resource
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import dqconvert
import zoo
from dqconvert.errors import DQConvertError
from mutations import forged, mutations, opened, resign

NAMES = ("GCN", "GIN", "GAT", "GraphSAGE_layer_norm", "GraphClassifier", "PNA", "ChebConv", "TransformerConv_attr")

REFUSED = "refused"
WORKS = "works"
OURS = "our error at the call"
FLOATS = "another error at the call"
RAW = "RAW ERROR ON LOADING"
CRASH = "CRASH"
BAD = (RAW, CRASH)

MEMORY = 6 << 30


def write_bases(folder, names=NAMES, config="int8-dq"):
    """Writes a prepared and an integer file of each model."""
    for name in names:
        case = zoo.CASES[name]
        torch.manual_seed(0)
        module = dqconvert.prepare(case.model(), config, case.inputs()).module.train()
        module(*case.inputs())
        dqconvert.save(module, folder / f"{name}.dq")
        dqconvert.save(dqconvert.convert(module), folder / f"{name}.int")


def _process(*args):
    return subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True)


def run(folder, count, seed=0, workers=1, start=_process, listed=BAD):
    """How many of ``count`` mutations of the files in ``folder`` came out how; and what is wrong with the bad ones.

    Args:
        start: Runs this file as a script in a process of its own.
        listed: The outcomes of which each one is told.
    """
    cuts = [count * part // workers for part in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(_span, start, folder, seed, *cuts[part : part + 2]) for part in range(workers)]
        found = [job.result() for job in jobs]
    outcomes, bad = collections.Counter(), []
    for number, outcome, detail in (line for lines in found for line in lines):
        outcomes[outcome] += 1
        if outcome in listed:
            bad.append(f"{number}: {outcome}: {detail}")
    return outcomes, bad


def _span(run_child, folder, seed, start, stop):
    """Mutations ``start`` to ``stop``, in children: a new one behind each that crashed."""
    lines = []
    while start < stop:
        child = run_child("--child", folder, seed, start, stop)
        done = [line.split("\t", 2) for line in child.stdout.splitlines() if line.count("\t") >= 2]
        lines += done
        if len(done) < stop - start:
            start += len(done)
            tail = child.stderr.strip().splitlines()[-1:] or [""]
            lines.append([str(start), CRASH, f"exit status {child.returncode}: {tail[0]}"])
            start += 1
        else:
            start = stop
    return lines


def _child(folder, seed, start, stop):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as place:
        for number in range(start, stop):
            outcome, detail = _outcome(Path(folder), Path(place) / "file", random.Random(f"{seed} {number}"))
            print(number, outcome, detail, sep="\t", flush=True)


@functools.cache
def _base(path):
    return path.read_bytes(), opened(path)


@functools.cache
def _model(name):
    return zoo.CASES[name].model()


def _outcome(folder, place, rng):
    """How one mutated file came out; half of them are signed again."""
    path = rng.choice(sorted(folder.glob("*.dq")) + sorted(folder.glob("*.int")))
    data, parts = _base(path)
    if rng.random() < 0.5:
        place.write_bytes(next(mutations(data, 1, seed=rng.random())))
    else:
        resign(place, *forged(*parts, rng))
    model = {"model": _model(path.stem)} if path.suffix == ".dq" else {}
    try:
        module = dqconvert.load(place, **model)
    except dqconvert.CheckpointError as error:
        return REFUSED, _line(error)
    except BaseException as error:
        return RAW, f"{path.name}: {type(error).__name__}: {_line(error)}"
    try:
        for training in (True, False) if model else (False,):
            module.train(training)
            for size in (zoo.TRACED, zoo.OTHER):
                with contextlib.redirect_stdout(sys.stderr):
                    module(*zoo.CASES[path.stem].inputs(size))
    except DQConvertError as error:
        return OURS, f"{path.name}: {type(error).__name__}: {_line(error)}"
    except Exception as error:
        return FLOATS, f"{path.name}: {type(error).__name__}: {_line(error)}"
    return WORKS, path.name


def _line(error):
    return " ".join(str(error).split())[:200]


def _main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print every error that a call raised, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_bases(Path(folder))
        listed = (*BAD, OURS, FLOATS) if given.show else BAD
        outcomes, told = run(Path(folder), given.count, given.seed, given.workers, listed=listed)
    for outcome, number in outcomes.most_common():
        print(f"{number:6} {outcome}")
    print(*told, sep="\n")
    return 1 if any(outcomes[outcome] for outcome in BAD) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        sys.exit(_main())
