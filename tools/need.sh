#!/bin/sh
# Install what is missing of the Debian packages named, where that can be done without asking; else say what to install.
#
#   tools/need.sh PACKAGE...          installed, by dpkg's word
#   tools/need.sh THING=PACKAGE...    THING is a command on PATH or an absolute path, wherever it came from
#
# PACKAGE may be a choice, A|B: the first that apt knows.
set -eu

chosen() {
    for choice; do
        for package in $(echo "$choice" | tr '|' ' '); do
            apt-cache show "$package" >/dev/null 2>&1 && break
        done
        printf ' %s' "$package"
    done
}

missing=
for need; do
    thing=${need%%=*}
    package=${need#*=}
    case $need in
        /*=*) [ -e "$thing" ] && continue ;;
        *=*) command -v "$thing" >/dev/null && continue ;;
        *) [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] && continue ;;
    esac
    missing="$missing $package"
done
[ -n "$missing" ] || exit 0

# shellcheck disable=SC2086  # the lists are words
if ! command -v apt-get >/dev/null; then
    echo "missing, and this host has no apt-get to install it:$missing" >&2
    exit 2
elif [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root='sudo -n'
else
    echo "missing: run 'sudo apt-get install$(chosen $missing)', then make again" >&2
    exit 2
fi

apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >/dev/null
}

echo "Installing$missing" >&2
apt update
# shellcheck disable=SC2046,SC2086
apt install -y --no-install-recommends $(chosen $missing)
