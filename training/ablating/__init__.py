"""The ablation of VELVET-Med's parts on the synthetic cohort: the parts of `ablation.py`."""
