"""The module that :func:`dqconvert.prepare` returns: its graphs, its methods, and its errors about arguments."""

from dqconvert.prepared.module import PreparedModule

__all__ = ["PreparedModule"]
