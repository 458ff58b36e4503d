"""A disk image: Debian for 64-bit ARM with the agent in it, which UEFI starts and `flash` makes a device."""
