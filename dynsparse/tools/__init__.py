"""What looks at runs and checkpoints after training: `python -m dynsparse COMMAND`. Nothing here trains."""
