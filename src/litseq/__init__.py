"""Sequence-to-sequence learning inside PyTorch Lightning."""

__version__ = "0.1.0"
