# Ceph RGW on loopback, for tests and figures: a monitor, an OSD on a file and a gateway, without authentication among
# them. Debian's packages (65 MB) are unpacked below target/tools and not installed. Meant to be sourced after common.sh
# by a script that has a folder WORK and kills PIDS at its end.

CEPH=$REPO/target/tools/ceph
CEPH_PACKAGES=(ceph-mon ceph-osd radosgw)
# The gateway's; the monitor has the next one.
CEPH_PORT=${CEPH_PORT:-27480}
CEPH_URL=http://127.0.0.1:$CEPH_PORT
CEPH_BUCKET=bytes CEPH_KEY=tests CEPH_SECRET=tests-secret

# Tries a command for a minute.
until_works() {
    local what=$1 until=$((SECONDS + 60))
    shift
    until "$@" > "$WORK/tried" 2>&1; do
        [ $SECONDS -lt $until ] || fail "$what did not come up" "$(tail -n 5 "$WORK/tried")" "$(cat "$WORK"/*.out | tail -n 5)"
        sleep 0.5
    done
}
listens() { (exec 3<> "/dev/tcp/127.0.0.1/$1"); }

# Its settings, with $1 as the cluster's id. An OSD that sets its place in the map itself asks before it knows the
# cluster, and is refused.
configure_ceph() {
    local lib=$CEPH/usr/lib/x86_64-linux-gnu
    cat << EOF
[global]
fsid = $1
mon_host = v1:127.0.0.1:$((CEPH_PORT + 1))
public_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = $WORK
admin_socket = $WORK/\$name.sock
pid_file = $WORK/\$name.pid
log_file = $WORK/\$name.log
plugin_dir = $lib/ceph
erasure_code_dir = $lib/ceph/erasure-code
osd_class_dir = $lib/rados-classes
mon_data = $WORK/mon
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_crush_update_on_start = false
osd_class_update_on_start = false
osd_data = $WORK/osd
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 939524096
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:$CEPH_PORT
EOF
}

# Sets it up in a folder of $WORK, with an empty bucket.
start_ceph() {
    require_packages openssl curl python3
    say "Ceph"
    unpack_packages "$CEPH" "${CEPH_PACKAGES[@]}"
    local fsid osd libs=$CEPH/usr/lib/x86_64-linux-gnu
    local with=(env "LD_LIBRARY_PATH=$CEPH/lib/x86_64-linux-gnu:$libs:$libs/ceph" "PATH=$CEPH/usr/bin:$PATH"
        "PYTHONPATH=$CEPH/usr/lib/python3/dist-packages" "CEPH_CONF=$WORK/ceph.conf")
    # Debian's Python, which its modules are made for.
    local ceph=("${with[@]}" /usr/bin/python3 "$CEPH/usr/bin/ceph" --connect-timeout 5)
    osd_is_up() { "${ceph[@]}" osd stat | grep -q '1 up'; }
    read -r fsid < /proc/sys/kernel/random/uuid
    read -r osd < /proc/sys/kernel/random/uuid
    configure_ceph "$fsid" > "$WORK/ceph.conf"
    mkdir "$WORK/mon" "$WORK/osd"
    "${with[@]}" monmaptool --create --fsid "$fsid" --addv a "[v1:127.0.0.1:$((CEPH_PORT + 1))]" "$WORK/monmap" > "$WORK/made.out"
    "${with[@]}" ceph-mon --mkfs -i a --monmap "$WORK/monmap"
    "${with[@]}" ceph-mon -f -i a > "$WORK/mon.out" 2>&1 & PIDS+=($!)
    until_works "Ceph's monitor" "${ceph[@]}" -s
    "${ceph[@]}" osd new "$osd" > "$WORK/made.out"
    "${ceph[@]}" osd crush add osd.0 1.0 root=default host=here 2> "$WORK/made.out"
    "${with[@]}" ceph-osd -i 0 --mkfs --osd-uuid "$osd" 2> "$WORK/made.out"
    "${with[@]}" ceph-osd -f -i 0 > "$WORK/osd.out" 2>&1 & PIDS+=($!)
    until_works "Ceph's OSD" osd_is_up
    "${with[@]}" radosgw-admin -n client.rgw user create --uid tests --display-name tests \
        --access-key "$CEPH_KEY" --secret-key "$CEPH_SECRET" > "$WORK/made.out"
    "${with[@]}" radosgw -f -n client.rgw > "$WORK/rgw.out" 2>&1 & PIDS+=($!)
    until_works "Ceph's gateway" listens "$CEPH_PORT"
    "${with[@]}" radosgw --version
    make_s3_bucket
}

# Signed in S3's first way, which takes no more than openssl.
make_s3_bucket() {
    local date signature
    date=$(LC_ALL=C date -u '+%a, %d %b %Y %H:%M:%S GMT')
    signature=$(printf 'PUT\n\n\n%s\n/%s' "$date" "$CEPH_BUCKET" | openssl dgst -sha1 -hmac "$CEPH_SECRET" -binary | base64)
    curl -sS --fail -X PUT -H "Date: $date" -H "Authorization: AWS $CEPH_KEY:$signature" "$CEPH_URL/$CEPH_BUCKET"
}
