#!/usr/bin/env bash
# Puts a new release of pilotwire into service without refusing a connection: installs it beside the running one,
# migrates the store, starts it, and has it take the listening sockets over; the old release drains and ends.
#
#   deploy/deploy.sh WHEEL-OR-REQUIREMENT [RELEASE]
#
# e.g. deploy.sh dist/pilotwire-0.2.0-py3-none-any.whl, deploy.sh "pilotwire[train]==0.2.0" 0.2.0
#
# Whatever fails before the new release is ready leaves the old one in service, and the new one's folder is removed.
set -euo pipefail

ROOT=${PILOTWIRE_ROOT:-/opt/pilotwire}
CONFIG=${PILOTWIRE_CONFIG:-/etc/pilotwire/pilotwire.toml}
PYTHON=${PYTHON:-python3}
READY_SECONDS=${READY_SECONDS:-60}
KEEP=${KEEP:-3}

say() { printf 'deploy: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}

[ $# -ge 1 ] || fail "usage: deploy.sh WHEEL-OR-REQUIREMENT [RELEASE]"
package=$1
release=${2:-$(date -u +%Y%m%d%H%M%S)}
[[ $release =~ ^[A-Za-z0-9._]+$ ]] || fail "a release is named by letters, digits, dots and underscores, not $release"
[ -r "$CONFIG" ] || fail "there is no $CONFIG: deploy/systemd/pilotwire.toml is one to begin with"
folder=$ROOT/$release
[ ! -e "$folder" ] || fail "$folder is there already: give another name"

# What runs here before the service does has to know what the unit tells the service.
passfile=$(dirname "$CONFIG")/upstream.pgpass
export PILOTWIRE_STATE_DIR=/var/lib/pilotwire PILOTWIRE_CONTROL_SOCKET=/run/pilotwire/control.sock
[ ! -e "$passfile" ] || export PILOTWIRE_UPSTREAM_PASSFILE=$passfile
if [ -r "$(dirname "$CONFIG")/environment" ]; then
    # Not sourced: as systemd reads it, a value may hold what a shell would act upon.
    while IFS='=' read -r name value || [ -n "$name" ]; do
        [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || continue
        [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]] && value=${BASH_REMATCH[1]}
        export "$name=$value"
    done <"$(dirname "$CONFIG")/environment"
fi

running=$(systemctl list-units --plain --no-legend --state=active 'pilotwire@*.service' | awk '{printf "%s%s", sep, $1; sep = " "}')

undo() {
    status=$?
    if [ "$status" -ne 0 ]; then
        systemctl stop "pilotwire@$release.service" 2>/dev/null || true
        rm -rf "$folder"
        say "nothing has changed${running:+: $running serves on}" >&2
    fi
    exit "$status"
}
trap undo EXIT

say "installing $package into $folder"
"$PYTHON" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check "$package"

say "checking $CONFIG"
"$folder/bin/pilotwire" check --config "$CONFIG" >/dev/null

say "migrating the store"
"$folder/bin/pilotwire" store migrate --config "$CONFIG"

say "starting $release${running:+, which takes over from $running}"
# Returns when the new release has said that it is ready, or has failed.
timeout "$READY_SECONDS" systemctl start "pilotwire@$release.service" || fail "$release did not become ready: journalctl -u pilotwire@$release"
systemctl --quiet is-active "pilotwire@$release.service" || fail "$release ended again: journalctl -u pilotwire@$release"

systemctl --quiet enable "pilotwire@$release.service"
for unit in $running; do
    systemctl --quiet disable "$unit"
done
ln -sfn "$folder" "$ROOT/current.new"
mv -T "$ROOT/current.new" "$ROOT/current"
trap - EXIT

# The old release's files are needed until it has drained; older ones go.
find "$ROOT" -mindepth 1 -maxdepth 1 -type d -printf '%T@ %f\n' | sort -rn | awk -v keep="$KEEP" 'NR > keep {print $2}' |
    while read -r old; do
        systemctl --quiet is-active "pilotwire@$old.service" || rm -rf "${ROOT:?}/$old"
    done
say "$release serves"
