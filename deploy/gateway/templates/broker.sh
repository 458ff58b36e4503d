#!/bin/sh
# mosquitto on the configuration $1; it reads its files again (SIGHUP) within two seconds of a change of a certificate
# or of the list of revoked ones.
set -eu
pki=$(sed -n 's/^cafile \(.*\)\/ca.pem$/\1/p' "$1" | head -n 1)
state() { cat "$pki/crl.pem" "$pki/server.pem" | cksum; }
mosquitto -c "$1" &
broker=$!
trap 'kill -TERM "$broker"' TERM INT
seen=$(state)
while kill -0 "$broker" 2>/dev/null; do
    sleep 2 &
    wait $! || true
    now=$(state)
    if [ "$now" != "$seen" ] && kill -HUP "$broker" 2>/dev/null; then
        seen=$now
    fi
done
wait "$broker"
