"""Pictures of what each layer keeps of an image: from the codes of a sparse-coding layer, or by inverting any other."""
