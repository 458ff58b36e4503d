"""The device: trains on data that never leaves it, and publishes what it learnt. Start reading at agent.py."""

from fl_protocol.telemetry import forbid_telemetry

forbid_telemetry()
