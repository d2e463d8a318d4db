"""The process boundary: protocol, client (light side, for Slicer) and server (torch side). Import the one you need."""
