"""Datasets: manifest, prepared store, synthetic cohort, public-dataset readers, and the sample scan."""
