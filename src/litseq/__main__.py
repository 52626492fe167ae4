"""``python -m litseq`` is the command ``litseq``."""

from litseq.cli import main

if __name__ == "__main__":
    main()
