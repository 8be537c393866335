#!/usr/bin/env bash
# Makes $LISTEN lead to $UPSTREAM through Envoys that speak HBONE: `hbone.sh single` or `hbone.sh nested`. See README.md.
set -euo pipefail

case ${1:-} in single | nested) ;; *) echo "usage: LISTEN=ip:port UPSTREAM=ip:port $0 single|nested" >&2; exit 2 ;; esac
envoy=${ENVOY:-envoy}
workers=${ENVOY_CONCURRENCY:-$(nproc)}
# The loopback network of $LISTEN is this run's own.
net=${LISTEN%.*}
server=$net.51:15008 gateway=$net.52:15008
window=${ENVOY_WINDOW:-4194304}
buffer=${ENVOY_BUFFER:-262144}

identity() { echo "spiffe://cluster.local/ns/default/sa/$1"; }

# A certificate with its key. $1: name of the files, then options.
certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj "/CN=$1" \
    -keyout "$1.key" -out "$1.pem" "${@:2}" 2>log || { cat log >&2; exit 1; }
}

address() { echo "{socket_address: {address: ${1%:*}, port_value: ${1##*:}}}"; }

http2="{allow_connect: true, max_concurrent_streams: 1000000, initial_stream_window_size: $window,
  initial_connection_window_size: $((window * 2))}"

# TLS of one side. $1: Upstream or Downstream, $2: whose identity the peer has to have.
tls() {
  cat <<YAML
{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.$1TlsContext,
  $([[ $1 == Upstream ]] || echo "require_client_certificate: true,")
  common_tls_context: {
    tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}, alpn_protocols: [h2],
    tls_certificates: [{certificate_chain: {environment_variable: CHAIN}, private_key: {environment_variable: KEY}}],
    validation_context: {trusted_ca: {environment_variable: CA}, match_typed_subject_alt_names: [
      {san_type: URI, matcher: {exact: "$(identity "$2")"}}]}}}}
YAML
}

# $1: name, $2: address. Nothing is to fail by a limit.
cluster() {
  cat <<YAML
  - name: $1
    connect_timeout: 5s
    per_connection_buffer_limit_bytes: $buffer
    circuit_breakers: {thresholds: [{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000}]}
    load_assignment: {cluster_name: $1, endpoints: [{lb_endpoints: [{endpoint: {address: $2}}]}]}
YAML
}

# A cluster that is reached by HBONE. $1: name, $2: address, $3: whose identity it has to have.
hbone_cluster() {
  cluster "$1" "$2"
  cat <<YAML
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: $http2}
    transport_socket: $(tls Upstream "$3")
YAML
}

# A listener each connection of which becomes a tunnel. $1: name, and of the cluster; $2: where; $3: authority of the CONNECT.
tunneling_listener() {
  cat <<YAML
  - name: $1
    $2
    per_connection_buffer_limit_bytes: $buffer
    filter_chains:
    - filters:
      - name: tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: $1
          cluster: $1
          idle_timeout: 0s
          tunneling_config: {hostname: "$3"}
YAML
}

# Runs an Envoy. $1: its service account, $2: the rest of its configuration.
run() {
  CHAIN=${pem[$1.pem]} KEY=${pem[$1.key]} CA=${pem[ca.pem]} \
    "$envoy" --disable-hot-restart --log-level error --concurrency "$workers" --config-yaml "
stats_config: {stats_matcher: {reject_all: true}}
bootstrap_extensions:
- name: internal_listener
  typed_config: {'@type': type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener}
static_resources:
$2" &
}

# Takes tunnels and leads them on. $1: service account, $2: where it listens, $3: whose tunnels, $4: where they lead.
run_server() {
  run "$1" "  clusters:
$(cluster upstream "$(address "$4")")
  listeners:
  - name: hbone
    address: $(address "$2")
    per_connection_buffer_limit_bytes: $buffer
    # There are few connections, one from each worker of the client. By their hash alone, all may go to the same worker.
    connection_balance_config: {exact_balance: {}}
    filter_chains:
    - transport_socket: $(tls Downstream "$3")
      filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hbone
          codec_type: HTTP2
          http2_protocol_options: $http2
          stream_idle_timeout: 0s
          upgrade_configs: [{upgrade_type: CONNECT}]
          http_filters:
          - name: router
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: upstream, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
"
  until (: <"/dev/tcp/${2/://}") 2>/dev/null; do
    kill -0 $! 2>/dev/null || exit 1
    sleep 0.05
  done
}

# The files are gone before the first Envoy starts: bench-mesh ends this script by SIGKILL, so that it could not remove them
# later. Envoy has certificates from its environment, and its configuration from its command line.
files=$(mktemp -d)
trap 'rm -rf "$files"; kill $(jobs -p) 2>/dev/null || true' EXIT
cd "$files"
certificate ca
declare -A pem=([ca.pem]=$(<ca.pem))
for name in client gateway server; do
  certificate $name -CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:false \
    -addext "subjectAltName=URI:$(identity $name)"
  pem[$name.pem]=$(<$name.pem) pem[$name.key]=$(<$name.key)
done
cd "$OLDPWD"
rm -r "$files"

run_server server $server client $UPSTREAM
if [[ $1 == single ]]; then
  run client "  clusters:
$(hbone_cluster server "$(address $server)" server)
  listeners:
$(tunneling_listener server "address: $(address $LISTEN)" $UPSTREAM)"
else
  run_server gateway $gateway client $server
  run client "  clusters:
$(hbone_cluster inner "{envoy_internal_address: {server_listener_name: outer}}" server)
$(hbone_cluster outer "$(address $gateway)" gateway)
  listeners:
$(tunneling_listener inner "address: $(address $LISTEN)" $UPSTREAM)
$(tunneling_listener outer 'internal_listener: {}' $server)"
fi
wait -n
