#!/usr/bin/env bash
# run.sh DIR [ROUNDS]: captured traffic through network namespaces, wrk against nginx. See README.md.
set -euo pipefail

usage="usage: $0 DIR [ROUNDS], where DIR has the built programs ztunnel, gateway and bench-mesh"
bin=$(cd "${1:?$usage}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
fixtures=$here/../../examples/fixtures
rounds=${2:-5} seconds=${LOAD_SECONDS:-3} congestion=${CONGESTION:-reno}
case ${PODS:-2} in
  1) pods=(b1:10.77.0.11) ;;
  2) pods=(b1:10.77.0.11 b2:10.77.0.12) ;;
  *) echo "error: PODS is 1 or 2, not $PODS"; exit 2 ;;
esac
for program in ztunnel gateway bench-mesh; do
  [ -x "$bin/$program" ] || { echo "error: $bin/$program is not there: build the programs first"; exit 2; }
done
for tool in ip iptables openssl wrk nginx python3; do
  command -v "$tool" >/dev/null || { echo "error: needs $tool"; exit 2; }
done

. "$fixtures/hosts.sh"
pids=()
trap 'remove_hosts "${pids[@]}"' EXIT
make_hosts
for host in "${hosts[@]}"; do
  # Who closes first holds the port for a minute, and that is wrk behind one proxy and a relay behind another: with a few ten
  # thousand connections a minute, one of them would look for free ports more than it works.
  at "${host%%:*}" sysctl -qw "net.ipv4.tcp_congestion_control=$congestion" net.ipv4.tcp_tw_reuse=1 \
    "net.ipv4.ip_local_port_range=1024 65535"
done
make_certificates

# start HOST COMMAND...: its id is then in `started`. It gets a moment; what does not listen fails the check below.
start() {
  local host=$1; shift
  at_exec "$host" "$@" >>"$dir/log" 2>&1 &
  started=$!
  pids+=("$started")
  sleep 0.4
}

truncate -s 256M "$dir/big"
chmod -R a+rX "$dir"
cat >"$dir/nginx.conf" <<NGINX
worker_processes 1; error_log /dev/null; daemon off; master_process off;
events { worker_connections 8192; }
http {
  access_log off; sendfile on; keepalive_requests 1000000;
  server { listen 8080; location = /big { alias $dir/big; } location / { return 200 "ok\n"; } }
}
NGINX
declare -A proxies addresses=([none]=10.77.0.11:8080 [tcp2]=10.88.0.4 [hbone]=10.88.0.3 [tcp3]=10.88.0.5 [nested]=10.88.0.2)

# The mesh as each is told of it: west has as many pods as there are to be, near has the same in the client's own network.
python3 - "$fixtures" "$dir" "${#pods[@]}" <<'MESH'
import re, sys
fixtures, out, pods = sys.argv[1:]
east, west = (open(f"{fixtures}/mesh-{name}.yaml").read() for name in ("east", "west"))
workload = r"(?ms)^- uid: %s//v1/Pod/default/%s$.*?(?=^- |^\w)"
if pods == "1":
    west, found = re.subn(workload % ("west", "b2"), "", west)
    assert found == 1, "mesh-west.yaml has no pod b2"
open(f"{out}/west.yaml", "w").write(west)
client = re.search(workload % ("east", "client"), east)[0]
near = west.replace("network: west", 'network: ""').replace("west/10.88.0.2", "/10.88.0.3")
open(f"{out}/near.yaml", "w").write(near.replace("workloads:\n", "workloads:\n" + client, 1))
MESH

# Plain relays, as many in a row as there are proxies, and to each pod one.
relay() { start "$1" "$bin/bench-mesh" tcp-relay "${@:2}"; proxies[$path]+=" $started"; }
for pod in "${pods[@]}"; do
  name=${pod%%:*} ip=${pod##*:}
  start "$name" nginx -c "$dir/nginx.conf" -g "pid $dir/nginx-$name.pid;"
  path=tcp2 && relay "$name" "$ip:9002" "$ip:8080"
  path=tcp3 && relay "$name" "$ip:9003" "$ip:8080"
  start "$name" "$bin/ztunnel" --workload "default/$name" --mesh "$dir/west.yaml" $(certificate server) --inbound "$ip:15008"
  proxies[hbone]+=" $started" proxies[nested]+=" $started"
done
ends() { for pod in "${pods[@]}"; do echo "${pod##*:}:$1"; done; }
path=tcp2 && relay ca 10.77.0.1:9002 $(ends 9002)
path=tcp3 && relay gb 10.77.0.2:9003 $(ends 9003)
path=tcp3 && relay ca 10.77.0.1:9003 10.77.0.2:9003
start gb "$bin/gateway" --network west --mesh "$dir/west.yaml" $(certificate eastwest) --listen 10.77.0.2:15008
proxies[nested]+=" $started"
capture() {
  start ca "$bin/ztunnel" --workload default/client --mesh "$2" $(certificate client) --outbound "0.0.0.0:$3" --mark 1337
  proxies[$1]+=" $started"
}
capture nested "$fixtures/mesh-east.yaml" 15001
capture hbone "$dir/near.yaml" 15002

# All are captured alike.
nat() { at ca iptables -t nat -A OUTPUT -p tcp -m mark ! --mark 1337 "$@"; }
nat -d 10.88.0.2 -j REDIRECT --to-ports 15001
nat -d 10.88.0.3 -j REDIRECT --to-ports 15002
nat -d 10.88.0.4 -j DNAT --to-destination 10.77.0.1:9002
nat -d 10.88.0.5 -j DNAT --to-destination 10.77.0.1:9003
for path in "${!addresses[@]}"; do
  # One request, no load: behind a load, the proxies would put the connections of the next path on the threads that had less of it.
  at ca python3 - "http://${addresses[$path]}/" <<'ONCE' || { echo "error: $path"; tail -n 5 "$dir/log"; exit 1; }
import sys, urllib.request as http
http.build_opener(http.ProxyHandler({})).open(sys.argv[1], timeout=5).read()
ONCE
done

PROXIES=$(for path in "${!proxies[@]}"; do echo "$path ${proxies[$path]}"; done) \
ADDRESSES=$(for path in none tcp2 hbone tcp3 nested; do echo "$path ${addresses[$path]}"; done) \
  python3 "$here/load.py" "$id-ca" "$rounds" "$seconds"
