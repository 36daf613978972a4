"""Images: any Hugging Face set -> batches for a step."""
