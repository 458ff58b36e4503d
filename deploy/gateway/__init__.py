"""The gateway's machine: certificates, the broker's configuration, accounts and services, made by one command."""
