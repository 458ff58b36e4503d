"""A stock image or a card becomes a device: cloud-init's files, the ticket and the wheels on its boot partition."""
