"""The broker's files: three listeners, each with its access list; docs/protocol.md has them as a table."""

CONFIG = "/etc/mosquitto"
DEVICES, ENROLMENT, SERVICES, LOCAL = 8883, 8884, 8885, 1880


def mosquitto_conf() -> str:
    """`mosquitto.conf`: devices and services over mutual TLS; the container's own health check without, from inside."""
    return f"""\
per_listener_settings true
persistence true
persistence_location /var/lib/mosquitto/
autosave_interval 30
max_queued_messages 10000
log_dest stdout
log_type error
log_type warning
log_type notice

# Devices: the user name and the client id are the certificate's common name, the device's id.
listener {DEVICES}
{_tls()}
use_username_as_clientid true
acl_file {CONFIG}/devices.acl

# The aggregator, operators and monitors.
listener {SERVICES}
{_tls()}
acl_file {CONFIG}/services.acl

# The container's health check, which reads the broker's uptime and nothing else.
listener {LOCAL} 127.0.0.1
allow_anonymous true
acl_file {CONFIG}/local.acl
"""


def _tls() -> str:
    return f"""\
cafile {CONFIG}/ca.pem
certfile {CONFIG}/server.pem
keyfile {CONFIG}/server.key
crlfile {CONFIG}/crl.pem
require_certificate true
use_identity_as_username true
tls_version tlsv1.2"""


def devices_acl(fleet: str) -> str:
    """What a device may do: its own topics, and what the gateway tells everyone."""
    own = f"fl/1/{fleet}/dev/%u"
    written = ("state", "info", "health", "event", "alert/#", "prediction", "up/#", "twin/reported", "cmd/#")
    read = ("state", "dn/#", "twin/desired", "cmd/#")
    lines = [f"pattern write {own}/{topic}" for topic in written]
    lines += [f"pattern read {own}/{topic}" for topic in read]
    lines += [f"pattern read fl/1/{fleet}/{topic}" for topic in ("task/#", "gw/#")]
    return "\n".join(lines) + "\n"


def services_acl(fleet: str) -> str:
    """What the gateway's programs and people may do."""
    everything = f"fl/1/{fleet}"
    seen = [
        *(f"dev/+/{kind}" for kind in ("state", "info", "health", "event", "alert/#", "prediction", "twin/#", "cmd/#")),
        *(f"dev/+/dn/{kind}" for kind in ("grant", "result", "slot")),
        *(f"task/+/{kind}" for kind in ("plan", "manifest/#", "status", "metrics")),
        "gw/#",
        "op/#",
    ]
    watching = [f"topic read {everything}/{topic}" for topic in seen]
    return "\n".join(
        [
            "user aggregator",
            f"topic readwrite {everything}/#",
            "",
            "user operator",
            f"topic write {everything}/op/#",
            *watching,
            "",
            "user monitor",
            *watching,
            "",
        ]
    )


def local_acl() -> str:
    """What the health check may do."""
    return "topic read $SYS/broker/uptime\n"
