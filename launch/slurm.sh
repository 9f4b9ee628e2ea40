#!/usr/bin/env bash
# Submits `paxlike train` to Slurm on GPU nodes, one process per GPU or per node.
#
#   launch/slurm.sh --nodes 4 --gpus-per-node 8 [--processes-per gpu|node] [--max-restarts N]
#                   [--sbatch OPTION]… [--dry-run] -- configs/palm_8b.py --run-dir /shared/runs/8b
#
# Pass partition, account and time to Slurm: --sbatch --partition=NAME, or SBATCH_PARTITION etc. The
# job runs in the current directory with `paxlike` from PATH (activate its environment first). JAX
# reads the coordinator and the process index from Slurm's variables.
#
# The job is requeued and resumes from its newest checkpoint:
# - when Slurm preempts it;
# - when its time limit ends (it saves two minutes before);
# - after a crash, unless it was already requeued --max-restarts times (3), for whatever reason.
set -euo pipefail

PREEMPTED=143 # exit code of paxlike when SIGTERM stopped it before its last step, after saving

usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"; }

fail() {
    printf 'slurm.sh: %s; see launch/slurm.sh --help\n' "$1" >&2
    exit 2
}

submit() {
    local nodes='' gpus='' per=gpu restarts=3 dry='' options=()
    while [[ $# -gt 0 && $1 != -- ]]; do
        case $1 in
        --dry-run) dry=yes && shift && continue ;;
        -h | --help) usage && exit ;;
        --nodes | --gpus-per-node | --processes-per | --max-restarts | --sbatch)
            [[ $# -gt 1 ]] || fail "$1 needs a value"
            ;;
        *) fail "unknown option $1" ;;
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
    [[ $# -gt 1 ]] || fail "the arguments of paxlike train are missing: -- CONFIG --run-dir DIR …"
    shift
    [[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes must be a positive number, got '$nodes'"
    [[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus-per-node must be a positive number, got '$gpus'"
    [[ $restarts =~ ^[0-9]+$ ]] || fail "--max-restarts must be a number, got '$restarts'"
    [[ $per == gpu || $per == node ]] || fail "--processes-per must be gpu or node, got '$per'"

    local tasks=$gpus
    [[ $per == gpu ]] || tasks=1
    # TERM@120 signals the processes, not this script: paxlike saves and exits, and the script reads
    # its exit code.
    local command=(sbatch "--nodes=$nodes" "--ntasks-per-node=$tasks" "--gpus-per-node=$gpus"
        --exclusive --requeue --open-mode=append --signal=TERM@120 --job-name=paxlike
        --output=paxlike-%j.log "${options[@]}" "$0" job "$per" "$gpus" "$restarts" "$@")
    if [[ -n $dry ]]; then
        printf '%q ' "${command[@]}"
        printf '\n# The job then runs, on its first node:\n# '
        printf '%q ' "${SRUN[@]}" paxlike train "$@"
        printf '\n'
    else
        "${command[@]}"
    fi
}

# No --gpus-per-task: JAX uses the GPU of its local rank and must see all GPUs. --wait: when one
# process exits, Slurm kills the others a minute later; until then they save and write their stacks.
SRUN=(srun --kill-on-bad-exit=0 --wait=60)

job() {
    local per=$1 gpus=$2 restarts=$3 code=0
    shift 3
    if [[ $per == node ]]; then
        # By default, JAX uses only the GPU of the local rank in a Slurm job.
        JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
        export JAX_LOCAL_DEVICE_IDS
    fi
    "${SRUN[@]}" paxlike train "$@" || code=$?
    # 0: done. 2: an error that a restart cannot fix.
    if [[ $code -eq 0 || $code -eq 2 ]]; then exit "$code"; fi
    if [[ $code -ne $PREEMPTED && ${SLURM_RESTART_COUNT:-0} -ge $restarts ]]; then
        echo "slurm.sh: exit code $code after ${SLURM_RESTART_COUNT:-0} restarts; not requeued" >&2
        exit "$code"
    fi
    echo "slurm.sh: exit code $code; requeueing the job" >&2
    scontrol requeue "$SLURM_JOB_ID"
}

if [[ ${1-} == job ]]; then
    shift
    job "$@"
else
    submit "$@"
fi
