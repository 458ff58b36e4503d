#!/bin/sh
# mosquitto on the configuration $1. It says what it refuses only at its debug level, among a line for every packet:
# what is said of packets that are in order is left out here, so the log has who connects, what is refused, and what
# others' topics a device subscribes to. SIGHUP and SIGTERM are handed on. With --watch behind the configuration it
# reads its files again (SIGHUP) within two seconds of a change of a certificate or of the list of revoked ones.
set -eu
conf=$1
pki=$(sed -n 's/^cafile \(.*\)\/ca.pem$/\1/p' "$conf" | head -n 1)
chatter='^([0-9]+: )?((Received|Sending) [A-Z]+ |	|(No )?[Ww]ill message )'
case $conf in
*enrollment.conf) ;; # nobody there has topics that are in order but its claim's
*) chatter="$chatter|^([0-9]+: )?[^ ]+ [012] fl/1/[^/]+/(task|gw)/|^([0-9]+: )?([^ ]+) [012] fl/1/[^/]+/dev/\\8/" ;;
esac

state() { cat "$pki/crl.pem" "$pki/server.pem" | cksum; }
seen=$(state)

pid=$(mktemp)
{
    sh -c 'echo $$ >"$1"; exec mosquitto -c "$2"' sh "$pid" "$conf" 2>&1 | grep --line-buffered -Ev "$chatter" >&2
} &
all=$!
until [ -s "$pid" ]; do sleep 0.1; done

hand() { kill "-$1" "$(cat "$pid")" 2>/dev/null || true; }
trap 'hand TERM' TERM INT
trap 'hand HUP' HUP

while kill -0 "$all" 2>/dev/null; do
    if [ "${2:-}" = --watch ]; then
        sleep 2 &
        wait $! || true
        now=$(state)
        if [ "$now" != "$seen" ]; then
            hand HUP
            seen=$now
        fi
    else
        wait "$all" || true
    fi
done
rm -f "$pid"
