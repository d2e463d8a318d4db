"""The networks: pure torch modules and their settings. Nothing here knows how they are trained."""
