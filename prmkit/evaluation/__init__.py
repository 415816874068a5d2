"""Evaluation: from the rows of a search to figures, tables and a picture. Nothing here imports torch."""
