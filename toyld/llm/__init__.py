"""Language models as Hugging Face stores them: exact probes of given responses at saved checkpoints."""
