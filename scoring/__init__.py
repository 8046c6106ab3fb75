"""Scheduled batch scoring of huge fleets of per-device anomaly models."""
