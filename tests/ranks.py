"""Runs work on several ranks: forked processes, which need not import everything again, and a gloo group of them."""

import datetime
import multiprocessing
import os
import tempfile
import traceback
import warnings

import torch
from torch import distributed


def on_ranks(number, work, *args, seconds=240):
    """Returns what `work(rank, *args)` returns on each rank, if it can be pickled.

    Raises:
        RuntimeError: With the tracebacks of those that raised, if any did.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks where other threads wait
        pipes = [context.Pipe(duplex=False) for _ in range(number)]
        place = f"file://{folder}/group"
        each = [(rank, number, place, seconds, pipes[rank][1], work, args) for rank in range(number)]
        processes = [context.Process(target=_rank, args=one, daemon=True) for one in each]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        found = []
        for receiver, _ in pipes:
            found.append(receiver.recv() if receiver.poll(seconds) else (False, "no answer: ranks wait for each other"))
        for process in processes:
            process.join(1)
            process.kill()
    if not all(fine for fine, _ in found):
        raise RuntimeError("\n".join(result for fine, result in found if not fine))
    return [result for _, result in found]


def _rank(rank, number, place, seconds, sender, work, args):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = datetime.timedelta(seconds=seconds - 20)
    try:
        distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=number, timeout=timeout)
        sender.send((True, work(rank, *args)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()
        os._exit(0)
