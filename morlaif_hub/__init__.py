"""Multi-objective RL from AI feedback: one small preference model per principle."""

__version__ = "0.1.0"
