#!/usr/bin/env bash
# A fixed number of machines. Run on each of them, the same but for NODE_RANK; the first one is NODE_RANK=0:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 scripts/cluster/torchrun.sh fit -c configs/multi30k/transformer.yaml \
#       -c configs/trainer/ddp.yaml --ckpt_path last
#
# The same command again goes on where the last one stopped, also with other NODES. All machines need the same code,
# data and configuration, and one file system for lightning_logs/.
set -euo pipefail

exec torchrun \
    --nnodes "${NODES:?how many machines}" \
    --node_rank "${NODE_RANK:?the number of this one, from 0}" \
    --nproc_per_node "${DEVICES:-gpu}" \
    --master_addr "${MASTER_ADDR:?the address of machine 0}" \
    --master_port "${MASTER_PORT:-29500}" \
    --no_python "$(dirname "$0")/rank.sh" "$@"
