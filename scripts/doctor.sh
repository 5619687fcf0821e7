#!/bin/sh
# Say everything that is missing on this machine at once, each with its one-line install.
#
# usage: scripts/doctor.sh wheel|serve|test|ops
#   wheel  run a built wheel              serve  build and run from source
#   test   also lint and test             ops    also image, browser, model checker and ordinary-user tests (Debian, root)
# PYTHON names the interpreter (default python3). Exit code 0: nothing is missing; 1: the list was printed.
set -u

need=${1:-serve}
PYTHON=${PYTHON:-python3}
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python_min=$(sed -n 's/^requires-python = ">=\([0-9.]*\)".*/\1/p' "$here/pyproject.toml")
rust_min=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' "$here/Cargo.toml" | head -n 1)

missing=0
list=''

# report WHAT WHY DEBIAN UBUNTU MACOS
report() {
    missing=$((missing + 1))
    list="$list
  $1
      why       $2
      Debian    $3
      Ubuntu    $4
      macOS     $5
"
}

# at_least FOUND WANTED: compares major.minor
at_least() {
    found_major=${1%%.*}
    found_rest=${1#*.}
    found_minor=${found_rest%%.*}
    wanted_major=${2%%.*}
    wanted_rest=${2#*.}
    wanted_minor=${wanted_rest%%.*}
    [ "$found_major" -gt "$wanted_major" ] ||
        { [ "$found_major" -eq "$wanted_major" ] && [ "$found_minor" -ge "$wanted_minor" ]; }
}

check_python() {
    python_hint='install Python, then name it: make PYTHON=python3.13 ...'
    if ! found=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
        report "Python $python_min or newer" "'$PYTHON' does not run" \
            'sudo apt-get install -y python3 python3-venv' \
            'sudo apt-get install -y python3 python3-venv' 'brew install python'
        return
    fi
    if ! at_least "$found" "$python_min"; then
        for other in python3.14 python3.13 python3.12 python3.11; do
            if command -v "$other" >/dev/null 2>&1; then
                python_hint="$other is here: make PYTHON=$other ..."
                break
            fi
        done
        report "Python $python_min or newer" "'$PYTHON' is Python $found ($python_hint)" \
            'sudo apt-get install -y python3 python3-venv   # Debian 12 or newer' \
            'sudo apt-get install -y python3.11 python3.11-venv && make PYTHON=python3.11 ...' 'brew install python'
        return
    fi
    # Debian and Ubuntu split venv off; without ensurepip the environment would have no pip.
    if ! "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        report "Python's venv module" "'$PYTHON' (Python $found) cannot make a virtual environment with pip" \
            "sudo apt-get install -y python$found-venv" "sudo apt-get install -y python$found-venv" 'brew install python'
    fi
}

check_compiler() {
    # A compiler without the C library's development files is found, but links nothing.
    if ! echo 'int main(void) { return 0; }' | cc -x c -o /dev/null - >/dev/null 2>&1; then
        why='there is no cc'
        command -v cc >/dev/null 2>&1 && why='cc is here but cannot link a program'
        report 'a C compiler' "$why; Rust links the extension with it" \
            'sudo apt-get install -y build-essential' 'sudo apt-get install -y build-essential' 'xcode-select --install'
    fi
}

check_rust() {
    rustup="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    rustup_apt="sudo apt-get install -y curl && $rustup"
    found=$(cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
    if [ -z "$found" ]; then
        why='there is no cargo that runs'
    elif ! at_least "$found" "$rust_min"; then
        why="$(command -v cargo) is Rust $found, too old (so are the packages of most distributions; rustup has the current one)"
    else
        return 0
    fi
    report "Rust $rust_min or newer" "$why; the extension is built with it (make serve WHEEL=keepstep.whl needs none)" \
        "$rustup_apt" "$rustup_apt" "$rustup"
    return 1
}

check_rust_tools() {
    for tool in clippy fmt; do
        component=$tool
        [ "$tool" = fmt ] && component=rustfmt
        cargo "$tool" --version >/dev/null 2>&1 || report "cargo $tool" 'make lint and make test check the Rust code with it' \
            "rustup component add $component" "rustup component add $component" "rustup component add $component"
    done
}

check_curl() {
    command -v curl >/dev/null 2>&1 || report 'curl' 'the tests run the REST example that is written with it' \
        'sudo apt-get install -y curl' 'sudo apt-get install -y curl' 'brew install curl'
}

check_ops() {
    [ "$(id -u)" -eq 0 ] || report 'root' 'these tests make users, mounts and images' \
        'sudo -E make test-ops' 'sudo -E make test-ops' 'not supported: run them in a Debian machine'
    for tool in buildah caddy chromium debootstrap haproxy nginx pgbackrest pg_createcluster setpriv valgrind; do
        package=$tool
        [ "$tool" = setpriv ] && package=util-linux
        [ "$tool" = nginx ] && package=nginx-light
        [ "$tool" = pg_createcluster ] && package=postgresql-15
        command -v "$tool" >/dev/null 2>&1 || report "$tool" 'the operations tests need it' \
            "sudo apt-get install -y $package" "sudo apt-get install -y $package" \
            'not supported: run them in a Debian machine'
    done
}

check_python
case $need in
    wheel) ;;
    serve) check_compiler; check_rust ;;
    test) check_compiler; check_rust && check_rust_tools; check_curl ;;
    ops) check_compiler; check_rust && check_rust_tools; check_ops ;;
    *) echo "usage: $0 wheel|serve|test|ops" >&2; exit 2 ;;
esac

if [ "$missing" -gt 0 ]; then
    if [ "$missing" -eq 1 ]; then things='one thing that is'; else things="$missing things that are"; fi
    printf '\nkeepstep needs %s not on this machine:\n%s\nInstall what is listed for your system, then run the same command again.\n' \
        "$things" "$list" >&2
    exit 1
fi
