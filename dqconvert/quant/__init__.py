"""The modules that a prepared model calls: quantizers with their observers, and the protection of nodes."""

from dqconvert.quant.degrees import groups_of_edges, groups_of_nodes
from dqconvert.quant.fake_quantize import FakeQuantize
from dqconvert.quant.observers import OBSERVERS, Observer
from dqconvert.quant.protection import DegreeProtection, Protection, gather_protected
from dqconvert.quant.switches import disable_fake_quant, disable_observer, enable_fake_quant, enable_observer

__all__ = [
    "OBSERVERS",
    "DegreeProtection",
    "FakeQuantize",
    "Observer",
    "Protection",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "gather_protected",
    "groups_of_edges",
    "groups_of_nodes",
]
