"""A local page of runs while they go: what is below a folder, live panels, and two buttons."""
