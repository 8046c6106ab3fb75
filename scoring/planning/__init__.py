"""What a fleet costs to score on an autoscaling cluster: nodes, run length, money a month; pure.

A run scores its rows in parts, one process a core (of a cloud: a vCPU). With ``m`` cores::

    work = rows * (1 / rows_per_second + part_seconds / part_rows)    core-seconds
    part = part_seconds + part_rows / rows_per_second                 seconds of one part
    scoring = work / m + part                                         seconds

which is never less than what a queue of parts takes: an even share, and at its end no more than one
part for which other cores wait (R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969).

A cluster that **scales to zero** starts its nodes for every run and drops them when they have been
idle; a node is billed ``billed_startup + overhead + scoring + idle`` a run, or all the time, once
runs follow one another that closely. **Warm** nodes are billed all the time and need no start-up.
With the nodes of a plan and at a constant number of windows an hour, the cost of scaling to zero
is linear in the run frequency, and that of warm nodes constant; where they meet is the
`break_even`.

Not modelled: disks, network, storage and its transactions, Event Hubs, SQL, the function app,
retries, preempted nodes, and nodes or images that are slow to come. Memory neither: the fleet is
mapped, and a node's processes share it.
"""

from scoring.planning.estimates import Cheapest, Estimate, Mode, Planner, SizePlan, cheapest
from scoring.planning.inputs import (
    DAY,
    HOURS_A_MONTH,
    MONTH,
    ROWS_PER_SECOND,
    Demand,
    NodeSize,
    Speed,
    Timing,
)
from scoring.planning.overruns import Overrun, Shortfall, overruns, shortfall

__all__ = [
    "DAY",
    "HOURS_A_MONTH",
    "MONTH",
    "ROWS_PER_SECOND",
    "Cheapest",
    "Demand",
    "Estimate",
    "Mode",
    "NodeSize",
    "Overrun",
    "Planner",
    "Shortfall",
    "SizePlan",
    "Speed",
    "Timing",
    "cheapest",
    "overruns",
    "shortfall",
]
