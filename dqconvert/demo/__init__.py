"""The main job on a generated graph: ``dqconvert demo``, and the graph for examples."""

from dqconvert.demo.graph import GraphSpec, make_graph
from dqconvert.demo.job import DemoResult, run, save_state, show

__all__ = ["DemoResult", "GraphSpec", "make_graph", "run", "save_state", "show"]
