"""toyld: the executable theory of LLM fine-tuning dynamics."""

__version__ = "0.1.0"
