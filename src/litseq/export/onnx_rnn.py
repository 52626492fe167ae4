"""The recurrent encoder as ONNX has it: an operator that knows how long each sequence is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from litseq.layers.recurrent import RecurrentEncoder
from litseq.models.base import Seq2SeqModel

__all__ = ["with_onnx_encoders"]

# The operator, and where its gates are among torch's: an LSTM of torch has input, forget, cell and
# output; a GRU reset, update and new.
_OPERATORS = {"LSTM": ("LSTM", (0, 3, 1, 2)), "GRU": ("GRU", (1, 0, 2)), "RNN_TANH": ("RNN", (0,))}


def with_onnx_encoders(network: Seq2SeqModel) -> Seq2SeqModel:
    """Copies a model; its recurrent encoders read padded batches without packing them."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, RecurrentEncoder):
                setattr(module, name, _OnnxEncoder(child))
    return network


class _OnnxEncoder(nn.Module):
    """Takes and gives what ``RecurrentEncoder`` does; it can be exported, and not run."""

    def __init__(self, encoder: RecurrentEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, embedded: Tensor, key_padding_mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        lengths = (~key_padding_mask).sum(1).to(torch.int32)
        inputs = embedded.transpose(0, 1)
        finals = []
        for layer in range(self.encoder.rnn.num_layers):
            output, *final = _run(self.encoder.rnn, layer, inputs, lengths)
            inputs = output.transpose(1, 2).flatten(2)  # (S, B, D), directions side by side
            finals.append(final)
        # as torch has them: each part of the state a row for each layer and direction
        states = [torch.cat(parts) for parts in zip(*finals, strict=True)]
        return inputs.transpose(0, 1), tuple(map(self.encoder._join_directions, states))


def _run(rnn: nn.RNNBase, layer: int, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    """One layer: states, float (S, directions, B, H), and the parts of the last one."""
    name, order = _OPERATORS[rnn.mode]
    directions = ["", "_reverse"] if rnn.bidirectional else [""]

    def weights(kind: str) -> Tensor:
        found = []
        for direction in directions:
            gates = getattr(rnn, f"{kind}_l{layer}{direction}").chunk(len(order))
            found.append(torch.cat([gates[i] for i in order]))
        return torch.stack(found)

    attributes: dict[str, Any] = {
        "hidden_size": rnn.hidden_size,
        "direction": "bidirectional" if rnn.bidirectional else "forward",
    }
    if name == "GRU":
        attributes["linear_before_reset"] = 1
    final = (len(directions), inputs.size(1), rnn.hidden_size)
    shapes = [(inputs.size(0), *final), *[final] * (2 if name == "LSTM" else 1)]
    biases = torch.cat([weights("bias_ih"), weights("bias_hh")], 1)
    return tuple(
        torch.onnx.ops.symbolic_multi_out(
            name,
            [inputs, weights("weight_ih"), weights("weight_hh"), biases, lengths],
            attributes,
            dtypes=[inputs.dtype] * len(shapes),
            shapes=shapes,
        )
    )
