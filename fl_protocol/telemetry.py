"""onnxruntime tells its maker nothing of the processes that it runs in."""

import os

# The first is read by the wheels of 1.32, the second by later ones (microsoft/onnxruntime, pull requests 27379, 29843).
SWITCHES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")


def forbid_telemetry() -> None:
    """Before onnxruntime is imported: it looks once, for the life of the process.

    Since 1.32 the wheels for Linux make an id of the device in its user's home, and upload process, session and model
    events, from the import on, unless the environment says otherwise. What a device may tell is our closed list alone;
    an operator who wants it otherwise has no switch for that.
    """
    os.environ.update(dict.fromkeys(SWITCHES, "1"))
