"""The module that :func:`dqconvert.prepare` returns: its graphs, its doors, and what it does with calls that fail."""

from dqconvert.prepared.module import PreparedModule

__all__ = ["PreparedModule"]
