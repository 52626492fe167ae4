#!/usr/bin/env bash
# One rank under torchrun, which calls this once for each device: see torchrun.sh and elastic.sh.
#
# Tells Lightning how many machines and devices there are this time. With BATCHES_PER_STEP (batches of all devices in
# one optimizer step, such as 8) the global batch stays the same on any number of devices that divides it.
set -euo pipefail

nodes=$((WORLD_SIZE / LOCAL_WORLD_SIZE))
options=(--trainer.num_nodes "$nodes" --trainer.devices "$LOCAL_WORLD_SIZE")
if [[ -n ${BATCHES_PER_STEP:-} ]]; then
    if ((BATCHES_PER_STEP % WORLD_SIZE)); then
        echo "BATCHES_PER_STEP=$BATCHES_PER_STEP cannot be shared by $WORLD_SIZE devices" >&2
        exit 2
    fi
    options+=(--trainer.accumulate_grad_batches $((BATCHES_PER_STEP / WORLD_SIZE)))
fi
exec python -m litseq "$@" "${options[@]}"
