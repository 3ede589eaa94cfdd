#!/bin/sh
# Make the virtual environment DIR when it is missing, and install this project there, editable, with an EXTRA of its.
#
#   tools/venv.sh DIR [EXTRA]
#
# PYTHON names the interpreter; by default the first of 3.11 or later on PATH, else Debian's.
set -eu

here=$(dirname "$0")
directory=$1
extra=${2:+[$2]}

find_python() {
    for python in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    return 1
}

if ! "$directory/bin/python" -m pip --version >/dev/null 2>&1; then
    find_python || "$here/need.sh" python3
    find_python || { echo "Python 3.11 or later is needed; this host's is $(python3 -V)" >&2; exit 2; }
    # Debian's python3 comes without these two
    "$python" -c 'import ensurepip, venv' 2>/dev/null || "$here/need.sh" python3-venv
    echo "Making $directory with $("$python" -V)" >&2
    "$python" -m venv --clear "$directory"
fi

echo "Installing the project in $directory${2:+ with what \"$2\" needs}" >&2
"$directory/bin/python" -m pip --quiet --disable-pip-version-check install --prefer-binary --editable ".$extra"
