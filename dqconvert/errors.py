"""The errors that dqconvert raises: each says what was wrong, where, and what to do."""


class DQConvertError(Exception):
    """Base class of every error that dqconvert raises on purpose."""


class ConfigError(DQConvertError, ValueError):
    """A quantization config is wrong: the message names the field and the allowed values."""


class TraceError(DQConvertError):
    """A model could not be turned into a graph: the message names the module, the line and the way out."""


class GuardError(DQConvertError):
    """A prepared module was called in a way that its graph was not traced for (an argument, a branch on a size)."""


class ArgumentError(GuardError):
    """A graph was called with arguments of another form than it was traced for: absent, present, a tuple, other keys.

    Another graph of the same method takes them, or is made for them.
    """


class ModeError(GuardError):
    """A graph was called in the mode in which the float model refuses such arguments."""


class InputError(DQConvertError):
    """A module was given what it cannot use: an edge that ends at no node, NaN, an index of another type.

    What is raised is one of its four kinds, each of which is one of Python's errors, too.
    """


class InputIndexError(InputError, IndexError):
    """An index names what is not there, or has another shape."""


class InputShapeError(InputError, RuntimeError, ValueError):
    """A tensor has another shape: features of another width, a weight too few. A ``RuntimeError``, as torch's own."""


class InputTypeError(InputError, TypeError):
    """A tensor is of another type."""


class InputValueError(InputError, ValueError):
    """Values are such that nothing can be made of them."""


class ObserverError(DQConvertError):
    """A quantizer was asked to quantize before it saw any value."""


class DistributedError(DQConvertError, RuntimeError):
    """Processes that observe values together do not do the same."""


class CheckpointError(DQConvertError):
    """A checkpoint or artifact could not be read or does not fit the model."""


class CommandError(DQConvertError):
    """The command line names something that cannot be used: a factory, its arguments, a file of inputs."""


class UsageError(CommandError):
    """What was typed on the command line is wrong: a name, an option's value, an option that is missing."""


class CheckpointKeyError(CheckpointError, UsageError):
    """A checkpoint has nothing under the ``--key`` that was given."""


class LoweringError(DQConvertError):
    """A prepared module could not be turned into an integer module."""


class ExportError(DQConvertError):
    """A module could not be exported: the message names the operation, its layer and its line."""
