#!/usr/bin/env bash
# What tpu_vm.py has every worker of a TPU VM do:
#   tpu_worker.sh install PYTHON              a virtual environment with what training on TPUs needs
#   tpu_worker.sh start RESTARTS ARGUMENTS…   `paxlike train ARGUMENTS…` in the background, again after a crash
#   tpu_worker.sh logs                        its output, until it ends
#   tpu_worker.sh stop                        SIGTERM, and wait until what it saves is whole
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p logs
log=logs/train.log
pid=logs/train.pid

alive() { [[ -s $pid ]] && kill -0 "$(<"$pid")" 2>/dev/null; }

install() {
    if ! "$1" -c 'import venv, ensurepip' 2>/dev/null; then
        sudo apt-get -q update
        sudo DEBIAN_FRONTEND=noninteractive apt-get -qy install "$1-venv"
    fi
    "$1" -m venv .venv
    .venv/bin/python -m pip install --quiet --upgrade --editable '.[tpu,gcs]'
    .venv/bin/paxlike --version
}

# When one process ends, the others end within a minute; each worker starts its own again and they find each other.
train() {
    local restarts=$1 attempt code stopping=
    shift
    # With a trap, bash waits for paxlike to save before it acts on the signal itself.
    trap 'stopping=yes' TERM
    for ((attempt = 0; ; attempt++)); do
        code=0
        .venv/bin/paxlike train "$@" || code=$?
        # 0: done. 2: something that only the user can mend.
        if [[ $code -eq 0 || $code -eq 2 || -n $stopping ]]; then exit "$code"; fi
        if ((attempt >= restarts)); then
            echo "tpu_worker: exit code $code after $attempt restarts; not starting again"
            exit "$code"
        fi
        echo "tpu_worker: exit code $code; restart $((attempt + 1)) of $restarts in ${PAXLIKE_RESTART_SECONDS:-30} s"
        sleep "${PAXLIKE_RESTART_SECONDS:-30}"
    done
}

start() {
    if alive; then
        echo "$(hostname): training already (process $(<"$pid")); stop it first" >&2
        exit 1
    fi
    # A session of its own: it outlives this connection, and a signal to its group reaches paxlike.
    setsid nohup launch/tpu_worker.sh train "$@" >"$log" 2>&1 </dev/null &
    echo $! >"$pid"
    echo "$(hostname): started"
}

logs() {
    if alive; then
        tail --pid="$(<"$pid")" -n 1000 -F "$log"
    else
        tail -n 1000 "$log"
    fi |& sed -u "s/^/$(hostname): /"
}

stop() {
    if ! alive; then
        echo "$(hostname): not training"
        return
    fi
    kill -TERM -- "-$(<"$pid")"
    timeout 900 tail --pid="$(<"$pid")" -f /dev/null
    echo "$(hostname): stopped"
}

case ${1-} in
install | start | train | logs | stop) "$@" ;;
*)
    sed -n '2,6s/^# //p' "$0" >&2
    exit 2
    ;;
esac
