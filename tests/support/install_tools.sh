#!/bin/sh
# Installs the programs that tests and benchmarks run beside Python: install_tools.sh test|conformance|bench ...
#
# Only what is missing is installed, from the machine's own package sources. Where that cannot be done the tests that
# need a program say so; with CI=true a program that is still missing fails here.
set -eu

missing=""
need() { # PACKAGE TEST-COMMAND...
    package=$1
    shift
    if ! "$@" >/dev/null 2>&1; then
        missing="$missing $package"
    fi
}

python_headers() {
    test -e "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
}
debian_postgres() { ls /usr/lib/postgresql/*/bin/postgres; }

look() {
    missing=""
    for purpose in $purposes; do
        case $purpose in
        test)
            need nodejs command -v node
            need npm command -v npm
            need default-jdk-headless command -v javac
            need libpostgresql-jdbc-java test -e /usr/share/java/postgresql.jar
            need postgresql debian_postgres # the embedded server has no TLS
            need chromium-headless-shell command -v chromium-headless-shell
            need prometheus command -v promtool
            need systemd command -v systemd-analyze
            ;;
        conformance)
            need gcc command -v gcc
            need libc6-dev test -e /usr/include/stdio.h
            need dpkg-dev command -v dpkg-source
            need xz-utils command -v xz
            ;;
        compiled)
            need gcc command -v gcc
            need libc6-dev test -e /usr/include/stdio.h
            need python3-dev python_headers
            ;;
        bench)
            need pgbouncer test -x /usr/sbin/pgbouncer
            ;;
        *)
            echo "install_tools.sh: test, conformance, compiled or bench, not $purpose" >&2
            exit 2
            ;;
        esac
    done
}

install() {
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        return 1
    fi
    command -v apt-get >/dev/null || return 1
    echo "installing$missing"
    # None of these may start a service: pgbouncer's would sit on port 6432, PostgreSQL's on 5432.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap '$as_root rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
        $as_root chmod 755 $policy
    fi
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
}

purposes="$*"
look
[ -n "$missing" ] || exit 0
install || true
look
[ -n "$missing" ] || exit 0
echo "These packages are missing and the tests that need them cannot run: apt-get install$missing" >&2
[ "${CI:-}" != true ] || exit 1
