"""The engine without a cloud: the parallel job's entry script in a pool of worker processes.

Workers are started by *spawn*, and so import the main module of the program again: a script that
uses this engine needs the usual ``if __name__ == "__main__"``. They ignore Ctrl-C, which is for
the parent to handle, and die with the parent, however it dies.
"""

from scoring.adapters.local_engine.engine import SCORE, LocalEngine
from scoring.adapters.local_engine.workers import ParallelSettings

__all__ = ["SCORE", "LocalEngine", "ParallelSettings"]
