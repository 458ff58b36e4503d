"""The twin: the production agent and gateway on a virtual clock, under seeded faults."""
