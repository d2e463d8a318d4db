"""The Case folder and the measurements in it."""
