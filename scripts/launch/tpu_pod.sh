#!/bin/bash
# Trains on all hosts of a Cloud TPU slice:
#
#   scripts/launch/tpu_pod.sh my-tpu us-central2-b \
#       --config=experiments/configs/language/tiny_shakespeare.py \
#       --workdir=/mnt/shared/runs/a
#
# `my-tpu` is there already (gcloud compute tpus tpu-vm create ...), and the
# workdir is on a file system that all hosts have mounted. The repository goes
# to each host first, with an environment of its own. The same command again
# goes on where the run stopped.

set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 TPU ZONE FLAGS..." >&2
  exit 2
fi
tpu=$1 zone=$2
shift 2
root=$(cd "$(dirname "$0")/../.." && pwd)
place=(--zone="$zone" --worker=all)

# A pod is a program on every host: what is typed here has to survive one more
# shell, there.
flags=$(printf ' %q' "$@")

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
tar -C "$root" --exclude=.git --exclude=.cache --exclude='.venv*' \
  --exclude=runs -czf "$archive" .
gcloud compute tpus tpu-vm scp "$archive" "$tpu:rnnzoo.tar.gz" "${place[@]}"

gcloud compute tpus tpu-vm ssh "$tpu" "${place[@]}" --command="
set -eu
mkdir -p rnnzoo
tar -C rnnzoo -xzf rnnzoo.tar.gz
cd rnnzoo
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install -q -e '.[tpu]'
exec .venv/bin/python -m experiments.train --multihost$flags
"
