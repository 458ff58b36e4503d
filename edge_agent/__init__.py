"""The device: trains on data that never leaves it, and publishes what it learnt. Start reading at agent.py."""
