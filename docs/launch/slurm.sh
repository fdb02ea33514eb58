#!/bin/bash
# gtr-jax on GPUs under Slurm, a process for each GPU.
#
#   sbatch --nodes=2 slurm.sh train --data_dir data --gin_file=models/t5_base.gin --gin_file=runs/pretrain.gin \
#       --gin_file=meshes/data_parallel.gin --gin.t5.T5Config.remat="'layer'" --gin.t5.T5Config.scan_layers=True \
#       --gin.MICROBATCH_SIZE=512 --gin.MIXTURE_OR_TASK_NAME="'my_task'" --gin.MIXTURE_OR_TASK_MODULE="'my_tasks'" \
#       --gin.MODEL_DIR="'runs/a'"
# (16 GPUs, 32 pairs at once on each: `gtr-jax train --dry_run` says what others hold.)
#
#SBATCH --job-name=gtr
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#
# --gres and not --gpus-per-task: a process sees all GPUs of its node and takes the one of its number there. For one
# process a node: --ntasks-per-node=1 and export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7.
# --kill-on-bad-exit=0: gtr-jax ends the other processes itself, and says why.
# --signal: five minutes before the time is over the run gets SIGTERM, saves and stops with 143, and is queued again.

code=0
srun --kill-on-bad-exit=0 gtr-jax "$1" --distributed "${@:2}" || code=$?
if [ "$code" -eq 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
