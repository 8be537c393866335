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

id=hb$$
at() { local host=$1; shift; ip netns exec "$id-$host" "$@"; }
hosts=(ca:10.77.0.1 gb:10.77.0.2 b1:10.77.0.11 b2:10.77.0.12)
dir=$(mktemp -d)
pids=()
cleanup() {
  local host
  kill -9 "${pids[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  for host in "${hosts[@]}" wan; do ip netns del "$id-${host%%:*}" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap cleanup EXIT

ip netns add "$id-wan"
ip -n "$id-wan" link add br0 type bridge
ip -n "$id-wan" link set br0 up
for host in "${hosts[@]}"; do
  name=${host%%:*} address=${host##*:}
  ip netns add "$id-$name"
  ip -n "$id-wan" link add "v-$name" type veth peer name eth0 netns "$id-$name"
  ip -n "$id-wan" link set "v-$name" master br0
  ip -n "$id-wan" link set "v-$name" up
  ip -n "$id-$name" link set lo up
  ip -n "$id-$name" address add "$address/24" dev eth0
  ip -n "$id-$name" link set eth0 up
  ip -n "$id-$name" route add default dev eth0
  at "$name" sysctl -qw "net.ipv4.tcp_congestion_control=$congestion"
done

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=root \
  -addext keyUsage=critical,keyCertSign -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
for identity in default/client istio-gateways/eastwest default/server; do
  name=${identity#*/}
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=workload \
    -keyout "$dir/$name.key" -out "$dir/$name.csr" 2>/dev/null
  openssl x509 -req -in "$dir/$name.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days 1 -out "$dir/$name.pem" \
    -extfile <(echo "subjectAltName=URI:spiffe://cluster.local/ns/${identity%/*}/sa/$name"
               echo "extendedKeyUsage=serverAuth,clientAuth") 2>/dev/null
done
certificate() { echo "--cert $dir/$1.pem --key $dir/$1.key --ca $dir/ca.pem"; }

# start HOST COMMAND...: its id is then in `started`. It gets a moment; what does not listen fails the check below.
start() {
  local host=$1; shift
  ip netns exec "$id-$host" "$@" >>"$dir/log" 2>&1 &
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
