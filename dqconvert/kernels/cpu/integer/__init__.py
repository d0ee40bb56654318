"""Loops over codes: the operations of the integer module on the CPU."""
