"""The gateway: takes updates as they come, and republishes the global model. Start reading at `coordinator.py`."""

from fl_protocol.telemetry import forbid_telemetry

forbid_telemetry()
