"""How many replicas each variant should have: a pure plan, and its adapter to Ray Serve."""
