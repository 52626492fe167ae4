"""The offline report that explains a translation."""
