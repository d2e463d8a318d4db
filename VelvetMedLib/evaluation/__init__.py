"""Evaluation: metrics, protocols of published tables, comparison tables and plots."""
