"""The virtual fleet: broker, gateway and agents as containers with the limits of real boards, and ways to hurt them."""
