#!/bin/sh
# Makes the virtual environment: install_venv.sh PYTHON VENV. Installs Debian's python3-venv first where it is missing.
set -eu
python=$1
venv=$2

if [ -x "$venv/bin/pip" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "$python cannot make virtual environments: install python3-venv (apt-get install python3-venv, as root)." >&2
        exit 1
    fi
    echo "installing python3-venv"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends "python$version-venv" >/dev/null ||
        apt-get -qq install -y --no-install-recommends python3-venv >/dev/null
fi
rm -rf "$venv"
"$python" -m venv "$venv"
