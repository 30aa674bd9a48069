# Makes the secrets that were not given, and hands each reader its own, in a volume that no other reader mounts.
#
#   make.sh             at every start: a second one changes nothing
#   make.sh demo        the demo's agents may call too, until the next start without the profile `demo`
#   make.sh show NAME   print one
#
# A secret is the file of its name in /given, else the one made at the first start, which stays in /made.
set -euo pipefail
umask 077

HANDOFF_UID=10001 COLLECTOR_UID=10001 GRAFANA_UID=472 ALERTMANAGER_UID=65534 REDIS_UID=999 # and POSTGRES_UID, which depends on the image
DEMO_AGENTS="ada grace linus margaret alan barbara edsger frances"

fail() {
  echo "secrets: $*" >&2
  exit 1
}

secret() { # NAME
  if [ -s "/given/$1" ]; then
    tr -d '\r\n' <"/given/$1"
    return
  fi
  if [ ! -s "/made/$1" ]; then
    head -c 32 /dev/urandom | base64 | tr -d '=\n' | tr '+/' '-_' >"/made/$1.new"
    mv "/made/$1.new" "/made/$1"
  fi
  cat "/made/$1"
}

put() { # READER FILE OWNER; the content comes on standard input
  file="/readers/$1/$2"
  cat >"$file.new"
  chmod 0400 "$file.new"
  chown "$3" "$file.new"
  if cmp -s "$file.new" "$file"; then
    rm "$file.new"
    chown "$3" "$file" # whom it belongs to may have changed, with the image
  else
    mv "$file.new" "$file" # in one step: readers see all or nothing
  fi
}

token_line() { # SECRET AGENT SCOPES: a line of the tokens file, which holds digests only
  echo "$(secret "$1" | sha256sum | cut -d ' ' -f 1) $2 $3"
}

tokens() { # what the operator wrote, the operator's own, and Alertmanager's
  if [ -s /given/tokens ]; then cat /given/tokens && echo; fi
  token_line operator-token operator admin
  token_line alertmanager-token alertmanager alerts
}

demo_tokens() {
  for agent in $DEMO_AGENTS; do token_line "demo-$agent" "$agent" read,write; done
}

case "${1:-make}" in
  make)
    secret database-superuser | put postgres database-superuser "$POSTGRES_UID"
    for role in handoff grafana otel; do
      secret "database-$role" | put roles "database-$role" "$POSTGRES_UID"
    done
    for reader in migrate service worker; do
      secret database-handoff | put "$reader" database-handoff "$HANDOFF_UID"
    done
    for reader in service worker; do
      secret redis | put "$reader" redis "$HANDOFF_UID"
    done
    if [ -s /given/deadman-url ]; then secret deadman-url | put worker deadman-url "$HANDOFF_UID"; else rm -f /readers/worker/deadman-url; fi
    secret redis | put redis redis "$REDIS_UID"
    echo "user default on #$(secret redis | sha256sum | cut -d ' ' -f 1) ~* &* +@all" | put redis users.acl "$REDIS_UID"
    secret database-otel | put otel-collector database-otel "$COLLECTOR_UID"
    secret redis | put otel-collector redis "$COLLECTOR_UID"
    secret database-grafana | put grafana database-grafana "$GRAFANA_UID"
    secret grafana-admin | put grafana grafana-admin "$GRAFANA_UID"
    secret alertmanager-token | put alertmanager alertmanager-token "$ALERTMANAGER_UID"
    tokens | put service tokens "$HANDOFF_UID"
    ;;
  demo)
    { tokens && demo_tokens; } | put service tokens "$HANDOFF_UID"
    for agent in $DEMO_AGENTS; do echo "$agent=$(secret "demo-$agent")"; done | put demo tokens "$HANDOFF_UID"
    ;;
  show)
    case "${2:-}" in
      database-superuser | database-handoff | database-grafana | database-otel | redis | grafana-admin | operator-token | alertmanager-token) ;;
      *) fail "show database-superuser, database-handoff, database-grafana, database-otel, redis, grafana-admin, operator-token or alertmanager-token" ;;
    esac
    secret "$2" && echo
    ;;
  *) fail "what is '$1'?" ;;
esac
