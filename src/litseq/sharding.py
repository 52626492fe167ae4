"""A network whose parameters are divided among ranks (FSDP2), each layer fetched when it runs."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

__all__ = ["gather", "local", "scatter", "shard"]


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Leaves every rank its part of each parameter; tied parameters stay one.

    Each member of a ``ModuleList`` (the layers of a Transformer) is a unit that is fetched whole
    before it runs; what is left makes one more. A network without lists is one unit.

    Args:
        network: The network; changed in place.
        mesh: The ranks that share it, one dimension.
    """
    layers = [
        layer for stack in network.children() if isinstance(stack, nn.ModuleList) for layer in stack
    ]
    for layer in layers:
        fully_shard(layer, mesh=mesh)
        if hasattr(layer, "keys_values"):  # what training calls on a layer beside ``forward``
            register_fsdp_forward_method(layer, "keys_values")
    fully_shard(network, mesh=mesh)


def gather(network: nn.Module | None) -> None:
    """Gives every rank the whole network, for evaluation; nothing where it is not sharded.

    Ranks then need not wait for each other: they translate different numbers of batches, with
    different numbers of tokens.
    """
    if isinstance(network, FSDPModule):
        network.set_reshard_after_forward(False)
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.unshard()


def scatter(network: nn.Module | None) -> None:
    """Undoes ``gather``."""
    if isinstance(network, FSDPModule):
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        network.set_reshard_after_forward(True)
        # backward begins with what forward ended with
        network.set_reshard_after_forward(False, recurse=False)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory; the tensor itself if it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
