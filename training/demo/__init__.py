"""The plain training of the demo model, stage by stage: data, fine network, encodings, language, results."""
