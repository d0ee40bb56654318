"""Ways to look at a prepared module, from its graphs and its report: tree, code, comparison with float, page."""
