"""The models and their contract; torch alone."""
