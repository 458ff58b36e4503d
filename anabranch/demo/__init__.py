"""A whole fleet on this machine: broker, gateway and agents as real processes. Start reading at run.py."""
