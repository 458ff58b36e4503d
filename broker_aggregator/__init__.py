"""The gateway: takes updates as they come, and republishes the global model. Start reading at `coordinator.py`."""
