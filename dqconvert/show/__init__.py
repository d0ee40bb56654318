"""Ways to look at a prepared module: tree, code, comparison with the float graph, page."""

from dqconvert.show.tree import tree
from dqconvert.show.view import View, view_file, view_module

__all__ = ["View", "tree", "view_file", "view_module"]
