#!/bin/sh
# mosquitto on the configuration $1. It says what it refuses only at its debug level, among a line for every packet:
# what is said of packets that are in order is left out here, so the log has who connects, what is refused, and what
# others' topics a device subscribes to. SIGHUP and SIGTERM are handed on. With --watch behind the configuration it
# reads its files again (SIGHUP) within two seconds of a change of a certificate or of the list of revoked ones.
# What it cannot live with, such as more in its database than its memory limit, it would die of at every start: after
# three ends in a row within a minute the database is set aside; devices and gateway say again what was in it.
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

data=$(sed -n 's/^persistence_location \(.*[^/]\)\/*$/\1/p' "$conf")
early=$data/early-ends
lived() { [ -z "$data" ] || rm -f "$early"; }
if [ -n "$data" ]; then
    ends=$(cat "$early" 2>/dev/null || true)
    case $ends in '' | *[!0-9]*) ends=0 ;; esac
    if [ "$ends" -ge 3 ] && [ -e "$data/mosquitto.db" ]; then
        mv -f "$data/mosquitto.db" "$data/mosquitto.db.set-aside" || true
        echo "broker.sh: mosquitto ended early $ends times: its database is set aside, $data/mosquitto.db.set-aside" >&2
        ends=0
    fi
    echo $((ends + 1)) >"$early" || true
fi

pid=$(mktemp)
{
    sh -c 'echo $$ >"$1"; exec mosquitto -c "$2"' sh "$pid" "$conf" 2>&1 | grep --line-buffered -Ev "$chatter" >&2
} &
all=$!
{ sleep 60 && lived; } &
timer=$!
until [ -s "$pid" ]; do sleep 0.1; done

hand() { kill "-$1" "$(cat "$pid")" 2>/dev/null || true; }
trap 'lived; hand TERM' TERM INT
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
kill "$timer" 2>/dev/null || true
rm -f "$pid"
