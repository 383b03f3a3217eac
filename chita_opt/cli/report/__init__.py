"""One HTML page about a result: what was pruned, what is proven, and how to repeat it."""
