"""A simulated fleet of devices, its event hub, and the truth about its anomalies.

Everything is a pure function of the settings, so that a simulation that was killed continues to
the same events when it is started again.
"""

from scoring.simulation.deliveries import DeliveredSlice, DeliveryRules, deliveries
from scoring.simulation.events import BodyFault, EventChunk, partition_of, simulate
from scoring.simulation.fleet import AnomalyKind, InjectedAnomaly, ground_truth
from scoring.simulation.settings import SimulationSettings

__all__ = [
    "AnomalyKind",
    "BodyFault",
    "DeliveredSlice",
    "DeliveryRules",
    "EventChunk",
    "InjectedAnomaly",
    "SimulationSettings",
    "deliveries",
    "ground_truth",
    "partition_of",
    "simulate",
]
