"""Fine-tuning of pre-trained encoders on labelled scans: the parts of `training/finetune.py`."""
