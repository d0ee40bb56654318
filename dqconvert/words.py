"""Words of messages: articles, plurals, short values, and the known word nearest to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SPELLED = ("one", "uni", "use", "uint", "eu")
"""What begins with a vowel letter and not with its sound."""


def article(noun: str) -> str:
    """Returns a noun with its article.

    Example:
        >>> article("int"), article("GCN"), article("MLP"), article("IntegerModule"), article("uint8 tensor")
        ('an int', 'a GCN', 'an MLP', 'an IntegerModule', 'a uint8 tensor')
    """
    word = noun.split()[0]
    letters = word.isupper() and not set(word) & set("AEIOU")  # read letter by letter
    vowel = word[:1].lower() in "aeiou" and not word.lower().startswith(_SPELLED)
    return f"{'an' if vowel or (letters and word[0] in 'FHLMNRSX') else 'a'} {noun}"


def kind_of(value: object) -> str:
    """Returns the name of a value's type, with its article.

    Example:
        >>> kind_of(3), kind_of("x"), kind_of(None)
        ('an int', 'a str', 'None')
    """
    return "None" if value is None else article(type(value).__name__)


def count(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun, in singular or plural.

    Example:
        >>> count(1, "call"), count(2, "call"), count(0, "value"), count(79696, "byte"), count(2, "index", "indices")
        ('1 call', '2 calls', '0 values', '79,696 bytes', '2 indices')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(names: Iterable[str], most: int = 8) -> str:
    """Joins names, the first few if there are many.

    Example:
        >>> listed(["x", "edge_index"]), listed("abcdef", most=2), listed([])
        ('x, edge_index', 'a, b, … (6 in all)', 'nothing')
    """
    found = list(names)
    if not found:
        return "nothing"
    return ", ".join(found[:most]) + (f", … ({len(found)} in all)" if len(found) > most else "")


def shortened(value: object, most: int = 80) -> str:
    """Returns the ``repr`` of a value in one line, cut to so many characters.

    Example:
        >>> shortened("int8-dq"), shortened(list(range(99)), most=12)
        ("'int8-dq'", '[0, 1, 2, 3…')
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def raised(error: BaseException) -> str:
    """Returns what an error is, and the first line of what it says.

    Example:
        >>> raised(ValueError("no such row, of 5")), raised(KeyError())
        ('ValueError: no such row, of 5', 'KeyError')
    """
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"``, or ``""`` where no known word is near.

    Example:
        >>> did_you_mean("edge_idx", ["x", "edge_index"])
        "; did you mean 'edge_index'?"
        >>> did_you_mean("zebra", ["x", "edge_index"])
        ''
    """
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
