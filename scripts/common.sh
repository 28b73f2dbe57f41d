# Shared by the scripts in this folder: messages, packages, the build. Meant to be sourced by bash.
# What they need is Debian 12 and a Rust toolchain; packages are installed only when they are missing.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# gcc, g++: C parts of dependencies, and the C++ library that RocksDB stands on. libclang: bindings to RocksDB.
PACKAGES_BUILD=(librocksdb-dev libclang1-14 libclang-common-14-dev gcc g++ libc6-dev)
# fuse3: fusermount3. attr: setfattr and getfattr.
PACKAGES_RUN=(fuse3 attr)

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

fail() {
    printf '%s: error: %s\n' "$(basename "$0")" "$1" >&2
    shift
    for line in "$@"; do printf '    %s\n' "$line" >&2; done
    exit 1
}

require_root() {
    [ "$(id -u)" -eq 0 ] || fail "this must run as root: it installs packages and mounts file systems" "sudo $0 $*"
}

require_cargo() {
    if ! command -v cargo > /dev/null && [ -x "${HOME:-/root}/.cargo/bin/cargo" ]; then
        PATH="${HOME:-/root}/.cargo/bin:$PATH"
    fi
    command -v cargo > /dev/null || fail "cargo is not in PATH" \
        "install the Rust toolchain first: https://rustup.rs, or set PATH for root (sudo drops it)"
}

require_fuse() {
    [ -e /dev/fuse ] || modprobe fuse 2> /dev/null || true
    [ -r /dev/fuse ] && [ -w /dev/fuse ] || fail "/dev/fuse is missing: nothing can be mounted" \
        "on a host: modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
}

# Installs the Debian packages of its arguments that are not installed.
require_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get > /dev/null || fail "apt-get is missing: this script knows Debian 12 only" "needed: ${missing[*]}"
    say "Installing packages: ${missing[*]}"
    { DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" ||
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; }; } ||
        fail "the packages could not be installed: ${missing[*]}" "on another system than Debian 12 their names differ"
}

# Unpacks Debian packages and what they need into folder $1, without installing them: nothing of them runs by itself.
unpack_packages() {
    local folder=$1 package
    shift
    [ ! -e "$folder/.unpacked" ] || return 0
    mkdir -p "$folder/packages/partial"
    local get=(apt-get install -y -q --no-install-recommends --download-only -o "Dir::Cache::archives=$folder/packages" "$@")
    "${get[@]}" || { apt-get update -q && "${get[@]}"; } || fail "the packages cannot be had: $*"
    for package in "$@"; do
        # Of a package that is installed apt gives nothing.
        compgen -G "$folder/packages/${package}_*.deb" > /dev/null || fail "$package is installed on this machine" \
            "remove it, or do this elsewhere: what is unpacked here would be a mixture"
    done
    for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$folder"; done
    rm -r "$folder/packages"
    touch "$folder/.unpacked"
}

# Sets CHRONOFS to the path of the executable: CHRONOFS_EXECUTABLE, or one built in profile CHRONOFS_PROFILE (release,
# or dev). Arguments go to cargo: what else is to be built.
build_chronofs() {
    if [ -n "${CHRONOFS_EXECUTABLE:-}" ]; then
        CHRONOFS=$CHRONOFS_EXECUTABLE
        [ -x "$CHRONOFS" ] || fail "CHRONOFS_EXECUTABLE is no executable: $CHRONOFS" "unset it, and chronofs is built"
        return
    fi
    local profile=${CHRONOFS_PROFILE:-release} folder target
    case $profile in
        dev) folder=debug ;;
        *) folder=$profile ;;
    esac
    target=${CARGO_TARGET_DIR:-$REPO/target}
    (cd "$REPO" && cargo build --locked --profile "$profile" -p chronofs "$@") || fail "chronofs does not build" "see the errors above"
    CHRONOFS=$target/$folder/chronofs
    [ -x "$CHRONOFS" ] || fail "cargo built no $CHRONOFS"
}
