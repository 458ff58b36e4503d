"""The front door: what a person types."""

from fl_protocol.telemetry import forbid_telemetry

forbid_telemetry()
