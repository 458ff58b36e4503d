"""Putting a fleet into the world: images, virtual fleets, cards to flash. Nothing else imports it."""
