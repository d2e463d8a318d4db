"""Recipes: which encoders, views and objectives make up one pre-training method."""
