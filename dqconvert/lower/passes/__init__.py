"""Rewritings of an integer graph that is written."""
