# Functions of the scripts of tests/, which source this in the folder of the repository.

# The caller's settings don't reach the tests.
for name in "${!LOCATION_SERVICE_@}" "${!OTEL_@}"; do unset "$name"; done
export PIP_DISABLE_PIP_VERSION_CHECK=1

heading=
since=0
# section NAME: ends the previous section, prints its duration, and begins another.
section() {
    [[ -z $heading ]] || echo "--- $heading: $((SECONDS - since)) s"
    heading=$1
    since=$SECONDS
    [[ -z $heading ]] || printf '\n=== %s\n' "$heading"
}

# fail MESSAGE: ends the script.
fail() {
    echo "*** $1" >&2
    exit 1
}

# system_packages PACKAGE...: installs packages of Debian, if any are named.
system_packages() {
    (($#)) || return 0
    ((EUID == 0)) || fail "missing: as root, apt-get install --no-install-recommends $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # In run level 1, packages start no services, except under systemd. Those do no harm: the tests
    # start their own, on free ports.
    RUNLEVEL=1 apt-get install -q -y --no-install-recommends "$@"
}

# unchanged STAMP FILE...: whether the packages that these files name are installed.
unchanged() { [[ -e $1 ]] && cat "${@:2}" | cmp -s - "$1"; }

# python_packages FOLDER FILE: makes a virtual environment with the packages that the file names.
python_packages() {
    unchanged "$1/installed" "$2" && return
    rm -rf "$1"
    python3 -m venv "$1"
    "$1/bin/pip" install -q -r "$2"
    cp "$2" "$1/installed"
}
