"""Whole graphs in bounded memory: an integer graph cut into stages, each of which runs over chunks of rows.

:mod:`.unfold` takes out of the graph what serves graphs that fit, :mod:`.rules` finds what the rows of each value are,
:mod:`.stages` cuts where rows of other nodes are read. Then there is a graph of nodes and edges: :mod:`.whole` holds
what is known of all of it, :mod:`.csr` sorts its edges into files, :mod:`.chunks` runs a stage on a chunk of nodes, and
:mod:`.run` goes over all of them, for :func:`dqconvert.infer`.
"""
