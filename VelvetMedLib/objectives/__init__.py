"""Training objectives, one per file: maths from tensors to a dict of losses."""
