"""How one node of the prepared graph becomes integer."""
