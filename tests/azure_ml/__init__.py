"""A small Azure ML control plane on loopback, for tests with the unpatched SDK."""
