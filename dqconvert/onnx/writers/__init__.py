"""The writers of operations, by room of ``ops/``; importing one registers its writers."""
