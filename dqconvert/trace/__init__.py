"""Float module → ``torch.fx.GraphModule`` whose nodes know their stage, module path and source line."""

from dqconvert.trace.islands import Island
from dqconvert.trace.module import TracedModule
from dqconvert.trace.note import Note, Stage, note_of
from dqconvert.trace.tracer import Trace, trace

__all__ = ["Island", "Note", "Stage", "Trace", "TracedModule", "note_of", "trace"]
