#!/bin/bash
# gtr-jax on all hosts of a Cloud TPU slice, from a machine with gcloud.
#
#   python -m build --wheel
#   cloud_tpu.sh install dist/gtr_jax-0.1.0-py3-none-any.whl
#   cloud_tpu.sh run train --data_dir gs://bucket/data --gin_file=models/t5_base.gin --gin_file=runs/pretrain.gin \
#       --gin_file=meshes/data_parallel.gin --gin.t5.T5Config.remat="'layer'" --gin.t5.T5Config.scan_layers=True \
#       --gin.MICROBATCH_SIZE=512 --gin.MIXTURE_OR_TASK_NAME="'my_task'" --gin.MIXTURE_OR_TASK_MODULE="'my_tasks'" \
#       --gin.MODEL_DIR="'gs://bucket/a'"
# (16 chips, 32 pairs at once on each: `gtr-jax train --dry_run` says what others hold.)
#   cloud_tpu.sh log      # follow process 0
#   cloud_tpu.sh stop     # save and stop; the same `run` goes on
#
# my_tasks.py and gin files of your own: cloud_tpu.sh copy FILE...
set -eu
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}"

on() { gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker="$1" --command "$2"; }
copy() { gcloud compute tpus tpu-vm scp "$@" "$TPU": --zone "$ZONE" --worker=all; }

command=$1
shift
case $command in
  install)
    copy "$1"
    on all "python3 -m pip install --quiet --user uv && ~/.local/bin/uv venv --quiet --clear --python 3.11 gtr &&
            ~/.local/bin/uv pip install --quiet --python gtr './$(basename "$1")[tpu]'"
    ;;
  copy) copy "$@" ;;
  run)
    # In the background, so that it outlives this connection; in the home folder, where copied files lie.
    on all "nohup gtr/bin/gtr-jax $1 --distributed $(shift && printf '%q ' "$@") > gtr.log 2>&1 < /dev/null &
            echo \$! > gtr.pid"
    ;;
  log) on 0 "tail -n 50 -f gtr.log" ;;
  stop) on all 'kill -TERM "$(cat gtr.pid)"' ;;
  *) echo "unknown command $command" >&2; exit 2 ;;
esac
