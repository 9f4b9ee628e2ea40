#!/usr/bin/env bash
# Runs on every worker of a TPU VM, called by tpu_vm.py:
#   tpu_worker.sh install PYTHON             create a virtual environment and install paxlike in it
#   tpu_worker.sh start RESTARTS ARGUMENTS…  run `paxlike train` in the background; restart on crash
#   tpu_worker.sh logs                       follow its output until it exits
#   tpu_worker.sh stop                       send SIGTERM and wait until the checkpoint is saved
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

# When one process fails, the others exit within a minute. Each worker restarts its own process, and
# the processes find each other again.
train() {
    local restarts=$1 pause=${PAXLIKE_RESTART_SECONDS:-30} attempt code stopping=
    shift
    # With a trap, bash handles the signal only after paxlike has saved and exited.
    trap 'stopping=yes' TERM
    for ((attempt = 0; ; attempt++)); do
        code=0
        .venv/bin/paxlike train "$@" || code=$?
        # 0: done. 2: an error that a restart cannot fix.
        if [[ $code -eq 0 || $code -eq 2 || -n $stopping ]]; then exit "$code"; fi
        if ((attempt >= restarts)); then
            echo "tpu_worker: exit code $code after $attempt restarts; not restarting"
            exit "$code"
        fi
        echo "tpu_worker: exit code $code; restart $((attempt + 1)) of $restarts in $pause s"
        sleep "$pause"
    done
}

start() {
    if alive; then
        echo "$(hostname): already training (process $(<"$pid")); stop it first" >&2
        exit 1
    fi
    # A new session: training outlives this connection, and a signal to the group reaches paxlike.
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
