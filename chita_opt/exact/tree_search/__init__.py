"""Branch and bound over supports: nodes, their bounds, incumbents, workers and the proof log."""
