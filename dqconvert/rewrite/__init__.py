"""What each value of a traced graph is, and the quantizers and protection that go there."""

from dqconvert.rewrite.module import PreparedModule
from dqconvert.rewrite.rewrite import rewrite

__all__ = ["PreparedModule", "rewrite"]
