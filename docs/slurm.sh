#!/bin/bash
# A training over several machines under SLURM: one process per GPU, no launcher between SLURM and the ranks.
#
#   sbatch --nodes=8 docs/slurm.sh runs/my-run
#
# The run folder must be on a file system that all machines see, and hold train.yaml: `omniavatar train` writes it, and so
# does any earlier start. SLURM sends SIGUSR1 300 s before the time limit (SIGTERM when it preempts); the ranks save and end
# with code 75, and the job is put back into the queue. A rank that dies or hangs ends the step, and the job goes on from
# the last checkpoint in the same way, at most MOST_STARTS times in all.
#SBATCH --job-name=omniavatar
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
RUN=$1
MOST_STARTS=${MOST_STARTS:-50}

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export RUN MASTER_ADDR MASTER_PORT

# SLURM's numbers of a task are the variables that torchrun would set. `exec`: signals reach Python itself.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python -m training.train "$RUN"'
code=$?

case $code in
0) echo "training finished" ;;
1) echo "training failed; see $RUN/logs/train-failure-*.txt" ;;
*) # 75: asked to stop, saved; 76: a rank hung; 128 and above: a rank was killed
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MOST_STARTS" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit $code
