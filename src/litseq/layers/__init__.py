"""Attention, masks and position codes; torch alone."""
