"""What runs on the cluster, and the same in the local engine's worker processes."""
