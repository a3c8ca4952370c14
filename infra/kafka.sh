#!/usr/bin/env bash
# One Apache Kafka broker (KRaft: broker and controller in one process) on 127.0.0.1, without Docker.
#
#   infra/kafka.sh start DIR PORT   fetch the jars and format DIR when new, start, return when ready
#   infra/kafka.sh stop DIR         stop and wait (SIGKILL after 30 s)
#   infra/kafka.sh status DIR       `ready` or `down`; exit status 0 only when ready
#   infra/kafka.sh fetch            fetch the jars from Maven Central only
#
# Needs Java 17 or newer, and Maven to fetch. The controller listens on PORT+1. All state lies in DIR: delete it to
# start from nothing. Environment: KAFKA_VERSION, KAFKA_HEAP (1g), KAFKA_PROPERTIES (more lines of server.properties).
set -euo pipefail

VERSION=${KAFKA_VERSION:-4.4.0}
LOG4J_VERSION=2.25.4
JARS=${XDG_CACHE_HOME:-$HOME/.cache}/headrace/kafka-$VERSION

die() { echo "kafka.sh: $*" >&2; exit 1; }
need() { command -v "$1" > /dev/null || die "needs $2, and there is no \`$1\` on PATH"; }

fetch() { # the folder appears whole or not at all
  [ -d "$JARS" ] && return
  need mvn Maven
  local new=$JARS.$$
  mkdir -p "$new"
  cat > "$new/pom.xml" << POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>headrace</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$VERSION</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>$LOG4J_VERSION</version>
    </dependency>
  </dependencies>
</project>
POM
  mvn --batch-mode --quiet --file "$new/pom.xml" \
    dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$new" >&2 \
    || { rm -rf "$new"; die "Maven could not fetch Kafka $VERSION"; }
  [ -d "$JARS" ] || mv "$new" "$JARS"
  rm -rf "$new"
}

running() { # sets pid; a pid that came to belong to another program is not our broker
  [ -f "$DIR/pid" ] && pid=$(< "$DIR/pid") \
    && [[ $(ps -ww -o command= -p "$pid") == *" kafka.Kafka $DIR/server.properties" ]]
}

ready() {
  grep -qsF 'Kafka Server started' "$DIR/server.log"
}

configure() {
  cat > "$DIR/server.properties" << PROPERTIES
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:$PORT,CONTROLLER://127.0.0.1:$((PORT + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$PORT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:$((PORT + 1))
log.dirs=$DIR/data
num.network.threads=2
num.io.threads=4
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.dedupe.buffer.size=16777216
${KAFKA_PROPERTIES:-}
PROPERTIES
}

format() {
  local id # 16 bytes in base64, without a leading dash, which would look like an option
  id=$(head -c 16 /dev/urandom | base64 | tr '+/' 'ab' | tr -d '=')
  java -cp "$JARS/*" kafka.tools.StorageTool format -t "$id" -c "$DIR/server.properties" > "$DIR/format.log" 2>&1 \
    || { cat "$DIR/format.log" >&2; die "could not format $DIR/data"; }
}

launch() {
  for fd in /dev/fd/*; do # the broker must not keep its starter's files, locks and pipes open ...
    fd=${fd##*/}
    [ "$fd" -le 2 ] || eval "exec $fd>&-"
  done 2> /dev/null
  # ... nor end with its terminal
  exec "$(command -v setsid || echo nohup)" \
    java -Xms256m "-Xmx${KAFKA_HEAP:-1g}" -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -Djava.awt.headless=true \
    -Dlog4j2.level=INFO -cp "$JARS/*" kafka.Kafka "$DIR/server.properties" < /dev/null > "$DIR/server.log" 2>&1
}

start() {
  if running; then
    grep -q "^listeners=PLAINTEXT://127.0.0.1:$PORT," "$DIR/server.properties" \
      || die "$DIR runs on another port (pid $pid)"
  else
    need java "Java 17 or newer"
    fetch
    configure
    [ -f "$DIR/data/meta.properties" ] || format
    : > "$DIR/server.log"
    launch &
    pid=$!
    echo "$pid" > "$DIR/pid"
  fi
  for _ in {1..600}; do
    if ready; then
      echo "Kafka $VERSION is ready on 127.0.0.1:$PORT (pid $pid)"
      return
    fi
    kill -0 "$pid" 2> /dev/null || { tail -n 30 "$DIR/server.log" >&2; die "the broker ended while it started"; }
    sleep 0.1
  done
  die "not ready after 60 s: see $DIR/server.log"
}

stop() {
  if running; then
    kill -TERM "$pid"
    for _ in {1..300}; do
      running || break
      sleep 0.1
    done
    ! running || kill -KILL "$pid"
  fi
  rm -f "$DIR/pid"
}

status() {
  if running && ready; then echo ready; else echo down; return 1; fi
}

case "${1:-}/$#" in
  fetch/1) fetch; exit ;;
  start/3) PORT=$3 ;;
  stop/2 | status/2) ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p;}' "$0" >&2; exit 64 ;;
esac
mkdir -p "$2"
DIR=$(cd "$2" && pwd -P)
"$1"
