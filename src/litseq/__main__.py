"""The command ``litseq``, also as ``python -m litseq``."""

import sys

from litseq.heap import restart_compact

__all__ = ["main"]


def main() -> None:
    """Runs what the words of this process say; training with memory that has room for tensors."""
    if sys.argv[1:2] == ["fit"]:
        restart_compact()
    from litseq.cli import main as run  # torch comes with it

    run()


if __name__ == "__main__":
    main()
