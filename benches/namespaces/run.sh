#!/usr/bin/env bash
# run.sh DIR [ROUNDS]: captured traffic through network namespaces, wrk against nginx. See README.md.
set -euo pipefail

usage="usage: $0 DIR [ROUNDS], where DIR has the built examples ztunnel, gateway and bench-mesh"
bin=$(cd "${1:?$usage}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
fixtures=$here/../../examples/fixtures
rounds=${2:-5} seconds=${LOAD_SECONDS:-3} congestion=${CONGESTION:-reno}
for program in ztunnel gateway bench-mesh; do
  [ -x "$bin/$program" ] || { echo "error: $bin/$program is not there: build the examples first"; exit 2; }
done
for tool in ip iptables openssl wrk nginx python3; do
  command -v "$tool" >/dev/null || { echo "error: needs $tool"; exit 2; }
done

. "$fixtures/hosts.sh"
pids=()
trap 'remove_hosts "${pids[@]}"' EXIT
make_hosts
for host in "${hosts[@]}"; do at "${host%%:*}" sysctl -qw "net.ipv4.tcp_congestion_control=$congestion"; done
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
for pod in b1 b2; do start $pod nginx -c "$dir/nginx.conf" -g "pid $dir/nginx-$pod.pid;"; done

# Plain relays, as many in a row as there are proxies.
relay() { start "$1" "$bin/bench-mesh" tcp-relay "$2" "$3"; proxies[$path]+=" $started"; }
path=tcp2
relay b1 10.77.0.11:9002 10.77.0.11:8080
relay ca 10.77.0.1:9002 10.77.0.11:9002
path=tcp3
relay b1 10.77.0.11:9003 10.77.0.11:8080
relay gb 10.77.0.2:9003 10.77.0.11:9003
relay ca 10.77.0.1:9003 10.77.0.2:9003

for pod in b1:10.77.0.11 b2:10.77.0.12; do
  start "${pod%%:*}" "$bin/ztunnel" --workload "default/${pod%%:*}" --mesh "$fixtures/mesh-west.yaml" $(certificate server) \
    --inbound "${pod##*:}:15008"
  proxies[hbone]+=" $started" proxies[nested]+=" $started"
done
start gb "$bin/gateway" --network west --mesh "$fixtures/mesh-west.yaml" $(certificate eastwest) --listen 10.77.0.2:15008
proxies[nested]+=" $started"
# The same pods as those of the client's own network.
python3 - "$fixtures" >"$dir/near.yaml" <<'NEAR'
import re, sys
east, west = (open(f"{sys.argv[1]}/mesh-{name}.yaml").read() for name in ("east", "west"))
client = re.search(r"(?ms)^- uid: east//v1/Pod/.*?(?=^- |^\w)", east)[0]
near = west.replace("network: west", 'network: ""').replace("west/10.88.0.2", "/10.88.0.3")
print(near.replace("workloads:\n", "workloads:\n" + client, 1))
NEAR
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
  at ca wrk -t1 -c1 -d1s "http://${addresses[$path]}/" 2>&1 | grep -q "requests in" || { echo "error: $path"; tail -n 5 "$dir/log"; exit 1; }
done

PROXIES=$(for path in "${!proxies[@]}"; do echo "$path ${proxies[$path]}"; done) \
ADDRESSES=$(for path in none tcp2 hbone tcp3 nested; do echo "$path ${addresses[$path]}"; done) \
  python3 "$here/load.py" "$id-ca" "$rounds" "$seconds"
