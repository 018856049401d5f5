#!/bin/bash
# Many nodes of 8 GPUs under SLURM, in a job that goes on where it was after a preemption or the end of its time:
#   sbatch examples/accelerate/slurm.sh image_classification --train_dir /data/photos --output_dir /shared/photos-maxsup
# (a script of maxsup_hf.scripts, and its flags; --output_dir on a disk that all nodes see).
#SBATCH --job-name=maxsup
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -uo pipefail

config=${MAXSUP_CONFIG:-examples/accelerate/two_nodes.yaml}
export TASK=$1 CONFIG=$config NODES=${SLURM_NNODES:-1} PROCESSES=$((${SLURM_NNODES:-1} * ${SLURM_GPUS_ON_NODE:-8}))
shift
ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export ADDRESS
# torch's launcher kills its processes 30 s after SIGTERM; a large checkpoint takes longer. --signal leaves 300.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=270

# USR1 comes to this shell five minutes before the time is over, TERM with a preemption.
ended_early=no
end_early() {
    ended_early=yes
    scancel --signal=TERM "$SLURM_JOB_ID" # to the steps: every rank saves after the step that it is in, and ends
}
trap end_early USR1 TERM

# One launcher a node; in single quotes, for SLURM_NODEID is known on the node alone.
# shellcheck disable=SC2016
srun bash -c 'exec accelerate launch --config_file "$CONFIG" \
    --num_machines "$NODES" --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" --main_process_ip "$ADDRESS" \
    -m "maxsup_hf.scripts.$TASK" --enable_jit_checkpoint --resume_from_checkpoint auto "$@"' bash "$@" &

step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ended the wait, not the training
    wait "$step"
    code=$?
done

if [ "$ended_early" = yes ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
