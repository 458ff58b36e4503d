"""The workshop: compiles a torch model into a bundle that trains, quantized, where there is no torch."""

from fl_protocol.telemetry import forbid_telemetry

forbid_telemetry()
