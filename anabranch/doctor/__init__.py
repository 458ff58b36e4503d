"""What a broker can and cannot do for a fleet, tried out on it."""
