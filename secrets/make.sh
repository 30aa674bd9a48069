# Generates the secrets that were not given, and puts each reader's secrets into a volume that no other reader mounts.
#
#   make.sh             runs at every start; running it again changes nothing
#   make.sh demo        also lets the demo's agents call, until the next start without the profile `demo`
#   make.sh show NAME   prints one secret
#
# A secret is read from the file of that name in /given. If there is none, it is generated at the first start and kept in /made.
# Some secrets are never generated: the feature that needs them is off until they are given.
set -euo pipefail
umask 077

HANDOFF_UID=10001 COLLECTOR_UID=10001 GRAFANA_UID=472 ALERTMANAGER_UID=65534 REDIS_UID=999 # POSTGRES_UID depends on the image and comes from the environment
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

put() { # READER FILE OWNER; reads the content from standard input
  file="/readers/$1/$2"
  cat >"$file.new"
  chmod 0400 "$file.new"
  chown "$3" "$file.new"
  if cmp -s "$file.new" "$file"; then
    rm "$file.new"
    chown "$3" "$file" # a different image may use a different user
  else
    mv "$file.new" "$file" # atomic: readers never see a partial file
  fi
}

token_line() { # SECRET AGENT SCOPES: a line of the tokens file, which only holds digests
  echo "$(secret "$1" | sha256sum | cut -d ' ' -f 1) $2 $3"
}

tokens() { # the lines that the operator wrote, then the operator token and Alertmanager's token
  if [ -s /given/tokens ]; then cat /given/tokens && echo; fi
  token_line operator-token operator admin
  token_line alertmanager-token alertmanager alerts
}

demo_tokens() {
  for agent in $DEMO_AGENTS; do token_line "demo-$agent" "$agent" "read,write capabilities=*"; done
}

given() { # READER NAME OWNER: a secret that is never generated; without the file the reader has none
  if [ -s "/given/$2" ]; then secret "$2" | put "$1" "$2" "$3"; else rm -f "/readers/$1/$2"; fi
}

webhooks() { # the file of endpoints for those who need it, and the secrets with which messages are signed for who sends them
  for reader in service worker; do
    if [ -s /given/webhooks.toml ]; then put "$reader" webhooks.toml "$HANDOFF_UID" </given/webhooks.toml; else rm -f "/readers/$reader/webhooks.toml"; fi
  done
  for file in /given/webhook-secret-* /readers/worker/webhook-secret-*; do given worker "${file##*/}" "$HANDOFF_UID"; done
}

EMAIL_KEYS="to from smarthost username password require_tls"

email() { # KEY: the value of KEY in the given file `email`, if any
  if [ -s /given/email ]; then tr -d '\r' </given/email | sed -n "s/^$1=//p"; fi
}

refuse_dollars() { # runs before anything is written; the collector and Grafana would take what follows a $ for the name of a variable
  for name in database-otel redis database-grafana grafana-admin; do
    case "$(if [ -s "/given/$name" ]; then cat "/given/$name"; fi)" in
      *\$*) fail "$name: must not contain \$, which the collector and Grafana replace with the value of a variable. Give it another value, without \$." ;;
    esac
  done
}

refuse_bad_channels() { # runs before anything is written
  for name in slack-url webhook-url; do
    if [ -s "/given/$name" ]; then
      case "$(secret "$name")" in http://?* | https://?*) ;; *) fail "$name: must be an address that starts with http:// or https://" ;; esac
    fi
  done
  if [ ! -s /given/email ]; then return; fi
  unknown=$(tr -d '\r' </given/email | grep -nvE "^(#.*|($(echo "$EMAIL_KEYS" | tr ' ' '|'))=.*)?$" | cut -d : -f 1 | head -n 1) || true
  [ -z "$unknown" ] || fail "email: line $unknown must start with one of $(echo "$EMAIL_KEYS" | sed 's/ /=, /g')= or #"
  for key in $EMAIL_KEYS; do
    [ "$(email "$key" | grep -c '')" -le 1 ] || fail "email: $key= is set more than once"
  done
  for key in to from smarthost; do
    [ -n "$(email "$key")" ] || fail "email: $key= is missing"
  done
  email smarthost | grep -qE '^[^ ]+:[0-9]+$' || fail "email: smarthost= must be HOST:PORT"
  if [ -n "$(email username)" ] && [ -z "$(email password)" ]; then fail "email: password= is missing"; fi
  if [ -n "$(email password)" ] && [ -z "$(email username)" ]; then fail "email: username= is missing"; fi
  case "$(email require_tls)" in '' | true | false) ;; *) fail "email: require_tls= must be true or false" ;; esac
}

marked() { # NAME [VALUE]: a sed command that enables the lines of alertmanager.yml marked #NAME, and appends VALUE
  value=$(printf %s "${2:-}" | sed 's/[\\&|]/\\&/g')
  printf '%s\n' "s|^\( *\)#$(echo "$1" | sed 's/\./\\./') \(.*\)$|\1\2$value|"
}

alertmanager_yml() { # the shipped configuration with the given channels enabled
  marks=$(
    for name in slack-url pagerduty-key email webhook-url; do
      if [ -s "/given/$name" ]; then marked "$name"; fi
    done
    for key in to from smarthost username; do # quoted as YAML strings
      if [ -n "$(email "$key")" ]; then marked "email.$key" " '$(email "$key" | sed "s/'/''/g")'"; fi
    done
    if [ -n "$(email password)" ]; then marked email.password; fi
    if [ -n "$(email require_tls)" ]; then marked email.require_tls " $(email require_tls)"; fi
  )
  sed -e "$marks" /alertmanager/alertmanager.yml
}

case "${1:-make}" in
  make)
    refuse_dollars
    refuse_bad_channels
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
    given worker deadman-url "$HANDOFF_UID"
    webhooks
    secret redis | put redis redis "$REDIS_UID"
    echo "user default on #$(secret redis | sha256sum | cut -d ' ' -f 1) ~* &* +@all" | put redis users.acl "$REDIS_UID"
    secret database-otel | put otel-collector database-otel "$COLLECTOR_UID"
    secret redis | put otel-collector redis "$COLLECTOR_UID"
    secret database-grafana | put grafana database-grafana "$GRAFANA_UID"
    secret grafana-admin | put grafana grafana-admin "$GRAFANA_UID"
    secret alertmanager-token | put alertmanager alertmanager-token "$ALERTMANAGER_UID"
    for name in slack-url pagerduty-key webhook-url; do given alertmanager "$name" "$ALERTMANAGER_UID"; done
    if [ -n "$(email password)" ]; then
      email password | tr -d '\n' | put alertmanager email-password "$ALERTMANAGER_UID"
    else
      rm -f /readers/alertmanager/email-password
    fi
    alertmanager_yml | put alertmanager alertmanager.yml "$ALERTMANAGER_UID"
    tokens | put service tokens "$HANDOFF_UID"
    ;;
  demo)
    { tokens && demo_tokens; } | put service tokens "$HANDOFF_UID"
    for agent in $DEMO_AGENTS; do echo "$agent=$(secret "demo-$agent")"; done | put demo tokens "$HANDOFF_UID"
    ;;
  show)
    case "${2:-}" in
      database-superuser | database-handoff | database-grafana | database-otel | redis | grafana-admin | operator-token | alertmanager-token) ;;
      *) fail "usage: show NAME, where NAME is database-superuser, database-handoff, database-grafana, database-otel, redis, grafana-admin, operator-token or alertmanager-token" ;;
    esac
    secret "$2" && echo
    ;;
  *) fail "unknown command '$1'; use make, demo or show NAME" ;;
esac
