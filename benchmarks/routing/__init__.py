"""Global routing by double deep Q-learning: grid, netlists, A*, environment, replay, learning."""
