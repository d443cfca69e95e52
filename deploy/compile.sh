#!/bin/sh
# Compiles the wire's hot path in the current folder, a copy of the tree: compile.sh PYTHON
#
# With gcc it is compiled twice, the second time by the profile of a short run (benchmarks/profile_run.py): the code
# that runs for every message then stands together, and a third less of it misses the processor's first cache.
# PROFILE=no leaves that out.
set -eu

python=$1
compile() { # FLAGS
    find . -name '*.so' -delete
    rm -rf build
    PILOTWIRE_COMPILE=1 CFLAGS="${CFLAGS:-} $1" "$python" setup.py --quiet build_ext --inplace >>build.log 2>&1 || {
        tail -30 build.log >&2
        exit 1
    }
}

: >build.log
compiler=${CC:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CC"))')}
profile=$PWD/profile
flags=""
if [ "${PROFILE:-yes}" = no ] || ! ${compiler} --version 2>/dev/null | grep -q 'Free Software Foundation'; then
    echo "compiling the wire (a minute and a half)"
else
    echo "compiling the wire, twice, with a short run between that shows what is hot (four minutes; PROFILE=no: one and a half)"
    compile "-fprofile-generate -fprofile-update=single -fprofile-dir=$profile"
    if PYTHONPATH="$PWD" PYTHONSAFEPATH=1 "$python" -m benchmarks.profile_run "$PWD" >>build.log 2>&1 &&
        [ -n "$(find "$profile" -name '*.gcda' 2>/dev/null)" ]; then
        # What did not run is compiled as without a profile.
        flags="-fprofile-use -fprofile-partial-training -fprofile-dir=$profile -Wno-missing-profile -Wno-coverage-mismatch"
    else
        echo "the run left no profile: the build goes on without (see $PWD/build.log)"
    fi
fi
compile "$flags"
rm -rf "$profile"
