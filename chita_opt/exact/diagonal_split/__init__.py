"""The best diagonal split of a quadratic: a compiled barrier Newton method."""
