"""Color folding: of nodes that a layer cannot tell apart, one row is computed.

:mod:`.colors` finds nodes of equal features, :mod:`.refine` tells them apart by what they receive, layer by layer, and
:mod:`.fold` makes of the colors the smaller graph that each layer computes on. The pass that writes it into an integer
graph is :mod:`dqconvert.lower.passes.colors`.
"""
