"""The use cases: each takes ports, and reads no clock."""
