"""Physics-informed networks: derivatives, problems and their reference solutions."""
