"""The numeric operations of the integer module, on codes: per operation one file with its definition.

A code is a uint8 that counts steps from the lower end of its grid: `value = (code - zero) * scale`, `0 <= code <=
top`, whether the quantizer was signed or not. Codes of up to four bits may lie packed, two to a byte. Each operation
raises `ValueError` for shapes that do not fit, and `TypeError` for types that it does not name.
"""
