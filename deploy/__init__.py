"""From a checkout to devices in the field: cards, packages, gateways, fleets. Nothing else imports it."""
