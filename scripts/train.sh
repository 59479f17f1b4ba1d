#!/usr/bin/env bash
# Train, and tell a scheduler by the exit code whether the last step was reached:
#
#   bash scripts/train.sh CONFIG WORKDIR STEPS [flags of main.py]
#
#   0    the workdir has the state after step STEPS
#   75   SIGTERM stopped training earlier; the same command continues (main.py itself exits with 0)
#   else the exit code of main.py, which has failed
#
# STEPS must be a multiple of training.n_jitted_steps. The variable PATH selects the interpreter.
set -uo pipefail
config=$1 workdir=$2 steps=$3
shift 3

python "$(dirname "$0")/../main.py" --mode=train --config="$config" --workdir="$workdir" \
    --config.training.n_iters="$steps" "$@" &
child=$!
trap 'kill -TERM "$child"' TERM # The first process of a container has to pass it on.
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do # A signal has interrupted `wait`.
    wait "$child"
    status=$?
done
if [[ $status -ne 0 && $status -ne 143 ]]; then
    exit "$status"
fi
for _ in {1..10}; do # On a network file system the last folder may appear later.
    if [[ -d $workdir/checkpoints-meta/checkpoint_$steps ]]; then
        exit 0
    fi
    sleep "${SCORE_SDE_WAIT:-3}"
done
exit 75
