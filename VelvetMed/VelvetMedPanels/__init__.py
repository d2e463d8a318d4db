"""The panels, one file each. They talk to the logic and never to the worker."""
