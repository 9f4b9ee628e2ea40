#!/usr/bin/env bash
# Submits `paxlike train` to Slurm on GPU nodes, one process per GPU or per node.
#
#   launch/slurm.sh --nodes 4 --gpus-per-node 8 [--processes-per gpu|node] [--max-restarts N]
#                   [--sbatch OPTION]… [--dry-run] -- configs/palm_8b.py --run-dir /shared/runs/8b
#
# Partition, account and time are Slurm's: --sbatch --partition=NAME, or SBATCH_PARTITION and the like. The job's folder is the
# current one and `paxlike` comes from PATH (activate its environment first). JAX reads the coordinator and each process's place
# from Slurm's variables, so nothing about them is passed.
#
# The job is put back into the queue, to go on from its newest checkpoint: when Slurm takes its nodes away; when its time ends (it
# saves two minutes before); and after a crash, unless it was put back --max-restarts times (3) before, for whatever reason.
set -euo pipefail

PREEMPTED=143 # how paxlike exits when SIGTERM stopped it before its end, after saving

usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"; }

wrong() {
    printf 'slurm.sh: %s; see launch/slurm.sh --help\n' "$1" >&2
    exit 2
}

submit() {
    local nodes='' gpus='' per=gpu restarts=3 dry='' options=()
    while [[ $# -gt 0 && $1 != -- ]]; do
        case $1 in
        --dry-run) dry=yes && shift && continue ;;
        -h | --help) usage && exit ;;
        --nodes | --gpus-per-node | --processes-per | --max-restarts | --sbatch) [[ $# -gt 1 ]] || wrong "$1 needs a value" ;;
        *) wrong "unknown option $1" ;;
        esac
        case $1 in
        --nodes) nodes=$2 ;;
        --gpus-per-node) gpus=$2 ;;
        --processes-per) per=$2 ;;
        --max-restarts) restarts=$2 ;;
        --sbatch) options+=("$2") ;;
        esac
        shift 2
    done
    [[ $# -gt 1 ]] || wrong "what to train is missing: -- CONFIG --run-dir DIR …"
    shift
    [[ $nodes =~ ^[1-9][0-9]*$ ]] || wrong "--nodes must be a positive number, got '$nodes'"
    [[ $gpus =~ ^[1-9][0-9]*$ ]] || wrong "--gpus-per-node must be a positive number, got '$gpus'"
    [[ $restarts =~ ^[0-9]+$ ]] || wrong "--max-restarts must be a number, got '$restarts'"
    [[ $per == gpu || $per == node ]] || wrong "--processes-per must be gpu or node, got '$per'"

    local tasks=$gpus
    [[ $per == gpu ]] || tasks=1
    # TERM@120 goes to the processes, not to the script: paxlike saves, and the script sees how it ended.
    local command=(sbatch "--nodes=$nodes" "--ntasks-per-node=$tasks" "--gpus-per-node=$gpus" --exclusive --requeue
        --open-mode=append --signal=TERM@120 --job-name=paxlike --output=paxlike-%j.log "${options[@]}"
        "$0" job "$per" "$gpus" "$restarts" "$@")
    if [[ -n $dry ]]; then
        printf '%q ' "${command[@]}"
        printf '\n# and on the first of the nodes, from there:\n# '
        printf '%q ' "${SRUN[@]}" paxlike train "$@"
        printf '\n'
    else
        "${command[@]}"
    fi
}

# No --gpus-per-task: JAX takes the GPU of its local rank and must see them all. --wait: when one process ends, Slurm ends the
# others a minute later; the time is for what they save and for the stacks that they write.
SRUN=(srun --kill-on-bad-exit=0 --wait=60)

job() {
    local per=$1 gpus=$2 restarts=$3 code=0
    shift 3
    if [[ $per == node ]]; then
        # JAX would give a process of a Slurm job the one GPU of its rank.
        JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
        export JAX_LOCAL_DEVICE_IDS
    fi
    "${SRUN[@]}" paxlike train "$@" || code=$?
    # 0: done. 2: something that only the user can mend.
    if [[ $code -eq 0 || $code -eq 2 ]]; then exit "$code"; fi
    if [[ $code -ne $PREEMPTED && ${SLURM_RESTART_COUNT:-0} -ge $restarts ]]; then
        echo "slurm.sh: exit code $code after ${SLURM_RESTART_COUNT:-0} restarts; not put back into the queue" >&2
        exit "$code"
    fi
    echo "slurm.sh: exit code $code; back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
}

if [[ ${1-} == job ]]; then
    shift
    job "$@"
else
    submit "$@"
fi
