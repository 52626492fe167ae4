"""``litseq translate``: lines in, translations out; a checkpoint alone suffices."""

from __future__ import annotations
