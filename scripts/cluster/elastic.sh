#!/usr/bin/env bash
# As many machines as there are. Run on each of them, the same everywhere:
#
#   NODES=1:4 RENDEZVOUS=10.0.0.1:29400 BATCHES_PER_STEP=8 scripts/cluster/elastic.sh fit \
#       -c configs/multi30k/transformer.yaml -c configs/trainer/ddp.yaml --ckpt_path last
#
# When a machine is lost or joins, all ranks are started again and go on from the newest checkpoint, with what is there.
# RENDEZVOUS must be a machine that stays. The other conditions are those of torchrun.sh.
set -euo pipefail

# Else a machine that joins waits for an address that the others do not give again (torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
    --nnodes "${NODES:?least:most machines}" \
    --nproc_per_node "${DEVICES:-gpu}" \
    --rdzv_backend c10d \
    --rdzv_endpoint "${RENDEZVOUS:?address:port of one machine}" \
    --rdzv_id "${RUN_ID:-litseq}" \
    --max_restarts "${RESTARTS:-10}" \
    --no_python "$(dirname "$0")/rank.sh" "$@"
