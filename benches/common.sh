# Shared by the scripts in this folder: the build, servers of their own, mounts. Meant to be sourced by bash after
# scripts/common.sh. Everything lies in the folder WORK, which goes at the end.

require_root "$@"
require_cargo
require_fuse
require_packages "${PACKAGES_BUILD[@]}" "${PACKAGES_RUN[@]}"
cd "$REPO"
# One build: two would settle the features of dependencies differently, and compile them twice.
build_chronofs -p chronofs-e2e --bins >&2
BIN=${CHRONOFS_BENCH_BIN:-$(dirname "$CHRONOFS")}
for program in objects loops load passthrough; do
    [ -x "$BIN/chronofs-$program" ] || fail "$BIN/chronofs-$program is missing" \
        "CHRONOFS_BENCH_BIN names the folder of the programs of chronofs-e2e; without CHRONOFS_EXECUTABLE they are built"
done

WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/chronofs-bench.XXXXXX")
export CHRONOFS_CONFIG_DIR=$WORK/etc
export CHRONOFS_LOG_DIR=$WORK/log
PIDS=()
end() {
    local place
    for place in "$WORK"/mnt/*; do umount -l "$place" 2> /dev/null || true; done
    [ ${#PIDS[@]} -eq 0 ] || kill "${PIDS[@]}" 2> /dev/null || true
    wait
    rm -rf --one-file-system "$WORK"
}
trap end EXIT

ADMIN=127.0.0.1:28443 META=127.0.0.1:28444 HTTP=127.0.0.1:28445
until_listens() {
    local n
    for ((n = 0; n < 300; n++)); do
        (exec 3<> "/dev/tcp/${1%:*}/${1#*:}") 2> /dev/null && return
        sleep 0.1
    done
    fail "nothing listens at $1" "$(tail -5 "$WORK"/*.log)"
}
token() { "$@" 2> /dev/null | tail -n 1; }

# Flags of `admin start`; further arguments of start_servers are flags of `meta start`.
ADMIN_FLAGS=()
start_servers() {
    mkdir -p "$WORK"/{blocks,mnt,etc,under}
    token "$CHRONOFS" admin init creds --db-folder "$WORK/admin" --address "$ADMIN" > "$WORK/root.token"
    "$CHRONOFS" admin start --db-folder "$WORK/admin" --bind-addr "$ADMIN" "${ADMIN_FLAGS[@]}" 2> "$WORK/admin.log" & PIDS+=($!)
    until_listens "$ADMIN"
    "$CHRONOFS" configure init creds --token "$(cat "$WORK/root.token")"
    "$CHRONOFS" configure create block-store blocks --kind local --path "$WORK/blocks"
    token "$CHRONOFS" configure create metadata-store names > "$WORK/names.token"
    "$CHRONOFS" meta init creds --token "$(cat "$WORK/names.token")" --db-folder "$WORK/meta"
    "$CHRONOFS" meta start --db-folder "$WORK/meta" --bind-addr "$META" --advertise "$META" --http-addr "$HTTP" "$@" \
        2> "$WORK/meta.log" & PIDS+=($!)
    META_PID=$!
    until_listens "$META"
}

# Makes volume $1 with retention $2, in block store $3 if it is not the folder.
make_volume() {
    "$CHRONOFS" configure create volume "$1" --block-store "${3:-blocks}" --metadata-store names --retention "$2"
    token "$CHRONOFS" configure create volume-token --volume "$1" > "$WORK/$1.token"
}

# Mounts volume $1 at $WORK/mnt/$2; further arguments are flags.
mount_volume() {
    local volume=$1 place=$WORK/mnt/$2
    shift 2
    mkdir -p "$place"
    "$CHRONOFS" mount start "$volume" "$place" --token-file "$WORK/$volume.token" "$@"
}

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "-" }'; }
least() { sort -n "$1" | head -1; }

print_machine() {
    printf 'Measured %s on %s cores (%s), Linux %s, profile %s.\n' "$(date -u +%F)" "$(nproc)" \
        "$(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo)" "$(uname -r | cut -d. -f1,2)" "${CHRONOFS_PROFILE:-release}"
}
