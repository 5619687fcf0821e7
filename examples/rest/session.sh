#!/bin/sh
# A device over REST with curl: authenticate, publish a signed event, read it back, decrypt it, sign out.
#
# usage: sh examples/rest/session.sh DEVICE STREAM TEXT [REST_URL]
#   DEVICE is a device of `keepstep device list` in $KEEPSTEP_HOME; REST_URL is http://127.0.0.1:8440 by default.
# Signing and decrypting are the device's own business: python does that, curl carries it.
set -eu

usage="usage: sh $0 DEVICE STREAM TEXT [REST_URL]"
device=${1:?$usage}
stream=${2:?$usage}
text=${3:?$usage}
rest=${4:-http://127.0.0.1:8440}
bin=${KEEPSTEP_BIN:-.venv/bin}
file=${KEEPSTEP_HOME:-$HOME/.local/share/keepstep}/devices/$device.sqlite3

umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A command line can be read by everybody on the machine, so the token goes into a file.
token=$("$bin/keepstep" token --device "$device" --rest "$rest")
printf 'Authorization: Bearer %s\n' "$token" >"$work/token"

echo "-- who this is"
curl -fsS -H "@$work/token" "$rest/api/v1/account"
echo

echo "-- publish"
"$bin/python" -m examples.rest sign "$file" "$stream" "$text" >"$work/events.json"
curl -fsS -H "@$work/token" -H 'Content-Type: application/json' --data-binary "@$work/events.json" "$rest/api/v1/events"
echo

echo "-- read"
curl -fsS -H "@$work/token" -G --data-urlencode "stream=$stream" "$rest/api/v1/events" >"$work/page.json"
"$bin/python" -m examples.rest open "$file" <"$work/page.json"

echo "-- sign out"
curl -fsS -H "@$work/token" -H 'Content-Type: application/json' -d '{"scope": "family"}' "$rest/api/v1/auth/revoke"
curl -sS -o /dev/null -w 'then: %{http_code}\n' -H "@$work/token" "$rest/api/v1/account"
