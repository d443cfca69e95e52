#!/bin/sh
# Installs pilotwire from this folder, with all that its tests need, into a virtual environment: install_packages.sh VENV.
#
# uv takes a quarter of pip's time. It does not read pip's configuration, so it is told what that says of the places that
# packages come from. Where uv cannot be had, or fails, pip does it all.
set -eu
venv=$1
wanted='.[dev]'
pip() { "$venv/bin/pip" --quiet --quiet --disable-pip-version-check "$@"; }

configuration=$("$venv/bin/pip" config list 2>/dev/null) || configuration=""
tell() { # VARIABLE SETTING: what the environment (`:env:`, listed first) or a file says of the setting
    value=$(printf '%s\n' "$configuration" | sed -n "s/^[^=]*\.$2='\(.*\)'\$/\1/p" | sed 's/\\n/ /g; 1q')
    [ -z "$value" ] || export "$1=$value"
}

with_uv() {
    pip install uv || return 1
    tell UV_DEFAULT_INDEX index-url
    tell UV_INDEX extra-index-url
    tell UV_FIND_LINKS find-links
    tell UV_INSECURE_HOST trusted-host
    tell SSL_CERT_FILE cert
    tell ALL_PROXY proxy
    # As pip does: the best version from any of the indexes.
    UV_INDEX_STRATEGY=unsafe-best-match "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --editable "$wanted"
}

if ! with_uv; then
    echo "uv could not install it: pip does, in a minute"
    # Debian 12's own pip needs twice the time; where no newer one can be had, it will do.
    pip install --upgrade pip || true
    pip install --no-compile --editable "$wanted"
fi
